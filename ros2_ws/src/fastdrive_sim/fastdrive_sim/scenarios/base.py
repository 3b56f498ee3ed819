"""What a scenario is: how it changes the world of a seed, and what it adds to a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import numpy as np

from fastdrive_sim.traffic import Traffic
from fastdrive_sim.types import Camera, Snapshot, Views, World


class SceneLog:
    """What a scenario adds to the dataset of one scene, keyframe after keyframe. This one adds nothing."""

    def add(self, snapshot: Snapshot, views: Views) -> tuple[dict, dict[str, np.ndarray]]:
        """One keyframe.

        Returns:
            Entries of the keyframe in ``extras.json``.
            Images by the folder that they are written to, uint8 [C, H, W]; an image that is all 0 is not written.
        """
        return {}, {}

    def counts(self) -> dict[str, int]:
        """Figures of the whole scene for ``sim.json``."""
        return {}


class Scenario:
    """The world as a seed gives it. Other scenarios change it, with random numbers of their own.

    A subclass is entered in ``scenarios.SCENARIOS`` under the name that ``--scenario`` takes.
    """

    summary = "the world as the seed gives it"
    scene_keyframes = 40  # of a scene, unless the user says

    def prepare(
        self, world: World, traffic: Traffic, seed: int, limit: float, seconds: float, ids: count
    ) -> tuple[World, Traffic]:
        """The world and its traffic before the drive.

        Args:
            limit: speed limit of the drive, m/s.
            seconds: length of the drive.
            ids: gives the numbers of new instances.
        """
        return world, traffic

    def observe(self, traffic: Traffic, ego_s: float) -> tuple:
        """What a snapshot records for the log, ``Snapshot.observed``; ``ego_s``: arc length of the vehicle, m."""
        return ()

    def open_log(self, rig: Sequence[Camera]) -> SceneLog:
        """The log of a new scene."""
        return SceneLog()


class ClosedLoopScenario(Scenario):
    """The scenarios of ``fastdrive sim drive``. They have roads and traffic of their own (``drive.simulation``)."""

    summary = "the closed loop's scenarios, driven by the expert under disturbances"
    scene_keyframes = 20

    def prepare(
        self, world: World, traffic: Traffic, seed: int, limit: float, seconds: float, ids: count
    ) -> tuple[World, Traffic]:
        raise ValueError("the closed loop's scenarios are no change of a world; use DriveDatasetSpec")
