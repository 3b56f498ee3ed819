"""Complete frame sets of a rosbag2 as decoded images, for pictures and figures without the node. Needs no ROS."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastdrive_node.replay.bag import Recording
from fastdrive_node.replay.frame_sets import SetCounter
from fastdrive_node.ros.topics import load_topic_map
from fastdrive_node.errors import InputError
from fastdrive_node.types import FrameSet


def is_bag(path: str | Path) -> bool:
    """Whether this looks like a rosbag2: its folder, or a storage file."""
    path = Path(path)
    return (path / "metadata.yaml").is_file() or path.suffix in (".mcap", ".db3")


@dataclass(frozen=True)
class BagSets:
    """The frame sets of a bag that the node would see as complete, in time order."""

    recording: Recording
    t0_ns: tuple[int, ...]

    @classmethod
    def open(cls, path: str | Path, topics: str | Path | None, cameras: Sequence[str]) -> BagSets:
        """Find the sets; ``topics`` is a topic map's file, None for the simulator's topics.

        Raises:
            InputError: no bag, a topic is missing, or no set is complete.
        """
        recording = Recording.open(path, load_topic_map(topics) if topics else None, cameras)
        counter = SetCounter(recording.topics, recording.compressed)
        for message in recording.image_messages():
            counter.add(message)
        if not counter.complete:
            raise InputError(f"{recording.bag.path}: no set with an image of each of {', '.join(cameras)} at one time")
        return cls(recording, tuple(counter.complete))

    @property
    def cameras(self) -> tuple[str, ...]:
        return self.recording.cameras

    def __len__(self) -> int:
        return len(self.t0_ns)

    def read(self, positions: Sequence[int]) -> Iterator[tuple[str, list[np.ndarray]]]:
        """(name, uint8 RGB [H, W, 3] of each camera) of the sets at these positions, which ascend.

        Raises:
            InputError: an image cannot be decoded; the text names the camera.
        """
        wanted = {self.t0_ns[index] for index in positions}
        found: list[FrameSet] = []
        counter = SetCounter(self.recording.topics, self.recording.compressed, on_set=found.append)
        for message in self.recording.image_messages():
            counter.add(message)
            while found:
                frames = found.pop(0)
                if frames.t0_ns in wanted:
                    yield f"{self.recording.bag.path.name} {frames.t0_ns}", [frame.load() for frame in frames.frames]
