"""~/output/status: the operating mode, ten times a second and on change, from a thread of its own.

Neither a planner that does not return nor an executor that loads a model keeps the mode from being published. The same
thread publishes the fallback of ``on_refusal``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from rclpy.clock import ROSClock
from rclpy.lifecycle import LifecycleNode

from fastdrive_node.errors import EgoStateError
from fastdrive_node.record import mode_record
from fastdrive_node.ros.diagnostics import ERROR, MODE_LEVELS
from fastdrive_node.ros.outputs import Outputs
from fastdrive_node.ros.parameters import Settings
from fastdrive_node.ros.qos import STATUS
from fastdrive_node.sync.compensation import stop_plan
from fastdrive_node.sync.modes import Mode, ModeJudge, ModeReason, ModeStatus, View
from fastdrive_node.sync.outcomes import Outcome, WorkerStatus
from fastdrive_node.sync.worker import Worker
from fastdrive_node.types import SUPERSEDED, EgoState, Plan

STATUS_TOPIC = "~/output/status"
PERIOD_S = 0.1
NONE, EMPTY, BRAKE = "none", "empty", "brake"
log = logging.getLogger(__name__)


class StatusReporter:
    """Judges the mode and publishes it. The methods may be called in any thread."""

    def __init__(self, node: LifecycleNode, settings: Settings):
        self._node = node
        self._settings = settings
        self._judge = ModeJudge(settings.mode_limits(), self._now_s())
        self._worker: Worker | None = None
        self._outputs: Outputs | None = None
        self._last: tuple[Plan, EgoState] | None = None  # the last valid plan, and the ego state of its frame
        self._told: tuple[object, ...] = ()
        self._fallback = NONE
        self._fallback_problem = ""
        self.exchange = ""  # of the planner, see ``ros.exchange``
        self._fallback_stamp_ns = 0  # of the newest fallback
        self._mode = self._judge.judge(None, self._now_s())
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._publisher = node.create_publisher(DiagnosticStatus, STATUS_TOPIC, STATUS)
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)
        self._thread.start()

    @property
    def mode(self) -> ModeStatus:
        """As it was judged last."""
        return self._mode

    def configure(self, settings: Settings) -> None:
        with self._lock:
            self._settings, self._judge.limits = settings, settings.mode_limits()

    def lifecycle(self, label: str, text: str = "") -> None:
        """A state was reached, or "loading" begins. Ends a fault of configuring."""
        with self._lock:
            self._judge.fault(None)
            self._judge.lifecycle(label, self._now_s(), text)
            self._last = None
            self.update()

    def fault(self, code: str, text: str) -> None:
        with self._lock:
            self._judge.fault(ModeReason(code, text))
            self.update()

    def problem(self, code: str, text: str) -> None:
        """A fault in spite of which plans come; an empty text ends it."""
        with self._lock:
            self._judge.problem(code, text)

    def attach(self, worker: Worker | None, outputs: Outputs | None) -> None:
        """What is judged and what publishes; None before it is destroyed."""
        with self._lock:
            self._worker, self._outputs = worker, outputs

    def outcome(self, outcome: Outcome) -> None:
        """In the worker's thread, after the outcome was published."""
        result = outcome.result
        with self._lock:
            if isinstance(result, Plan):
                ego = outcome.ego_at_stamp
                self._last = None if ego is None else (result, ego)
            elif result.stage != SUPERSEDED and self._settings.on_refusal == EMPTY and self._outputs is not None:
                self._outputs.publish_fallback(None, None, result.t0_ns)
            self._judge.note(result, self._now_s())
            self.update(only_changes=True)

    def update(self, only_changes: bool = False) -> None:
        """Judge the mode now and publish it."""
        with self._lock:
            status = None if self._worker is None else self._worker.status()
            view = None if status is None else _view(status)
            before = (self._mode.mode, self._mode.reason.code)
            self._mode = mode = self._judge.judge(view, self._now_s())
            if before != (mode.mode, mode.reason.code):
                self._log()
            send_fallback = self._prepare_fallback(only_changes)
            told = (mode.mode, mode.reason.code, tuple(mode.cameras.items()), mode.recovering, self._fallback)
            changed, self._told = told != self._told, told
            if changed or not only_changes:
                self._publisher.publish(self._message(status))
            if changed and self._outputs is not None:
                self._outputs.publish_record(mode_record(mode, self._clock_ns(), self._fallback))
            if send_fallback is not None:  # after the status, which tells its stamp
                send_fallback()

    def destroy(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._node.destroy_publisher(self._publisher)

    def _run(self) -> None:
        while not self._stopping.wait(PERIOD_S):
            if not self._node.context.ok():
                return
            try:
                self.update()
            except Exception:  # e.g. the context is shut down while it is published
                if self._node.context.ok():
                    log.exception("publishing the status failed")

    def _log(self) -> None:
        logger, text = self._node.get_logger(), f"mode {self._mode.text}"
        if MODE_LEVELS[self._mode.mode] == ERROR or self._mode.mode is Mode.DEGRADED:
            logger.warning(text)
        else:
            logger.info(text)

    def _prepare_fallback(self, only_changes: bool) -> Callable[[], None] | None:
        """Decide the fallback and its stamp. Returns what publishes it; None: nothing now."""
        before, how = self._fallback, self._settings.on_refusal
        self._fallback, self._fallback_problem = NONE, ""
        if not self._mode.needs_fallback or self._outputs is None or how not in (EMPTY, BRAKE):
            return None
        plan = ego = None
        if how == BRAKE:
            try:
                plan, ego = self._stop()
            except EgoStateError as error:
                self._fallback_problem = str(error)
        self._fallback = EMPTY if plan is None else BRAKE
        if only_changes and self._fallback == before:
            return None
        self._fallback_stamp_ns = self._clock_ns() if plan is None else plan.stamp_ns
        return partial(self._outputs.publish_fallback, plan, ego, self._fallback_stamp_ns)

    def _stop(self) -> tuple[Plan, EgoState]:
        if self._last is None or self._worker is None:
            raise EgoStateError("brake: no plan yet")
        ego = self._worker.ego_now()
        return stop_plan(*self._last, ego, self._settings.brake_decel_mps2), ego

    def _message(self, worker: WorkerStatus | None) -> DiagnosticStatus:
        mode = self._mode
        values: dict[str, object] = {
            "mode": mode.mode.value,
            "code": mode.reason.code,
            "reason": mode.reason.text,
            "since_s": f"{self._now_s() - mode.since_s:.2f}",
            "recovering": mode.recovering,
            "fallback": self._fallback,
            "exchange": self.exchange,
        }
        if self._fallback != NONE:
            values["fallback_stamp_ns"] = self._fallback_stamp_ns
        if self._fallback_problem:
            values["fallback_problem"] = self._fallback_problem
        if worker is not None:
            values |= self._planning_values(worker)
        name = f"{self._node.get_fully_qualified_name().lstrip('/')}: status"
        pairs = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
        return DiagnosticStatus(name=name, level=MODE_LEVELS[mode.mode], message=mode.text, values=pairs)

    def _planning_values(self, worker: WorkerStatus) -> dict[str, object]:
        mode = self._mode
        values: dict[str, object] = {
            "period_s": f"{mode.period_s:.3f}",
            "planning_s": _seconds(worker.planning_s),
            "plan_age_s": _seconds(worker.plan_age_s),
            "plans": worker.plans,
            "refused": worker.refused,
            "odometry_age_s": _seconds(worker.odometry_age_s),
        }
        if self._last is not None:
            values |= {"last_t0_ns": self._last[0].t0_ns, "last_stamp_ns": self._last[0].stamp_ns}
        for camera, status in worker.cameras.items():
            name = camera.lower()
            values[f"{name}.age_s"] = _seconds(status.age_s)
            values[f"{name}.state"] = mode.cameras.get(camera, "ok")
        return values | {f"refused.{code}": count for code, count in mode.refusals.items()}

    def _now_s(self) -> float:
        """Steady: wall time, or the simulated time where the node follows /clock, so that a pause is no fault."""
        clock = self._node.get_clock()
        simulated = isinstance(clock, ROSClock) and clock.ros_time_is_active
        return clock.now().nanoseconds * 1e-9 if simulated else time.monotonic()

    def _clock_ns(self) -> int:
        return self._node.get_clock().now().nanoseconds


def _view(status: WorkerStatus) -> View:
    return View(status.cameras, status.planning_s, status.camera_problems, status.frames.sets, status.planner)


def _seconds(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
