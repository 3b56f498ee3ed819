"""One worker thread between the streams and the planner: the newest set wins, nothing queues. No ROS.

The executor's thread only stores what arrives. Every set ends in exactly one ``Outcome``: a plan, a refusal, or a
refusal of stage "superseded" for a set that a newer one replaced before it was planned.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from fastdrive_node.errors import EgoStateError, FastDriveError
from fastdrive_node.sync.camera_identity import InputChecks
from fastdrive_node.sync.compensation import shift_plan
from fastdrive_node.sync.frames import FrameBuffer, FrameLimits
from fastdrive_node.sync.odometry import OdometryBuffer, OdometryLimits
from fastdrive_node.sync.outcomes import (
    Outcome,
    OutcomeCounts,
    Planner,
    WaitingSet,
    WorkerLimits,
    WorkerStatus,
    check_planned,
)
from fastdrive_node.types import (
    SUPERSEDED,
    CameraFrame,
    Command,
    EgoHistory,
    EgoState,
    Plan,
    PlannerState,
    Refusal,
    VehicleSignal,
)

TICK_S = 0.05  # how often waiting sets are looked at, in wall time
log = logging.getLogger(__name__)


@dataclass
class _State:
    generation: int = 0  # of time; a jump back starts a new one
    busy: bool = False
    planning_at: float | None = None  # monotonic seconds at which the plan in progress began
    command: Command = Command.NONE
    command_ns: int | None = None
    waiting: WaitingSet | None = None


class Worker:
    """Owns the buffers and the thread that plans.

    Args:
        planner: plans one set at a time, in the worker's thread.
        frames: the frame buffer; from now on only the worker touches it.
        odometry: likewise.
        clock: the node's time in nanoseconds.
        report: called in the worker's thread with every outcome, in order.
    """

    def __init__(
        self,
        planner: Planner,
        frames: FrameBuffer,
        odometry: OdometryBuffer,
        clock: Callable[[], int],
        report: Callable[[Outcome], None],
        limits: WorkerLimits | None = None,
    ):
        self.planner = planner
        self.limits = limits or WorkerLimits()
        self._frames = frames
        self._odometry = odometry
        self.checks = InputChecks(frames.cameras)
        self._clock = clock
        self._report = report
        self._changed = threading.Condition()
        self._state, self._tally = _State(), OutcomeCounts()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="planner", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float | None = None) -> None:
        """Stop after the plan in progress, or after ``timeout_s``, for a planner may hang. Sets that still wait are not
        planned."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)
            self._thread = None

    def add_frame(self, frame: CameraFrame) -> None:
        """Raises FrameSetError for a camera that the model does not have."""
        with self._changed:
            resets = self._frames.counters.resets
            self._frames.expire(self._clock())  # so that sets depend on time alone, not on when the thread runs
            self._frames.add(frame)
            if self._frames.counters.resets != resets:
                self._state.generation += 1
            self._note_complete()
            self._changed.notify_all()

    def add_odometry(self, state: EgoState) -> None:
        """Raises EgoStateError for a value that is not finite."""
        with self._changed:
            self._odometry.add(state)
            self._changed.notify_all()

    def add_signal(self, signal: VehicleSignal) -> None:
        """Raises EgoStateError for a value that no vehicle has."""
        with self._changed:
            self._odometry.add_signal(signal)

    def set_command(self, command: Command) -> None:
        with self._changed:
            self._state.command, self._state.command_ns = command, self._clock()

    def time_jumped(self, now_ns: int) -> None:
        """The clock went back to ``now_ns``: forget everything that is later, and the plan in progress."""
        with self._changed:
            self._frames.reset(keep_until_ns=now_ns)
            self._odometry.reset(keep_until_ns=now_ns)
            self._state.generation += 1
            self._state.command, self._state.command_ns = Command.NONE, None
            self._tally.plan_ns = None
            self._note_complete()
            self._changed.notify_all()

    def configure(
        self,
        drop: float | None = None,
        frames: FrameLimits | None = None,
        odometry: OdometryLimits | None = None,
        limits: WorkerLimits | None = None,
    ) -> None:
        """Change the given values while running. Raises InputError for a drop ratio that the planner refuses."""
        with self._changed:
            if drop is not None:
                self.planner.drop = drop
            self._frames.limits = frames or self._frames.limits
            self._odometry.limits = odometry or self._odometry.limits
            self.limits = limits or self.limits

    @property
    def planning(self) -> bool:
        """Whether a plan is in progress. Where it is not, the next one is made by what ``planner`` is now."""
        return self._state.planning_at is not None  # which is set before the planner is taken

    @property
    def set_waits(self) -> bool:
        """Whether a complete set waits for the planner."""
        with self._changed:
            return self._frames.pending is not None

    def planner_state(self) -> PlannerState:
        """Of the planner, or, of one without a process of its own, ready, with the time of the plan in progress."""
        tell = getattr(self.planner, "state", None)
        if tell is not None:
            return tell()
        began = self._state.planning_at
        return PlannerState(busy_s=None if began is None else time.monotonic() - began)

    def status(self) -> WorkerStatus:
        planner = self.planner_state()
        with self._changed:
            now, state, tally = self._clock(), self._state, self._tally

            def age_s(stamp_ns: int | None) -> float | None:
                return None if stamp_ns is None else (now - stamp_ns) * 1e-9

            return WorkerStatus(
                cameras=self._frames.status(now),
                frames=replace(self._frames.counters),
                odometry_age_s=age_s(self._odometry.newest_ns),
                command=state.command,
                command_age_s=age_s(state.command_ns),
                plans=tally.plans,
                refused=tally.refused,
                busy=state.busy or self._frames.pending is not None,
                last_refusal=tally.last_refusal,
                warnings=tally.warnings,
                deadline=tally.deadline,
                plan_ms=tally.plan_ms,
                late_plans=tally.late_plans,
                camera_problems=tally.camera_problems,
                plan_age_s=age_s(tally.plan_ns),
                recent=len(tally.recent),
                recent_refusals=tally.recent_refusals(),
                planning_s=None if state.planning_at is None else time.monotonic() - state.planning_at,
                planner=planner,
            )

    def ego_now(self) -> EgoState:
        """The ego state at the node's present time. Raises EgoStateError where odometry is absent or too old."""
        with self._changed:
            return self._odometry.history(self._clock()).now

    def _note_complete(self) -> None:
        pending, waiting = self._frames.pending, self._state.waiting
        if pending is None:
            self._state.waiting = None
        elif waiting is None or waiting.frames is not pending:
            self._state.waiting = WaitingSet(pending, self._current_command(), time.monotonic())

    def _current_command(self) -> Command:
        state, limit_s = self._state, self.limits.max_command_age_s
        if state.command_ns is None:
            return Command.NONE
        too_old = limit_s > 0 and (self._clock() - state.command_ns) * 1e-9 > limit_s
        return Command.NONE if too_old else state.command

    def _run(self) -> None:
        while True:
            with self._changed:
                self._state.busy = False
                self._changed.wait_for(lambda: self._stopping or self._has_work(), timeout=TICK_S)
                if self._stopping:
                    return
                job = self._next()
                reports = self._frames.drain_reports()
                generation, self._state.busy = self._state.generation, bool(job or reports)
            for refusal in reports:
                self._publish(Outcome(refusal))
            if isinstance(job, Refusal):
                self._publish(Outcome(job))
            elif job is not None:
                self._publish(self._plan(job, generation))

    def _has_work(self) -> bool:
        return bool(self._frames.reports) or self._can_plan()

    def _can_plan(self) -> bool:
        """Whether a complete set waits, and its odometry has arrived or was waited for long enough."""
        waiting = self._state.waiting
        if waiting is None:
            return False
        waited_s = time.monotonic() - waiting.complete_at
        return self._odometry.covers(waiting.frames.t0_ns) or waited_s >= self.limits.odometry_wait_s

    def _next(self) -> WaitingSet | Refusal | None:
        now_ns = self._clock()
        self._frames.expire(now_ns)
        self._note_complete()
        if not self._can_plan():
            return None
        job, self._state.waiting = self._state.waiting, None
        taken = self._frames.take(now_ns)
        return taken if isinstance(taken, Refusal) else job

    def _plan(self, job: WaitingSet, generation: int) -> Outcome:
        start = self._state.planning_at = time.monotonic()
        history, result = self._attempt(job)
        planning_ms = (time.monotonic() - start) * 1e3
        ego = None
        with self._changed:
            self._state.planning_at = None
            if generation != self._state.generation:
                result = Refusal(job.frames.t0_ns, "time jumped back while it was planned", SUPERSEDED)
            elif isinstance(result, Plan) and history is not None:
                result, ego = self._to_publish(result, history.now)
        return Outcome(result, job.frames, history, job.command, (start - job.complete_at) * 1e3, planning_ms, ego)

    def _to_publish(self, plan: Plan, start: EgoState) -> tuple[Plan | Refusal, EgoState | None]:
        """The plan as it is published now, with the ego state at its stamp; refused where it has become too old."""
        now_ns, limit_s = self._clock(), self.limits.max_plan_age_s
        age_s = (now_ns - plan.t0_ns) * 1e-9
        if age_s > limit_s:
            reason = f"the plan is {age_s:.2f} s old when it is ready, the limit is {limit_s:.2f} s (max_plan_age_s)"
            return Refusal(plan.t0_ns, reason, "age"), None
        if not self.limits.compensate or age_s <= 0:
            return plan, None
        try:
            ego = self._odometry.history(now_ns).now
            return shift_plan(plan, start, ego), ego
        except EgoStateError as error:
            return Refusal(plan.t0_ns, f"compensate: {error}", error.stage, error.code), None

    def _attempt(self, job: WaitingSet) -> tuple[EgoHistory | None, Plan | Refusal]:
        t0_ns = job.frames.t0_ns
        history = None
        try:
            with self._changed:
                history, limits = self._odometry.history(t0_ns), self.limits.inputs
                changed = self._odometry.frame_change(t0_ns)
                told = self._frames.warnings(self._clock())
            frames, found = self.checks.check(job.frames, history, limits, changed)
            told += found
            plan = self.planner.plan(frames, history, job.command)
            check_planned(plan, t0_ns)
            return history, replace(plan, warnings=told + plan.warnings) if told else plan
        except FastDriveError as error:
            return history, Refusal(t0_ns, str(error), error.stage, error.code)
        except BaseException as error:  # one set that fails, or a library that calls exit, must not end the thread
            log.exception("planning failed")
            return history, Refusal(t0_ns, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", "internal")

    def _publish(self, outcome: Outcome) -> None:
        with self._changed:
            self._tally.add(outcome.result, self._frames.cameras, self._clock())
        try:
            self._report(outcome)
        except Exception:  # e.g. the context is shut down while a plan is published
            log.exception("reporting an outcome failed")
