"""What the worker takes and gives: planner, limits, the outcome of each frame set, a status. No ROS."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from fastdrive_node.errors import AnswerError
from fastdrive_node.sync.camera_identity import camera_problems
from fastdrive_node.sync.frames import CameraStatus, FrameCounters
from fastdrive_node.sync.health import InputLimits
from fastdrive_node.types import (
    SUPERSEDED,
    Command,
    DeadlineChoice,
    EgoHistory,
    EgoState,
    FrameSet,
    Plan,
    PlannerState,
    Refusal,
)

RECENT = 20  # plans and refusals that the diagnostics judge by


class Planner(Protocol):
    """What the worker needs of ``pipeline.Pipeline``."""

    @property
    def drop(self) -> float:
        """Pruning ratio; may be set between plans."""
        ...

    @drop.setter
    def drop(self, value: float) -> None: ...

    @property
    def default_drop(self) -> float:
        """Where the user gives none."""
        ...

    def check_drop(self, value: float) -> object:
        """Raises InputError, with the reason, for a pruning ratio that ``drop`` would not take."""
        ...

    def plan(self, frame_set: FrameSet, history: EgoHistory, command: Command) -> Plan:
        """Raises FastDriveError: ImageError, EgoStateError, AnswerError, ...; ``stage`` and text name the cause."""
        ...


@dataclass(frozen=True)
class WorkerLimits:
    """Times in seconds."""

    odometry_wait_s: float = 0.2  # wall time that a complete set waits for odometry at t0 or later
    max_command_age_s: float = 0.0  # of the driving command when the set is complete; 0: no limit
    max_plan_age_s: float = 1.0  # of t0 when the plan is published
    compensate: bool = False  # move plans on by odometry to the time of publishing
    inputs: InputLimits = field(default_factory=InputLimits)


@dataclass(frozen=True)
class WaitingSet:
    """A complete set with the command at its completion, which holds however long the set waits for the planner."""

    frames: FrameSet
    command: Command
    complete_at: float  # monotonic seconds


@dataclass(frozen=True)
class Outcome:
    """Result of one frame set. Times in milliseconds of wall time."""

    result: Plan | Refusal
    frames: FrameSet | None = None  # None where the set was never planned
    history: EgoHistory | None = None
    command: Command = Command.NONE
    waited_ms: float = 0.0  # from complete to the start of planning
    planning_ms: float = 0.0
    ego: EgoState | None = None  # at the plan's stamp, where that is not t0

    @property
    def ego_at_stamp(self) -> EgoState | None:
        """Ego state in whose frame the plan's waypoints are."""
        return self.ego or (None if self.history is None else self.history.now)


@dataclass(frozen=True)
class WorkerStatus:
    """A snapshot for the diagnostics."""

    cameras: dict[str, CameraStatus]
    frames: FrameCounters
    odometry_age_s: float | None
    command: Command
    command_age_s: float | None
    plans: int
    refused: int
    busy: bool  # a set is being planned, or waits
    last_refusal: str  # "stage: reason", or empty
    plan_age_s: float | None  # since the last plan was ready; None: no plan yet
    recent: int  # plans and refusals in the window of the last RECENT
    recent_refusals: dict[str, int]  # of them, refusals by stage, the most frequent first
    planning_s: float | None = None  # wall time that the plan in progress has taken; None: none is in progress
    warnings: tuple[str, ...] = ()  # of the last plan, "code: text"
    deadline: DeadlineChoice | None = None  # of the last plan; None: it had no deadline
    plan_ms: float = 0.0  # time that the last plan took
    late_plans: int = 0  # behind their deadline
    camera_problems: dict[str, str] = field(default_factory=dict)  # by camera: "frozen", "dark", ...
    planner: PlannerState = field(default_factory=PlannerState)


@dataclass
class OutcomeCounts:
    """Outcomes so far, and what the last ones were."""

    plans: int = 0
    refused: int = 0
    last_refusal: str = ""
    warnings: tuple[str, ...] = ()
    deadline: DeadlineChoice | None = None
    plan_ms: float = 0.0
    late_plans: int = 0
    camera_problems: dict[str, str] = field(default_factory=dict)
    plan_ns: int | None = None  # when the last plan was ready
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=RECENT))  # a refusal's stage; "" for a plan

    def add(self, result: Plan | Refusal, cameras: Sequence[str], now_ns: int) -> None:
        if isinstance(result, Plan):
            self.plans += 1
            self.plan_ns, self.warnings = now_ns, result.warnings
            self.deadline, self.plan_ms = result.deadline, result.stage_ms.get("total", 0.0)
            self.late_plans += self.deadline is not None and self.plan_ms > self.deadline.deadline_ms
            self.camera_problems = camera_problems(result.warnings, cameras)
            self.recent.append("")
        elif result.stage != SUPERSEDED:
            self.refused += 1
            self.last_refusal = f"{result.stage}: {result.reason}"
            self.camera_problems = camera_problems([f"{result.code}: {result.reason}"], cameras)
            self.recent.append(result.stage)

    def recent_refusals(self) -> dict[str, int]:
        """By stage, the most frequent first."""
        return dict(Counter(filter(None, self.recent)).most_common())


def check_planned(plan: object, t0_ns: int) -> None:
    """The last check before publishing, whatever the planner is. Raises AnswerError; TypeError for no plan at all."""
    if not isinstance(plan, Plan):
        raise TypeError(f"the planner returned {type(plan).__name__}, not a plan")
    if plan.t0_ns != t0_ns:
        raise AnswerError(f"plan: of the set at {plan.t0_ns} ns, not of that at {t0_ns} ns")
    points = plan.waypoints_m
    if points.ndim != 2 or points.shape[1] != 2 or not len(points) or not np.isfinite(points).all():
        raise AnswerError("plan: waypoints: not one or more finite [x, y]")
    if not 0 < plan.dt_s < math.inf:
        raise AnswerError(f"plan: dt_s: {plan.dt_s} is no time between waypoints")
