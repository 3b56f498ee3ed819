"""Odometry to the ego history at t0. No ROS.

States between two samples are interpolated; outside of the samples they are extrapolated for a short time at constant
speed and yaw rate. Where the vehicle has just started the history is shorter; states are never invented.
"""

from __future__ import annotations

import logging
import math
from bisect import bisect_left
from dataclasses import dataclass, replace

from fastdrive_node.errors import EgoStateError
from fastdrive_node.geometry import wrap_angle
from fastdrive_node.sync.health import Notice
from fastdrive_node.types import JUMP_BACK_S, EgoHistory, EgoState, Vehicle, VehicleSignal

log = logging.getLogger(__name__)
SIGNAL_LIMITS = {"steer_rad": 1.6, "accel_mps2": 50.0, "accel_y_mps2": 50.0}  # magnitudes that a vehicle may have
ACCEL_WINDOW_S = 0.5  # the acceleration is the mean over this time, as in the training data


@dataclass(frozen=True)
class OdometryLimits:
    """Times in seconds."""

    max_age_s: float = 0.2  # how far a state may lie outside of the samples
    max_gap_s: float = 1.0  # between samples that are interpolated


class OdometryBuffer:
    """The last seconds of odometry. Not thread-safe: the caller holds a lock."""

    def __init__(
        self,
        steps: int = 6,
        interval_s: float = 0.5,
        limits: OdometryLimits | None = None,
        wheel_base_m: float = Vehicle.wheel_base_m,
    ):
        self.steps = steps
        self.interval_s = interval_s
        self.wheel_base_m = wheel_base_m
        self.limits = limits or OdometryLimits()
        self._states: list[EgoState] = []
        self._signals: list[VehicleSignal] = []
        self._frame_change = Notice()

    @property
    def newest_ns(self) -> int | None:
        return self._states[-1].stamp_ns if self._states else None

    def add(self, state: EgoState) -> None:
        """Store a state. Late ones are ignored; a jump back in time or another frame forgets what came before.

        Raises EgoStateError for a state with a number that is not finite.
        """
        values = (state.x_m, state.y_m, state.z_m, state.yaw_rad, state.speed_mps, state.yaw_rate_radps)
        if not all(map(math.isfinite, values)):
            raise EgoStateError("odometry: a value is not finite; the message is ignored")
        if self._states and _frames(state) != _frames(self._states[-1]):
            self._change_frame(state)
        if self._states and state.stamp_ns <= self._states[-1].stamp_ns:
            if self._states[-1].stamp_ns - state.stamp_ns < JUMP_BACK_S * 1e9:
                return
            self.reset()
        self._states.append(state)
        horizon_ns = state.stamp_ns - self._horizon_ns
        while self._states[0].stamp_ns < horizon_ns:
            self._states.pop(0)

    def frame_change(self, t0_ns: int) -> str:
        """That the frames of the messages changed near ``t0_ns``; empty: they did not."""
        return self._frame_change.at(t0_ns)

    def _change_frame(self, state: EgoState) -> None:
        before, told = self._states[-1], self._frame_change.at(state.stamp_ns)
        name = "frame_id" if state.frame != before.frame else "child_frame_id"
        now, old = (_frames(each)[name == "child_frame_id"] for each in (state, before))
        text = f"{name} {now!r} after {old!r}: earlier states are forgotten; is there a second publisher?"
        self._frame_change.set(text, state.stamp_ns)
        if not told:
            log.warning("odometry: %s", text)
        self.reset()

    def add_signal(self, signal: VehicleSignal) -> None:
        """Store steering or acceleration; it goes into the states that are at most ``max_age_s`` from it.

        Raises EgoStateError for a number that is not finite or that no vehicle has.
        """
        for name, limit in SIGNAL_LIMITS.items():
            value = getattr(signal, name)
            if value is not None and not abs(value) <= limit:  # not for NaN either
                raise EgoStateError(f"{name}: {value} is not within {limit:g}; the message is ignored")
        if self._signals and self._signals[-1].stamp_ns - signal.stamp_ns >= JUMP_BACK_S * 1e9:
            self._signals = []
        self._signals.append(signal)
        horizon_ns = signal.stamp_ns - self._horizon_ns
        self._signals = [each for each in self._signals if each.stamp_ns >= horizon_ns]

    @property
    def _horizon_ns(self) -> int:
        return round(((self.steps + 2) * self.interval_s + self.limits.max_gap_s) * 1e9)

    def _with_signals(self, state: EgoState) -> EgoState:
        """The state with the nearest value of each signal, where one is near enough."""
        reach_ns, told = self.limits.max_age_s * 1e9, {}
        for signal in sorted(self._signals, key=lambda each: -abs(each.stamp_ns - state.stamp_ns)):
            if abs(signal.stamp_ns - state.stamp_ns) <= reach_ns:  # nearer ones come later and win
                told |= {name: getattr(signal, name) for name in SIGNAL_LIMITS if getattr(signal, name) is not None}
        return replace(state, **told, accel_measured=state.accel_measured or "accel_mps2" in told) if told else state

    def covers(self, stamp_ns: int) -> bool:
        """Whether later odometry could not change the state at ``stamp_ns``."""
        return bool(self._states) and self._states[-1].stamp_ns >= stamp_ns

    def reset(self, keep_until_ns: int | None = None) -> None:
        """Forget the past after a jump back in time; states just before ``keep_until_ns`` stay."""
        if keep_until_ns is None:
            self._states, self._signals = [], []
            return
        oldest_ns = keep_until_ns - JUMP_BACK_S * 1e9
        self._states = [state for state in self._states if oldest_ns <= state.stamp_ns <= keep_until_ns]
        self._signals = [signal for signal in self._signals if oldest_ns <= signal.stamp_ns <= keep_until_ns]

    def history(self, t0_ns: int) -> EgoHistory:
        """States at t0, t0 - dt, ... (newest first), at most ``steps`` + 1 of them.

        Raises EgoStateError where there is no odometry near enough to t0.
        """
        if not self._states:
            raise EgoStateError("odometry: no message yet; is ~/input/odometry remapped to a topic that is published?")
        states = []
        for step in range(self.steps + 1):
            state = self._at(t0_ns - round(step * self.interval_s * 1e9))
            if state is None:
                break
            states.append(self._with_signals(state))
        if not states:
            raise EgoStateError(self._uncovered(t0_ns))
        return EgoHistory(tuple(states), self.interval_s, self.wheel_base_m)

    def _uncovered(self, t0_ns: int) -> str:
        limit = f"the limit is {self.limits.max_age_s:.2f} s (max_odometry_age_s)"
        after_s = (t0_ns - self._states[-1].stamp_ns) * 1e-9
        before_s = (self._states[0].stamp_ns - t0_ns) * 1e-9
        if after_s > 0:
            return f"odometry: the newest is {after_s:.2f} s before t0, {limit}"
        if before_s > 0:
            return f"odometry: the oldest is {before_s:.2f} s after t0, {limit}"
        return f"odometry: a gap of more than {self.limits.max_gap_s:.2f} s around t0"

    def _at(self, stamp_ns: int) -> EgoState | None:
        state = self._motion_at(stamp_ns)
        if state is None or state.accel_measured:
            return state
        first_ns = max(stamp_ns - round(ACCEL_WINDOW_S * 1e9), self._states[0].stamp_ns)
        before = self._motion_at(first_ns) if first_ns < stamp_ns else None
        if before is None or first_ns > stamp_ns - 1_000_000:
            return state
        accel = (state.speed_mps - before.speed_mps) / ((stamp_ns - first_ns) * 1e-9)
        return replace(state, accel_mps2=accel)

    def _motion_at(self, stamp_ns: int) -> EgoState | None:
        index = bisect_left(self._states, stamp_ns, key=lambda state: state.stamp_ns)
        if index < len(self._states) and self._states[index].stamp_ns == stamp_ns:
            return self._states[index]
        if index == 0:
            return self._extrapolate(self._states[0], stamp_ns)
        if index == len(self._states):
            return self._extrapolate(self._states[-1], stamp_ns)
        before, after = self._states[index - 1], self._states[index]
        if after.stamp_ns - before.stamp_ns > self.limits.max_gap_s * 1e9:
            return None
        return _interpolate(before, after, stamp_ns)

    def _extrapolate(self, state: EgoState, stamp_ns: int) -> EgoState | None:
        dt = (stamp_ns - state.stamp_ns) * 1e-9
        if abs(dt) > self.limits.max_age_s:
            return None
        yaw = state.yaw_rad + state.yaw_rate_radps * dt
        middle = state.yaw_rad + state.yaw_rate_radps * dt / 2
        return replace(
            state,
            stamp_ns=stamp_ns,
            x_m=state.x_m + state.speed_mps * math.cos(middle) * dt,
            y_m=state.y_m + state.speed_mps * math.sin(middle) * dt,
            yaw_rad=wrap_angle(yaw),
        )


