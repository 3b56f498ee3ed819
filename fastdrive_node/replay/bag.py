"""A rosbag2 as the replay needs it: checked against a topic map, messages as serialized bytes. No ROS installation."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rosbags.rosbag2 import Reader

from fastdrive_node.errors import InputError
from fastdrive_node.ros.images import COMPRESSED_TYPE, RAW_TYPE
from fastdrive_node.ros.topics import TopicMap, simulator_topics

ODOMETRY_TYPE = "nav_msgs/msg/Odometry"
COMMAND_TYPE = "std_msgs/msg/String"
STEERING_TYPES = {"std_msgs/msg/Float64": "float64", "autoware_vehicle_msgs/msg/SteeringReport": "autoware"}
ACCELERATION_TYPE = "geometry_msgs/msg/AccelWithCovarianceStamped"


@dataclass(frozen=True)
class BagMessage:
    """One recorded message."""

    topic: str
    stamp_ns: int  # when it was recorded
    raw: bytes


@dataclass(frozen=True)
class Bag:
    """What a bag holds; the messages are read when asked for."""

    path: Path
    types: dict[str, str]  # by topic
    counts: dict[str, int]  # messages, by topic
    start_ns: int
    end_ns: int

    @classmethod
    def open(cls, path: str | Path) -> Bag:
        """Read a bag's index.

        Raises:
            InputError: it is no rosbag2, or is damaged.
        """
        path = Path(path)
        with _reading(path) as reader:
            types = {connection.topic: connection.msgtype for connection in reader.connections}
            counts = dict.fromkeys(types, 0)
            for connection in reader.connections:
                counts[connection.topic] += connection.msgcount
            if not sum(counts.values()):
                raise InputError(f"{path}: the bag is empty")
            return cls(path, types, counts, reader.start_time, reader.end_time)

    def messages(self, topics: Sequence[str]) -> Iterator[BagMessage]:
        """Messages of some topics in the order of their recording.

        Raises:
            InputError: the bag is damaged.
        """
        with _reading(self.path) as reader:
            wanted = [connection for connection in reader.connections if connection.topic in topics]
            if not wanted:  # no connections mean all of them to the reader
                return
            for connection, stamp_ns, raw in reader.messages(connections=wanted):
                yield BagMessage(connection.topic, stamp_ns, bytes(raw))

    def listing(self) -> str:
        return ", ".join(f"{topic} ({kind})" for topic, kind in sorted(self.types.items()))


@contextmanager
def _reading(path: Path) -> Iterator[Reader]:
    if not path.exists():
        raise InputError(f"{path}: no such bag")
    try:
        with Reader(path) as reader:
            yield reader
    except InputError:
        raise
    except Exception as error:  # of many kinds, for a folder that is no bag and for a damaged one
        detail = " ".join(str(error).split())[:160]
        if "end magic" in detail:
            raise InputError(
                f"{path}: the MCAP file is cut off: its recording did not end; `mcap recover` repairs it"
            ) from error
        raise InputError(
            f"{path}: not a readable rosbag2 ({detail}); give the folder with metadata.yaml, in MCAP or sqlite3"
        ) from error


def choose_topics(bag: Bag, given: TopicMap | None) -> TopicMap:
    """The given map, or the simulator's topics in the transport that the bag has."""
    if given is not None:
        return given
    maps = [simulator_topics(compressed=False), simulator_topics(compressed=True)]
    found = max(maps, key=lambda candidate: sum(topic in bag.types for topic in candidate.cameras.values()))
    if found.command in bag.types:
        return found
    return TopicMap(found.cameras, found.odometry, None, found.name)


def check_topics(bag: Bag, topics: TopicMap) -> bool:
    """Whether the bag has what the map says. True where the images are compressed.

    Raises:
        InputError: a topic is missing, empty, or of another type; the text names it and lists what the bag has.
    """
    kinds = {_check(bag, topics, *camera, (RAW_TYPE, COMPRESSED_TYPE)) for camera in topics.cameras.items()}
    _check(bag, topics, "odometry", topics.odometry, (ODOMETRY_TYPE,))
    if topics.command is not None:
        _check(bag, topics, "command", topics.command, (COMMAND_TYPE,), may_be_empty=True)
    if topics.steering is not None:
        _check(bag, topics, "steering", topics.steering, tuple(STEERING_TYPES), may_be_empty=True)
    if topics.acceleration is not None:
        _check(bag, topics, "acceleration", topics.acceleration, (ACCELERATION_TYPE,), may_be_empty=True)
    if len(kinds) > 1:
        raise InputError(f"{topics.name}: cameras: some topics are raw and some compressed; give all of one transport")
    return kinds == {COMPRESSED_TYPE}


def _check(bag: Bag, topics: TopicMap, key: str, topic: str, kinds: Sequence[str], may_be_empty: bool = False) -> str:
    kind = bag.types.get(topic)
    if kind is None:
        near = difflib.get_close_matches(topic, bag.types, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(
            f"{bag.path}: {key}: topic {topic} of {topics.name} is not in the bag; {hint}give a topic map with "
            f"--topics; the bag has {bag.listing()}"
        )
    if kind not in kinds:
        raise InputError(
            f"{bag.path}: {key}: topic {topic} is of type {kind}, but must be {' or '.join(kinds)}; correct "
            f"{topics.name}; the bag has {bag.listing()}"
        )
    if not bag.counts[topic] and not may_be_empty:
        raise InputError(f"{bag.path}: {key}: topic {topic} has no messages")
    return kind


@dataclass(frozen=True)
class Recording:
    """A bag, checked against the topics of the cameras that the model reads."""

    bag: Bag
    topics: TopicMap
    compressed: bool

    @classmethod
    def open(cls, path: str | Path, given: TopicMap | None, cameras: Sequence[str]) -> Recording:
        """
        Args:
            given: the topic map; None for the simulator's topics.

        Raises:
            InputError: it is no bag, the map lacks a camera, or the bag lacks a topic.
        """
        bag = Bag.open(path)
        topics = choose_topics(bag, given).of_cameras(cameras)
        return cls(bag, topics, check_topics(bag, topics))

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(self.topics.cameras)

    def parameters(self) -> dict[str, object]:
        """Parameters of the node that follow from the types of the topics."""
        steering = STEERING_TYPES[self.bag.types[self.topics.steering]] if self.topics.steering else "none"
        transport = "compressed" if self.compressed else "raw"
        return {"image_transport": transport, **self.topics.parameters(steering)}

    def image_messages(self) -> Iterator[BagMessage]:
        """Messages of the cameras, in the order of their recording. Raises InputError where the bag is damaged."""
        return self.bag.messages(list(self.topics.cameras.values()))
