"""Complete frame sets of a rosbag2 as decoded images, for pictures and figures without the node. Needs no ROS."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastdrive_node.replay.bag import Bag, check_topics, choose_topics
from fastdrive_node.replay.frame_sets import SetCounter
from fastdrive_node.ros.topics import TopicMap, load_topic_map
from fastdrive_node.errors import InputError
from fastdrive_node.types import FrameSet


def is_bag(path: str | Path) -> bool:
    """Whether this looks like a rosbag2: its folder, or a storage file."""
    path = Path(path)
    return (path / "metadata.yaml").is_file() or path.suffix in (".mcap", ".db3")


@dataclass(frozen=True)
class BagSets:
    """The frame sets of a bag that the node would see as complete, in time order."""

    bag: Bag
    topics: TopicMap
    cameras: tuple[str, ...]
    compressed: bool
    t0_ns: tuple[int, ...]

    @classmethod
    def open(cls, path: str | Path, topics: str | Path | None, cameras: Sequence[str]) -> BagSets:
        """Find the sets; ``topics`` is a topic map's file, None for the simulator's topics.

        Raises:
            InputError: no bag, a topic is missing, or no set is complete.
        """
        bag = Bag.open(path)
        chosen = choose_topics(bag, load_topic_map(topics) if topics else None)
        compressed = check_topics(bag, chosen, cameras)
        counter = SetCounter(chosen, cameras, compressed)
        for message in bag.messages([chosen.cameras[camera] for camera in cameras]):
            counter.add(message)
        if not counter.complete:
            raise InputError(f"{bag.path}: no set with an image of each of {', '.join(cameras)} at one time")
        return cls(bag, chosen, tuple(cameras), compressed, tuple(counter.complete))

    def __len__(self) -> int:
        return len(self.t0_ns)

    def read(self, positions: Sequence[int]) -> Iterator[tuple[str, list[np.ndarray]]]:
        """(name, uint8 RGB [H, W, 3] of each camera) of the sets at these positions, which ascend.

        Raises:
            InputError: an image cannot be decoded; the text names the camera.
        """
        wanted = {self.t0_ns[index] for index in positions}
        found: list[FrameSet] = []
        counter = SetCounter(self.topics, self.cameras, self.compressed, on_set=found.append)
        for message in self.bag.messages([self.topics.cameras[camera] for camera in self.cameras]):
            counter.add(message)
            while found:
                frames = found.pop(0)
                if frames.t0_ns in wanted:
                    yield f"{self.bag.path.name} {frames.t0_ns}", [frame.load() for frame in frames.frames]
