"""The operating mode: what a consumer of plans may rely on, with a reason code. Judged by time. No ROS.

A mode is judged from outcomes *and* from their absence: where no camera sends, or the planner does not return, no frame
set ends and no outcome exists. Times are seconds of a steady clock.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from statistics import median

from fastdrive_node.sync.frames import CameraStatus
from fastdrive_node.types import JUMP_BACK_S, SUPERSEDED, Plan, PlannerState, Refusal

DEFAULT_PERIOD_S = 0.5  # between sets, until stamps or plans tell
MAX_PAUSE_S = 60.0  # between two judgements; a longer one is a clock that has jumped
LATE_FRAMES, LATE_WINDOW_S = 2, 1.0  # a camera with so many late frames within this time is late
INTERVALS = 5  # between the last plans, of which the median is the plan period


class Mode(str, Enum):
    NOMINAL = "nominal"
    DEGRADED = "degraded"  # plans come, with faults of named cameras
    REFUSING = "refusing"  # no plans come
    STARTING = "starting"  # a model is loaded, or no plan has been made since activation
    INACTIVE = "inactive"  # nobody activated the node
    FAULT = "fault"  # the node cannot plan until somebody acts


# Codes of a mode's reason, beside those of refusals.
NO_IMAGES = "no_images"  # too few cameras send for any set, or none does
NO_SET = "no_set"  # images come and none of them make a set
BUSY = "planner_busy"  # the planner has not returned for longer than plans take
DEADLINE = "planning_deadline"  # nor within the planning deadline
NO_PLAN = "no_plan"  # none of these, and no plan comes
CAMERAS = "cameras"  # of degraded, as are the codes of warnings of the inputs
PARAMETER = "parameter"  # likewise: a change was accepted and could not be applied
SAME_NAME = "node_name"  # likewise: another node of this name publishes on the same topics
LOADING = "loading"  # of starting
CONFIGURE = "configure"  # of fault
PLANNER_DOWN = "planner_down"  # of fault: its process ended too often
PLANNER_RESTARTING = "planner_restarting"  # its process hung or ended, and is started again


_INPUTS = ("image.", "frames.", "odometry.")  # codes of their warnings begin so


@dataclass(frozen=True)
class ModeLimits:
    """Times in seconds."""

    silence_periods: float = 3.0  # plan periods without a plan, until the node is refusing
    silence_min_s: float = 0.3  # whatever the period is
    silence_max_s: float = 5.0
    planning_deadline_s: float = 2.0  # of one plan
    start_s: float = 5.0  # after activation, until starting without a plan is refusing
    refusal_s: float = 0.3  # after a single refusal without a plan, until the node is refusing
    refusals: int = 2  # in a row, likewise
    recover_plans: int = 3  # in a row, until the node has recovered


@dataclass(frozen=True)
class ModeReason:
    """Why a mode is as it is: a code for machines, a line for people."""

    code: str = ""
    text: str = ""


@dataclass(frozen=True)
class View:
    """What the streams and the planner look like at one instant."""

    cameras: Mapping[str, CameraStatus]
    planning_s: float | None = None  # how long the plan in progress has taken; None: the planner is idle
    camera_problems: Mapping[str, str] = field(default_factory=dict)  # by camera: "frozen", "dark", ...
    sets: int = 0  # complete ones since activation
    planner: PlannerState = field(default_factory=PlannerState)


@dataclass(frozen=True)
class ModeStatus:
    """The mode with its reason."""

    mode: Mode
    reason: ModeReason = ModeReason()
    since_s: float = 0.0  # the steady time at which the mode began
    cameras: Mapping[str, str] = field(default_factory=dict)  # faulty ones: "missing", "late", "frozen", "dark"
    recovering: bool = False  # plans come again, fewer than ``recover_plans`` so far
    period_s: float = DEFAULT_PERIOD_S  # expected between two plans
    refusals: Mapping[str, int] = field(default_factory=dict)  # since activation, by code

    @property
    def text(self) -> str:
        """One line: mode, code and reason."""
        words = [self.mode.value, *filter(None, (self.reason.code, self.reason.text))]
        return ": ".join(words) + (" (recovering)" if self.recovering else "")

    @property
    def needs_fallback(self) -> bool:
        """Whether a consumer gets no plan, though the node is active or should be."""
        return self.mode in (Mode.REFUSING, Mode.FAULT) and not self.recovering


def code_of(refusal: Refusal) -> str:
    """The refusal's code; its stage where it has none."""
    return refusal.code or refusal.stage


class _Arrivals:
    """When each camera last sent, and at what period. By arrival: stamps may be of a wrong clock."""

    def __init__(self) -> None:
        self._received: dict[str, int] = {}
        self._late: dict[str, int] = {}
        self._late_at_s: dict[str, deque[float]] = {}  # of the last late frames
        self.at_s: dict[str, float] = {}
        self.period_s: dict[str, float] = {}

    def update(self, cameras: Mapping[str, CameraStatus], now_s: float) -> None:
        for camera, status in cameras.items():
            if status.received != self._received.get(camera, 0):
                self._received[camera], self.at_s[camera] = status.received, now_s
            times = self._late_at_s.setdefault(camera, deque(maxlen=LATE_FRAMES))
            times.extend([now_s] * min(status.late - self._late.get(camera, 0), LATE_FRAMES))
            self._late[camera] = status.late
            if status.rate_hz > 0:
                self.period_s[camera] = 1 / status.rate_hz

    def is_late(self, camera: str, now_s: float) -> bool:
        times = self._late_at_s[camera]
        return len(times) == LATE_FRAMES and now_s - times[0] < LATE_WINDOW_S


