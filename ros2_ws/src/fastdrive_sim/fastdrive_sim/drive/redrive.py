"""A recorded run driven again: its vehicle follows its plans anew, so that the scene's whole state is there again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fastdrive_node.errors import InputError
from fastdrive_sim.drive.families import FAMILIES
from fastdrive_sim.drive.loop import drive
from fastdrive_sim.drive.planners import Tick, TickAnswer
from fastdrive_sim.drive.recorder import StateRecorder
from fastdrive_sim.drive.scene import DriveScene
from fastdrive_sim.drive.scoring.polygons import distances, inside_any
from fastdrive_sim.drive.types import EgoStep, PlanStep, RunRecord, RunStep

OFF_ROAD_M = 2.0  # the rear axle beside the road; farther away there is nothing to learn
ANOTHER_VERSION = "it was driven by another version, or the file is damaged; drive it again"


class RecordedPlanner:
    """Gives the plans of a run when they came into use in it; refused and late ones had no effect."""

    def __init__(self, plans: Sequence[PlanStep]):
        used = [plan for plan in plans if plan.used_from_s is not None and plan.ego is not None]
        self._waiting = sorted(used, key=lambda plan: plan.used_from_s or 0.0)

    def begin(self, scene: DriveScene) -> None:
        pass

    def watch(self, ego: EgoStep, time_s: float) -> None:
        pass

    def offer(self, ego: EgoStep, time_s: float) -> None:
        pass

    def collect(self, time_s: float) -> list[TickAnswer]:
        due = [plan for plan in self._waiting if (plan.used_from_s or 0.0) <= time_s + 1e-9]
        self._waiting = self._waiting[len(due) :]
        return [
            TickAnswer(Tick(plan.time_s, plan.ego), xy=plan.xy, times_s=plan.times_s)
            for plan in due
            if plan.ego is not None
        ]


def redrive(run: RunRecord, path: Path, hz: int, other_speeds: int = 0) -> StateRecorder:
    """The states of a run with the expert's labels, up to its first contact and without those beside the road.

    Args:
        path: of the run, for errors.
        hz: keyframes a second.
        other_speeds: as those of ``StateRecorder``.

    Raises:
        InputError: the run cannot be driven again as it was, bit for bit.
    """
    if run.family not in FAMILIES:
        raise InputError(f"{path}: a run of the family {run.family}, which this version does not have")
    scene = FAMILIES[run.family].scene(run.seed)
    if scene.parameters != run.parameters or scene.vehicle != run.vehicle:
        raise InputError(f"{path}: the scenario is not the one of this version; {ANOTHER_VERSION}")
    recorder = StateRecorder(RecordedPlanner(run.plans), hz, other_speeds)
    again = drive(scene, recorder, run.row)
    _compare(run, again, path)
    ends = [run.steps[-1].time_s, *(each.time_s - 1e-6 for each in run.collisions[:1])]
    recorder.leave_out_after(min(ends))
    recorder.leave_out(lambda pose: away_from_road(run, pose.x, pose.y) > OFF_ROAD_M)
    return recorder


def _compare(run: RunRecord, again: RunRecord, path: Path) -> None:
    """Raises InputError at the first step that is another one. A run that failed may be the shorter one."""
    for then, now in zip(run.steps, again.steps, strict=False):
        if _state(then) != _state(now):
            part = "vehicle" if then.ego != now.ego else "others or lights"
            raise InputError(f"{path}: driven again, another run from {then.time_s:g} s on ({part}); {ANOTHER_VERSION}")
    if len(again.steps) < len(run.steps):
        raise InputError(f"{path}: driven again, the run ends at {again.steps[-1].time_s:g} s; {ANOTHER_VERSION}")


def _state(step: RunStep) -> RunStep:
    """Without the plan in use, which is counted anew."""
    return replace(step, plan=-1, plan_age_s=0.0)


def away_from_road(run: RunRecord, x: float, y: float) -> float:
    """Distance of a point from the drivable area, m; 0 on it."""
    point = np.array([[x, y]])
    if inside_any(point, run.map.drivable)[0]:
        return 0.0
    return min(float(distances(point, np.concatenate([each, each[:1]]))[0]) for each in run.map.drivable)