def _frames(state: EgoState) -> tuple[str, str]:
    return state.frame, state.child_frame


def _interpolate(before: EgoState, after: EgoState, stamp_ns: int) -> EgoState:
    fraction = (stamp_ns - before.stamp_ns) / (after.stamp_ns - before.stamp_ns)

    def between(a: float, b: float) -> float:
        return a + fraction * (b - a)

    def optional(name: str) -> float | None:
        a, b = getattr(before, name), getattr(after, name)
        return None if a is None or b is None else between(a, b)

    measured = before.accel_measured and after.accel_measured
    turn = wrap_angle(after.yaw_rad - before.yaw_rad)
    return replace(
        before,
        stamp_ns=stamp_ns,
        x_m=between(before.x_m, after.x_m),
        y_m=between(before.y_m, after.y_m),
        z_m=between(before.z_m, after.z_m),
        yaw_rad=wrap_angle(before.yaw_rad + fraction * turn),
        accel_mps2=between(before.accel_mps2, after.accel_mps2) if measured else 0.0,  # then set by _at
        accel_measured=measured,
        speed_mps=between(before.speed_mps, after.speed_mps),
        yaw_rate_radps=between(before.yaw_rate_radps, after.yaw_rate_radps),
        accel_y_mps2=optional("accel_y_mps2"),
        speed_y_mps=optional("speed_y_mps"),
        steer_rad=optional("steer_rad"),
    )