class ModeJudge:
    """Holds what the mode depends on. Not thread-safe: the caller holds a lock.

    ``lifecycle``, ``fault`` and ``note`` tell what happened; ``judge`` gives the mode at an instant, and is called
    regularly: it also samples what the streams do.
    """

    def __init__(self, limits: ModeLimits | None = None, now_s: float = 0.0):
        self.limits = limits or ModeLimits()
        self._active = False
        self._idle = ModeStatus(Mode.INACTIVE, ModeReason("unconfigured", "not configured"), now_s)
        self._fault: ModeReason | None = None
        self._problems: dict[str, str] = {}  # text by code
        self._status = self._idle
        self._reset(now_s)

    def _reset(self, now_s: float) -> None:
        self._judged_s = now_s
        self._arrivals = _Arrivals()
        self._began_s = now_s
        self._plan_s: float | None = None
        self._plan_mode = ""
        self._warnings: tuple[str, ...] = ()  # of the last plan
        self._intervals: deque[float] = deque(maxlen=INTERVALS)
        self._refusal: Refusal | None = None  # the last outcome, where it was one
        self._refusal_s = now_s  # of the first in a row
        self._outcome_s = now_s
        self._gap = False  # no plan was expected to take as long as the present pause
        self._in_row = 0  # refusals
        self._good = 0  # plans in a row
        self._clean = 0  # plans in a row without any fault
        self._refusals: Counter[str] = Counter()

    def lifecycle(self, label: str, now_s: float, text: str = "") -> None:
        """The lifecycle state: "active", or another; "loading" while a model is loaded."""
        self._active = label == "active"
        self._reset(now_s)
        mode = Mode.STARTING if label == LOADING else Mode.INACTIVE
        self._idle = ModeStatus(mode, ModeReason("inactive" if self._active else label, text), now_s)

    def fault(self, reason: ModeReason | None) -> None:
        """A fault that ends planning, until it is None again."""
        self._fault = reason

    def problem(self, code: str, text: str) -> None:
        """A fault in spite of which plans come; an empty text ends it."""
        self._problems.pop(code, None)
        if text:
            self._problems[code] = text

    def note(self, result: Plan | Refusal, now_s: float) -> None:
        """The outcome of a frame set. Superseded sets count neither as plans nor as refusals."""
        if isinstance(result, Plan):
            if self._plan_s is not None and self._refusal is None and not self._gap:
                self._intervals.append(now_s - self._plan_s)
            self._plan_s, self._plan_mode, self._refusal, self._in_row = now_s, result.mode, None, 0
            self._outcome_s, self._gap = now_s, False
            self._good += 1
            self._clean += 1
            self._warnings = result.warnings
        elif result.stage != SUPERSEDED:
            if self._refusal is None:
                self._refusal_s = now_s
            self._refusal, self._good, self._clean = result, 0, 0
            self._in_row += 1
            self._outcome_s = now_s
            self._refusals[code_of(result)] += 1

    def judge(self, view: View | None, now_s: float) -> ModeStatus:
        """The mode at ``now_s``; ``view`` is None where no worker runs."""
        if not -JUMP_BACK_S < now_s - self._judged_s < MAX_PAUSE_S:
            self._reset(now_s)  # a simulated clock began or went back
        self._judged_s = now_s
        found = self._judge(view, now_s)
        before = self._status
        since_s = before.since_s if found.mode == before.mode else now_s
        self._status = replace(found, since_s=since_s, refusals=dict(self._refusals))
        return self._status

    def _judge(self, view: View | None, now_s: float) -> ModeStatus:
        if self._fault is not None:
            return ModeStatus(Mode.FAULT, self._fault)
        if not self._active or view is None:
            return self._idle
        if (unready := self._unready(view.planner, now_s)) is not None:
            return unready
        self._arrivals.update(view.cameras, now_s)
        period_s = self._period_s()
        cameras = self._faulty(view, period_s, now_s)
        base = ModeStatus(Mode.NOMINAL, cameras=cameras, period_s=period_s)
        stopped = self._stopped(view, cameras, period_s, now_s)
        if stopped is not None:
            self._good = self._clean = 0
            self._gap = self._gap or stopped.code != BUSY
            starts = self._plan_s is None and self._refusal is None and now_s - self._began_s <= self.limits.start_s
            return replace(base, mode=Mode.STARTING if starts else Mode.REFUSING, reason=stopped)
        if self._status.mode in (Mode.REFUSING, Mode.FAULT) and self._good < self.limits.recover_plans:
            return replace(base, mode=Mode.REFUSING, reason=self._status.reason, recovering=self._good > 0)
        return self._planning(base)

    def _unready(self, planner: PlannerState, now_s: float) -> ModeStatus | None:
        """The mode while the planner's process cannot plan."""
        if planner.phase == "ready":
            return None
        if planner.phase == "down":
            return ModeStatus(Mode.FAULT, ModeReason(PLANNER_DOWN, planner.reason))
        self._good = self._clean = 0
        self._gap = True
        if planner.phase == "restarting":
            return ModeStatus(Mode.REFUSING, ModeReason(PLANNER_RESTARTING, planner.reason))
        self._began_s, self._refusal, self._in_row = now_s, None, 0
        return ModeStatus(Mode.STARTING, ModeReason(LOADING, planner.reason or "the model is loaded"))

    def _planning(self, base: ModeStatus) -> ModeStatus:
        """Plans come: nominal or degraded."""
        for code, text in self._problems.items():
            return replace(base, mode=Mode.DEGRADED, reason=ModeReason(code, text))
        degraded = self._plan_mode if self._plan_mode not in ("", Mode.NOMINAL.value) else ""
        warned = "; ".join(self._warnings)
        inputs = [code for line in self._warnings if (code := line.partition(":")[0]).startswith(_INPUTS)]
        if degraded or base.cameras or inputs:
            self._clean = 0
            listed = ", ".join(f"{camera} {what}" for camera, what in base.cameras.items())
            text = "; ".join(filter(None, (listed or degraded.partition(": ")[2], warned)))
            code = CAMERAS if degraded or base.cameras else inputs[0]
            return replace(base, mode=Mode.DEGRADED, reason=ModeReason(code, text))
        before = self._status
        lasts = before.mode is Mode.DEGRADED and before.reason.code not in (PARAMETER, SAME_NAME)
        if lasts and self._clean < self.limits.recover_plans:
            return replace(base, mode=Mode.DEGRADED, reason=self._status.reason, recovering=True)
        return replace(base, reason=ModeReason(text=warned))  # of the plan itself

    def _period_s(self) -> float:
        """Expected between two plans: that of the last plans, or that of the cameras before there are any."""
        if self._intervals:
            return median(self._intervals)
        periods = self._arrivals.period_s.values()
        return median(periods) if periods else DEFAULT_PERIOD_S

    def _silence_s(self, period_s: float) -> float:
        limits = self.limits
        return min(max(limits.silence_periods * period_s, limits.silence_min_s), limits.silence_max_s)

    def _faulty(self, view: View, period_s: float, now_s: float) -> dict[str, str]:
        """Cameras that send nothing, that send too late, and those whose images are none."""
        found = {}
        for camera in view.cameras:
            at_s = self._arrivals.at_s.get(camera)
            limit_s = self._silence_s(self._arrivals.period_s.get(camera, period_s))
            if now_s - (self._began_s if at_s is None else at_s) > limit_s:
                found[camera] = "missing"
            elif self._arrivals.is_late(camera, now_s):
                found[camera] = "late"
            elif camera in view.camera_problems:
                found[camera] = view.camera_problems[camera]
        return found

    def _stopped(self, view: View, cameras: Mapping[str, str], period_s: float, now_s: float) -> ModeReason | None:
        """Why no plan comes; None while plans come."""
        limits = self.limits
        planning_s = view.planning_s or 0.0
        if planning_s > limits.planning_deadline_s:
            return ModeReason(
                DEADLINE, f"a plan takes {planning_s:.1f} s, the limit is {limits.planning_deadline_s:.1f} s"
            )
        limit_s = self._silence_s(period_s)
        silent_s = now_s - (self._began_s if self._plan_s is None else self._plan_s)
        if self._refusal is not None and now_s - self._outcome_s <= limit_s:
            lasts = self._in_row >= limits.refusals or now_s - self._refusal_s > limits.refusal_s
            if self._plan_s is None or lasts or silent_s > limit_s:
                return ModeReason(code_of(self._refusal), self._refusal.reason)
            return None
        blind = view.planning_s is None and list(cameras.values()) == ["missing"] * len(view.cameras)
        if self._plan_s is not None and silent_s <= limit_s and not blind:
            return None
        return self._silence(view, cameras, planning_s, silent_s)

    def _silence(self, view: View, cameras: Mapping[str, str], planning_s: float, silent_s: float) -> ModeReason:
        missing = [camera for camera, what in cameras.items() if what == "missing"]
        if planning_s > silent_s / 2:
            return ModeReason(BUSY, f"the planner has been busy for {planning_s:.1f} s")
        if missing:
            names = "any camera" if len(missing) == len(view.cameras) else ", ".join(missing)
            return ModeReason(NO_IMAGES, f"no image of {names}; no plan for {silent_s:.1f} s")
        if not self._arrivals.at_s:
            return ModeReason(NO_IMAGES, "no image yet")
        text = "images come, but no complete frame set" if not planning_s else "no plan"
        return ModeReason(NO_SET if not planning_s else NO_PLAN, f"{text} for {silent_s:.1f} s")
