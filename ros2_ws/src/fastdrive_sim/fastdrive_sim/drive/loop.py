"""The closed loop: scene, planner, controller and vehicle, step by step, to the record of a run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from fastdrive_node.errors import FastDriveError
from fastdrive_sim.drive.contact import ContactFinder
from fastdrive_sim.drive.planners import DrivePlanner, TickAnswer
from fastdrive_sim.drive.scene import DriveScene
from fastdrive_sim.drive.tracking import Reference, Tracker
from fastdrive_sim.drive.types import (
    COLLIDED,
    COMPLETED,
    FAILED,
    LATE,
    OFF_ROAD,
    PLANNED,
    RECORD_S,
    REFUSED,
    SUBSTEPS,
    TIMEOUT,
    Collision,
    DriveRow,
    EgoStep,
    PlanStep,
    RunRecord,
    RunStep,
    StaticMap,
)
from fastdrive_sim.drive.vehicle import SUBSTEP_S, Actuators, VehicleModel

OFF_ROUTE_M = 9.0  # left or right of the lane's middle, the run is over
REFUSALS_S = 8.0  # of refusals from the start on, without a single plan, after which the run has failed
SOFT = ("traffic_cone",)  # the vehicle drives on after it has touched one


@dataclass(frozen=True)
class LoopSettings:
    """What a run does beside its scene and planner."""

    plan_s: float = 0.5  # between two planning ticks
    actuators: Actuators = field(default_factory=Actuators)

    @property
    def plan_steps(self) -> int:
        """Steps of the record between two planning ticks."""
        return max(round(self.plan_s / RECORD_S), 1)


class _Run:
    """The state of one run."""

    def __init__(
        self,
        scene: DriveScene,
        planner: DrivePlanner,
        settings: LoopSettings,
        start: EgoStep | None = None,
        tracker: Tracker | None = None,
    ):
        self.scene, self.planner, self.settings = scene, planner, settings
        self.model = VehicleModel(start or scene.start(), scene.vehicle, settings.actuators)
        self.tracker = tracker or Tracker(scene.vehicle, settings.actuators)
        self.map: StaticMap = scene.map()
        self.contacts = ContactFinder(self.map.obstacles, scene.vehicle)
        self.steps: list[RunStep] = []
        self.plans: list[PlanStep] = []
        self.collisions: list[Collision] = []
        self.in_use = -1  # index of the plan that is tracked
        self.newest_s = -np.inf  # t0 of it
        self.ending = ""
        self.reason = ""

    def go(self) -> None:
        """To the end; a planner that cannot go on makes the run fail with its reason."""
        try:
            self._go()
        except FastDriveError as error:
            self.ending, self.reason = FAILED, " ".join(str(error).split())
        if not self.steps:
            self._record(0.0)

    def _go(self) -> None:
        self.planner.begin(self.scene)
        count = round(self.scene.timeout_s / RECORD_S)
        for index in range(count + 1):
            time_s = round(index * RECORD_S, 6)
            self.planner.watch(self.model.state, time_s)
            if index % self.settings.plan_steps == 0:
                self.planner.offer(self.model.state, time_s)
            self._take(time_s)
            self._record(time_s)
            if self._ended(time_s):
                return
            self._advance(time_s)
            if self.ending:
                self._record(time_s + RECORD_S)
                return
        self.ending = TIMEOUT

    def _advance(self, time_s: float) -> None:
        """Physics up to the next step of the record, or to a collision."""
        for substep in range(SUBSTEPS):
            now_s = round(time_s + substep * SUBSTEP_S, 6)
            if substep:
                self._take(now_s)
            if substep == SUBSTEPS // 2:
                self.planner.watch(self.model.state, now_s)
            state = self.model.step(self.tracker.control(self.model.state, now_s))
            self.scene.step(state, now_s, SUBSTEP_S)
            found = self.contacts.find(now_s + SUBSTEP_S, state, self.scene.others())
            self.collisions += found
            if any(each.other.kind not in SOFT for each in found) and not self.ending:
                self.ending = COLLIDED
            if self.ending:
                return

    def _take(self, time_s: float) -> None:
        """Bring answers that have come into use."""
        for answer in self.planner.collect(time_s):
            self.plans.append(self._plan_step(answer, time_s))

    def _plan_step(self, answer: TickAnswer, time_s: float) -> PlanStep:
        tick = answer.tick
        plan = PlanStep(
            tick.time_s, answer.outcome, answer.reason, None, answer.xy, answer.times_s, tick.ego, answer.mode,
            answer.kept_tokens, answer.total_tokens, answer.kept,
        )  # fmt: skip
        if answer.outcome != PLANNED:
            return plan
        if tick.time_s <= self.newest_s or answer.times_s[-1] <= time_s:
            return replace(plan, outcome=LATE, reason="a newer plan was in use, or its last waypoint was past")
        self.newest_s, self.in_use = tick.time_s, len(self.plans)
        self.tracker.reference = Reference.of_plan(tick.ego, tick.time_s, answer.xy, answer.times_s)
        return replace(plan, used_from_s=time_s)

    def _record(self, time_s: float) -> None:
        scene, state = self.scene, self.model.state
        age = time_s - self.newest_s if self.in_use >= 0 else 0.0
        self.steps.append(
            RunStep(
                round(time_s, 6),
                state,
                scene.others_near(state),
                scene.light_states(),
                scene.command,
                scene.ego_s - scene.start_s,
                self.in_use,
                round(age, 6),
            )
        )

    def _ended(self, time_s: float) -> bool:
        scene = self.scene
        _, left = scene.route.project(self.model.state.x, self.model.state.y, scene.ego_s)
        if scene.ego_s - scene.start_s >= scene.goal_m:
            self.ending = COMPLETED
        elif not -OFF_ROUTE_M < left < OFF_ROUTE_M + 3.5:
            self.ending = OFF_ROAD
        elif time_s >= REFUSALS_S and self.in_use < 0:
            reasons = [plan.reason for plan in self.plans if plan.outcome == REFUSED]
            if any(plan.outcome == LATE for plan in self.plans):
                reasons.append("plans came after their last waypoint; give a smaller latency")
            self.ending = FAILED
            reason = reasons[-1] if reasons else "the planner gave none"
            self.reason = f"no plan in use in {REFUSALS_S:g} s; {reason}"
        return bool(self.ending)


def drive(
    scene: DriveScene,
    planner: DrivePlanner,
    row: DriveRow,
    settings: LoopSettings | None = None,
    start: EgoStep | None = None,
    tracker: Tracker | None = None,
) -> RunRecord:
    """Run a fresh scene to its end; from another start, or with another controller, where they are given."""
    run = _Run(scene, planner, settings or LoopSettings(), start, tracker)
    run.go()
    return RunRecord(
        scene.family,
        scene.seed,
        row,
        run.map,
        tuple(run.steps),
        tuple(run.plans),
        tuple(run.collisions),
        run.ending,
        run.reason,
        vehicle=scene.vehicle,
        parameters=scene.parameters,
    )


def with_expert(run: RunRecord, expert: RunRecord) -> RunRecord:
    """The run with the expert's progress in the same scene."""
    return replace(run, expert_progress_m=np.array([step.progress_m for step in expert.steps]))
