"""Times, rate and kept tokens of the last plans, over a sliding window of the node's time. No ROS."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from fastdrive_node.sync.outcomes import Outcome
from fastdrive_node.types import KeptTokens, Plan

MAX_PLANS = 2000  # that the window holds, whatever its length
RATE_WINDOW_S = 5.0  # of the plan rate, which is to tell a change soon
RATE_AFTER_S = 1.0  # after the first plan there is a rate


@dataclass(frozen=True)
class Percentiles:
    """In milliseconds; values that were measured (nearest rank)."""

    p50: float
    p99: float


@dataclass(frozen=True)
class Statistics:
    """What the plans of the window were like."""

    plans: int = 0  # in the window
    window_s: float = 0.0
    rate_hz: float | None = None  # plans a second, of the last ``RATE_WINDOW_S``; None: too early to tell
    # By name: "latency" from t0, the oldest exposure, to publishing, "planning", "wait", and the stages of the planner.
    times_ms: Mapping[str, Percentiles] = field(default_factory=dict)
    kept_tokens: Mapping[str, int] = field(default_factory=dict)  # of the last plan, by camera
    tokens: Mapping[str, int] = field(default_factory=dict)  # before pruning, by camera


class PlanStatistics:
    """Collects outcomes. ``note`` and ``snapshot`` may be called in different threads.

    Args:
        window_s: length of the window in seconds; may be set at any time.
    """

    def __init__(self, window_s: float = 30.0):
        self.window_s = window_s
        self._plans: deque[tuple[int, dict[str, float]]] = deque(maxlen=MAX_PLANS)  # time and times of each
        self._cameras: tuple[str, ...] = ()
        self._kept: KeptTokens | None = None
        self._lock = threading.Lock()

    def note(self, outcome: Outcome, now_ns: int) -> None:
        """An outcome that is published at ``now_ns``. A refusal has no part in the figures."""
        plan = outcome.result
        if not isinstance(plan, Plan):
            return
        times = {
            "latency": (now_ns - plan.t0_ns) * 1e-6,
            "planning": outcome.planning_ms,
            "wait": outcome.waited_ms,
            **plan.stage_ms,
        }
        with self._lock:
            if self._plans and now_ns < self._plans[-1][0]:
                self._plans.clear()  # the clock went back
            self._plans.append((now_ns, times))
            self._kept = plan.kept
            if outcome.frames is not None:
                self._cameras = outcome.frames.cameras

    def reset(self) -> None:
        with self._lock:
            self._plans.clear()
            self._kept = None

    def snapshot(self, now_ns: int) -> Statistics:
        """The figures at ``now_ns``, the node's time in nanoseconds."""
        with self._lock:
            limit_ns = now_ns - round(self.window_s * 1e9)
            recent = [(at_ns, times) for at_ns, times in self._plans if limit_ns <= at_ns <= now_ns]
            rate_hz = _rate_hz([at_ns for at_ns, _ in self._plans], now_ns)
            kept, cameras = self._kept, self._cameras
        columns: dict[str, list[float]] = {}
        for _, times in recent:
            for name, value in times.items():
                columns.setdefault(name, []).append(value)
        masks = {} if kept is None else dict(zip(cameras, kept.masks(), strict=False))
        return Statistics(
            len(recent),
            self.window_s,
            rate_hz,
            {name: _percentiles(values) for name, values in columns.items()},
            {camera: int(mask.sum()) for camera, mask in masks.items()},
            {camera: mask.size for camera, mask in masks.items()},
        )


def _percentiles(values: list[float]) -> Percentiles:
    ranked = sorted(values)
    p50, p99 = (ranked[-(-len(ranked) * percent // 100) - 1] for percent in (50, 99))
    return Percentiles(p50, p99)


def _rate_hz(times_ns: list[int], now_ns: int) -> float | None:
    """Plans a second. A pause counts as soon as it is longer than the mean interval, so that silence lowers the rate
    and a steady planner has its exact one."""
    first = next((index for index, at_ns in enumerate(times_ns) if at_ns >= now_ns - RATE_WINDOW_S * 1e9), None)
    first = len(times_ns) - 1 if first is None else max(first - 1, 0)
    if not times_ns or now_ns - times_ns[0] < RATE_AFTER_S * 1e9:  # or the clock went back
        return None
    intervals = len(times_ns) - 1 - first
    since_s = (now_ns - times_ns[first]) * 1e-9
    rate_hz = (intervals + 1) / since_s
    span_s = (times_ns[-1] - times_ns[first]) * 1e-9
    return min(rate_hz, intervals / span_s) if intervals and span_s > 0 else rate_hz
