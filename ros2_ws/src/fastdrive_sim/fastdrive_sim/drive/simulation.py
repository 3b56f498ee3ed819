"""Scenarios of the closed loop as scenes of a dataset: the expert drives under disturbances and labels every state."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fastdrive_node.errors import SimError
from fastdrive_sim.dataset import DatasetSpec
from fastdrive_sim.drive.disturbance import DisturbedTracker, random_start
from fastdrive_sim.drive.families import FAMILIES
from fastdrive_sim.drive.loop import drive
from fastdrive_sim.drive.planners import expert_planner
from fastdrive_sim.drive.recorder import StateRecorder
from fastdrive_sim.drive.suite import TRAINING_SEEDS, check_families
from fastdrive_sim.drive.types import EXPERT, DriveRow
from fastdrive_sim.scenarios import CLOSED_LOOP, SCENARIOS
from fastdrive_sim.scene_writer import ScenePlan
from fastdrive_sim.sources import ChoosesKeyframes, Sources
from fastdrive_sim.types import SceneRecording

BEFORE_COLLISION_S = 4.0  # of a drive that are left out
TRIES = 12  # scenarios, until one is long enough
FROM_START = 0.25  # of the scenes begin at the scenario's start


@dataclass(frozen=True)
class DriveDatasetSpec(DatasetSpec):
    """A dataset of ``--scenario drive``."""

    scenario: str = field(default=CLOSED_LOOP, kw_only=True)
    scene_keyframes: int = SCENARIOS[CLOSED_LOOP].scene_keyframes
    family: tuple[str, ...] = field(default=(), kw_only=True)  # of the scenes; empty: all of them

    def __post_init__(self) -> None:
        super().__post_init__()
        check_families(self.family)

    def simulation(self, sources: Sources, plan: ScenePlan) -> ChoosesKeyframes:
        return DriveSimulation(plan.world_seed, self.other_speeds, self.family)


class DriveSimulation:
    """A family drawn by the seed, and scenarios of it that no suite has. The same seed gives the same one.

    ``families``: to draw from; empty: all.
    """

    def __init__(self, seed: int, other_speeds: int = 0, families: Sequence[str] = ()):
        self.seed, self._other_speeds = seed, other_speeds
        chosen = list(families or FAMILIES)
        self.family = chosen[seed % len(chosen)]

    def scenario_seed(self, number: int) -> int:
        """Of the ``number``-th scenario."""
        digest = hashlib.sha256(f"fastdrive_sim drive/{self.seed}/{number}".encode()).digest()
        return TRAINING_SEEDS + int.from_bytes(digest[:5], "big")

    def choose(self, keyframes: int, hz: int) -> SceneRecording:
        """So many successive keyframes of the first scenario that has them.

        Raises SimError where scenarios of this family have fewer.
        """
        most = 0
        for number in range(TRIES):
            recorder = self._drive(number, hz)
            found = len(recorder.keyframes)
            if found >= keyframes:
                rng = np.random.default_rng((self.seed, number, 1))
                first = 0 if rng.random() < FROM_START else int(rng.integers(found - keyframes + 1))
                return recorder.recording(slice(first, first + keyframes))
            most = max(most, found)
        raise SimError(f"--scene-keyframes {keyframes}: a scenario of {self.family} has {most} at most; give fewer")

    def _drive(self, number: int, hz: int) -> StateRecorder:
        scene = FAMILIES[self.family].scene(self.scenario_seed(number))
        rng = np.random.default_rng((self.seed, number))
        recorder = StateRecorder(expert_planner(), hz, self._other_speeds)
        start = random_start(scene, rng)
        run = drive(scene, recorder, DriveRow(EXPERT), start=start, tracker=DisturbedTracker(scene, rng))
        if run.collisions:
            recorder.leave_out_after(run.collisions[0].time_s - BEFORE_COLLISION_S)
        return recorder
