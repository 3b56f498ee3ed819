"""Scenarios of the closed loop as scenes of a dataset: the expert drives under disturbances and labels every state."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from fastdrive_node.errors import SimError
from fastdrive_sim.drive.disturbance import DisturbedTracker, random_start
from fastdrive_sim.drive.families import FAMILIES
from fastdrive_sim.drive.loop import drive
from fastdrive_sim.drive.planners import expert_planner
from fastdrive_sim.drive.recorder import SIM_HZ, StateRecorder
from fastdrive_sim.drive.suite import TRAINING_SEEDS
from fastdrive_sim.drive.types import EXPERT, DriveRow
from fastdrive_sim.types import Recording, Snapshot, World

BEFORE_COLLISION_S = 4.0  # of a drive that are left out
TRIES = 12  # scenarios, until one is long enough
FROM_START = 0.25  # of the scenes begin at the scenario's start


class DriveSimulation:
    """A family drawn by the seed, and scenarios of it that no suite has. The same seed gives the same one."""

    def __init__(self, seed: int):
        self.seed = seed
        self.family = list(FAMILIES)[seed % len(FAMILIES)]
        self.world: World = FAMILIES[self.family].scene(self.scenario_seed(0)).world

    def scenario_seed(self, number: int) -> int:
        """Of the ``number``-th scenario."""
        digest = hashlib.sha256(f"fastdrive_sim drive/{self.seed}/{number}".encode()).digest()
        return TRAINING_SEEDS + int.from_bytes(digest[:5], "big")

    def choose(self, keyframes: int, hz: int) -> Recording:
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

    def run(self, seconds: float, hz: float = SIM_HZ) -> Iterator[Snapshot]:
        """The first scenario from its start; it may end before ``seconds``."""
        recorder = self._drive(0, SIM_HZ)
        yield from recorder.driven[: round(seconds * SIM_HZ) + 1 : round(SIM_HZ / hz)]

    def _drive(self, number: int, hz: int) -> StateRecorder:
        scene = FAMILIES[self.family].scene(self.scenario_seed(number))
        rng = np.random.default_rng((self.seed, number))
        recorder = StateRecorder(expert_planner(), hz)
        start = random_start(scene, rng)
        run = drive(scene, recorder, DriveRow(EXPERT), start=start, tracker=DisturbedTracker(scene, rng))
        if run.collisions:
            recorder.leave_out_after(run.collisions[0].time_s - BEFORE_COLLISION_S)
        return recorder
