"""Sets of images, one of each camera, from a dataset or from a rosbag2 (without the node or ROS)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from fastdrive_node.errors import InputError
from fastdrive_node.replay.bag import Recording
from fastdrive_node.replay.frame_sets import SetCounter
from fastdrive_node.ros.topics import load_topic_map
from fastdrive_node.types import FrameSet
from fastdrive_training.data.adapters import ImageSource
from fastdrive_training.data.masks import size_of


class ImageSets(Protocol):
    """Sets of images in time order. ``read`` takes ascending positions and gives (name, uint8 RGB [H, W, 3] of each
    camera); it raises InputError for an image that cannot be read."""

    @property
    def cameras(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def read(self, positions: Iterable[int]) -> Iterator[tuple[str, list[np.ndarray]]]: ...


class SourceSets:
    """The items of a dataset as ImageSets."""

    def __init__(self, source: ImageSource):
        self.source, self.cameras = source, source.cameras
        self._sizes: dict[int, dict[str, tuple[int, int]]] = {}  # (height, width) of what was read, by camera

    def __len__(self) -> int:
        return len(self.source)

    def read(self, positions: Iterable[int]) -> Iterator[tuple[str, list[np.ndarray]]]:
        for index in positions:
            item = self.source[int(index)]
            images = {camera: item.load_image(camera) for camera in self.cameras}
            self._sizes[int(index)] = {camera: size_of(image) for camera, image in images.items()}
            yield f"{item.scene} {item.name}", list(images.values())

    def coverage(self, positions: Iterable[int], grids: Sequence[tuple[int, int]]) -> np.ndarray:
        """float32 [positions, tokens]: fraction of foreground in each token's cell, NaN where unknown.

        ``grids`` holds the token rows and columns of each camera's image.
        Raises InputError: no masks, or one that is missing, damaged or of another size than its image.
        """
        return np.stack([self._coverage(int(index), grids) for index in tqdm(positions, desc="masks", unit="set")])

    def _coverage(self, index: int, grids: Sequence[tuple[int, int]]) -> np.ndarray:
        item = self.source[index]
        sizes = self._sizes.get(index) or {camera: size_of(item.load_image(camera)) for camera in self.cameras}
        item, cells = replace(item, image_sizes=sizes), zip(self.cameras, grids, strict=True)
        return np.concatenate([item.coverage([camera], grid)[0] for camera, grid in cells])


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

    def read(self, positions: Iterable[int]) -> Iterator[tuple[str, list[np.ndarray]]]:
        """(name, uint8 RGB [H, W, 3] of each camera) of the sets at ascending positions.

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
