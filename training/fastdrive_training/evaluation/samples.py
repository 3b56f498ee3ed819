"""The samples of an evaluation, and what is known around each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastdrive_node.errors import InputError
from fastdrive_node.types import EgoHistory
from fastdrive_training.data.nuscenes.drivable import MapMasks
from fastdrive_training.data.nuscenes.ego_track import FUTURE_POINTS, INTERVAL_S
from fastdrive_training.data.nuscenes.keyframes import Keyframe, KeyframeDataset
from fastdrive_training.data.nuscenes.objects import SceneObjects
from fastdrive_training.evaluation.metrics import Surroundings

CONSTANT_VELOCITY = "constant-velocity"


@dataclass(frozen=True)
class Samples:
    """Which keyframes are judged, and whose pictures they see."""

    own: tuple[int, ...]  # positions in the data set
    pictures: tuple[int, ...]  # as ``own``, or of other scenes
    without_future: int  # keyframes that have no 3 s of future; they are not judged

    def __len__(self) -> int:
        return len(self.own)


def choose_samples(dataset: KeyframeDataset, limit: int | None, shuffled: bool) -> Samples:
    """The keyframes with a full future, ``limit`` of them, evenly spread.

    Raises InputError: none has a future, or shuffling within one scene.
    """
    known = [index for index, keyframe in enumerate(dataset) if keyframe.future_m is not None]
    if not known:
        raise InputError(f"{dataset.root}: none of the {len(dataset)} keyframes has a future of 3 s; use longer scenes")
    count = min(limit or len(known), len(known))
    own = tuple(known[place * len(known) // count] for place in range(count))
    pictures = tuple(other_scenes(dataset, own)) if shuffled else own
    return Samples(own, pictures, len(dataset) - len(known))


def other_scenes(dataset: KeyframeDataset, samples: Sequence[int], seed: int = 0) -> list[int]:
    """For each sample one of another scene, by chance from the seed. Raises InputError: there is only one scene."""
    scenes = np.array(dataset.scenes)[list(samples)]
    if len(set(scenes)) < 2:
        raise InputError(f"{dataset.root}: --images shuffled needs samples of two scenes; choose a larger split")
    generator = np.random.default_rng(seed)
    return [int(generator.choice(np.asarray(samples)[scenes != scene])) for scene in scenes]


def constant_velocity(history: EgoHistory, points: int = FUTURE_POINTS, dt_s: float = INTERVAL_S) -> np.ndarray:
    """Straight ahead at the current speed, float64 [points, 2] in the ego frame: the velocity of a car is along x."""
    ahead = history.now.speed_mps * dt_s * np.arange(1, points + 1)
    return np.stack([ahead, np.zeros(points)], axis=1)


class World:
    """Objects and maps of a dataset."""

    def __init__(self, dataset: KeyframeDataset):
        self._objects, self._maps = SceneObjects(dataset), MapMasks(dataset)

    def around(self, keyframe: Keyframe) -> Surroundings:
        """What the dataset knows around a keyframe. Raises InputError for a broken annotation or map."""
        frame, area = self._maps.around(keyframe.token) or (None, None)
        return Surroundings(keyframe.future_m, self._objects.future_boxes(keyframe.token), frame, area)
