"""Which items of a dataset are judged, and what is known around each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastdrive_node.errors import InputError
from fastdrive_node.types import EgoHistory
from fastdrive_training.data.adapters.base import FUTURE_INTERVAL_S, FUTURE_POINTS, ImageSource, Item
from fastdrive_training.data.sampling import with_future
from fastdrive_training.evaluation.metrics.judge import Surroundings

CONSTANT_VELOCITY = "constant-velocity"


@dataclass(frozen=True)
class SampleChoice:
    """Which items are judged, and whose images they see."""

    own: tuple[int, ...]  # positions in the dataset
    images: tuple[int, ...]  # as ``own``, or of other scenes
    without_future: int  # items that have no 3 s of future; they are not judged

    def __len__(self) -> int:
        return len(self.own)


def choose_samples(source: ImageSource, limit: int | None, shuffled: bool) -> SampleChoice:
    """The items with a full future. Raises InputError: none has one, or shuffling within one scene."""
    own, without = with_future(source, limit)
    images = other_scenes(source.root, source.scenes, own) if shuffled else own
    return SampleChoice(tuple(own), tuple(images), without)


def other_scenes(root: Path, scenes: Sequence[str], samples: Sequence[int]) -> list[int]:
    """For each sample a random one of another scene; ``scenes`` are those of all items of the dataset ``root``.

    Raises InputError: there is only one scene.
    """
    own = np.array(scenes)[list(samples)]
    if len(set(own)) < 2:
        raise InputError(f"{root}: --images shuffled needs samples of two scenes; choose a larger split")
    generator = np.random.default_rng(0)
    return [int(generator.choice(np.asarray(samples)[own != scene])) for scene in own]


def constant_velocity(history: EgoHistory) -> np.ndarray:
    """Straight ahead at the current speed, float64 [6, 2] in the ego frame: the velocity of a car is along x."""
    ahead = history.now.speed_mps * FUTURE_INTERVAL_S * np.arange(1, FUTURE_POINTS + 1)
    return np.stack([ahead, np.zeros(FUTURE_POINTS)], axis=1)


def surroundings(item: Item) -> Surroundings:
    """What the dataset knows around an item with a future. Raises InputError for a broken annotation or map."""
    frame, area = item.find_drivable() or (None, None)
    objects = item.find_objects()
    if objects is None:
        return Surroundings(item.known_future(), frame=frame, area=area)
    return Surroundings(item.known_future(), objects.boxes, frame, area, objects.vehicle_boxes)
