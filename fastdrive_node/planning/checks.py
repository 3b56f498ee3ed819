"""Whether a vehicle could drive a plan that the model wrote correctly. Two bands: a warning, or a refusal.

``path_motion`` measures, the limits are here. Lateral acceleration, lateral jerk and curvature have the limits of
peers: openpilot's own (warn: 3 m/s2, 5 m/s3, 0.2 1/m) and those of Autoware's trajectory validator (refuse: 9.8 m/s2,
7 m/s3, 0.35 1/m, a turning radius of 2.9 m). The other defaults lie above what recorded and simulated drives reach.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastdrive_node.errors import AnswerError, EgoStateError
from fastdrive_node.planning.path_motion import Quantity, backwards, bends, differences
from fastdrive_node.sync.compensation import shift_plan
from fastdrive_node.types import EgoState, Plan, Vehicle

COMPARED_S = 1.0  # of a plan with the one before: both the time between them, and how far the comparison reaches

JUMP_M = 3.0  # between the distance that odometry tells and the one that its speeds tell, in at most COMPARED_S


@dataclass(frozen=True)
class Band:
    """Limits of one quantity; 0 turns one off."""

    warn: float = 0.0
    refuse: float = 0.0


@dataclass(frozen=True)
class PlanLimits:
    """Limits of a plan in SI units; fields are named after the codes, ``plan.speed`` and so on."""

    speed: Band = Band(36.0, 40.0)
    start: Band = Band(6.0, 9.8)  # mean acceleration from the present velocity to the first waypoint
    acceleration: Band = Band(3.5, 9.8)  # speeding up or slowing down
    jerk: Band = Band(10.0, 25.0)  # along; braking fully at once is 19.6 m/s3 over 0.5 s
    lateral_acceleration: Band = Band(3.0, 9.8)
    lateral_jerk: Band = Band(5.0, 7.0)
    curvature: Band = Band(0.2, 0.35)
    steering: Band = Band(0.55, 0.8)  # of a bicycle model's front wheel
    steering_rate: Band = Band(1.0, 2.0)
    yaw_rate: Band = Band(0.8, 1.5)
    direction: Band = Band(0.1, 0.3)  # m against the direction of motion
    continuity: Band = Band(1.5, 10.0)  # m from the plan before, up to 1 s after t0; 10 m is full braking and more
    tolerance_m: float = 0.05  # error of a coordinate; half of the answer's last digit where that is more
    min_step_m: float = 1.0  # shorter steps have no direction and are joined
    wheel_base_m: float = Vehicle.wheel_base_m


_CHECKS = {  # code: words, unit
    "speed": ("speed", "m/s"),
    "direction": ("a way against the direction of motion", "m"),
    "start": ("acceleration from the present speed", "m/s2"),
    "acceleration": ("acceleration", "m/s2"),
    "lateral_acceleration": ("lateral acceleration", "m/s2"),
    "curvature": ("curvature", "1/m"),
    "steering": ("steering angle", "rad"),
    "yaw_rate": ("yaw rate", "rad/s"),
    "steering_rate": ("steering rate", "rad/s"),
    "lateral_jerk": ("lateral jerk", "m/s3"),
    "jerk": ("jerk", "m/s3"),
    "continuity": ("distance from the last plan", "m"),
}  # in the order of the answer where several refuse: what is plain first


def check_plan(
    waypoints_m: np.ndarray,
    dt_s: float,
    speed_mps: float,
    limits: PlanLimits | None = None,
    rounding_m: float = 0.0,
    last: Quantity | None = None,
) -> tuple[str, ...]:
    """Check a plan against the limits.

    Args:
        waypoints_m: [points, 2], x forward, y left; the first is at t0 + dt, the vehicle is at the origin at t0.
        speed_mps: the vehicle's speed at t0; negative in reverse.
        rounding_m: largest error of a coordinate by the digits of the answer.
        last: from ``LastPlan.distance``.

    Returns:
        The warnings, each "code: text".

    Raises:
        AnswerError: a coordinate is not finite, or a limit is exceeded; the reason names the waypoint and both
            figures, ``code`` is like "plan.speed".
    """
    limits = limits or PlanLimits()
    if not np.isfinite(waypoints_m).all():
        raise AnswerError("plan: a coordinate is not finite", code="plan.not_finite")
    tolerance_m = max(limits.tolerance_m, rounding_m)
    figures = {
        **differences(waypoints_m, dt_s, speed_mps, tolerance_m),
        **bends(waypoints_m, dt_s, tolerance_m, limits.min_step_m, limits.wheel_base_m),
        "direction": backwards(waypoints_m, speed_mps, tolerance_m, limits.min_step_m),
    }
    if last is not None:
        figures["continuity"] = last
    warnings = []
    for name, figure in ((name, figures[name]) for name in _CHECKS if name in figures):
        band: Band = getattr(limits, name)
        refused = _exceeds(name, figure, band.refuse)
        if refused:
            raise AnswerError(f"plan: {refused}", code=f"plan.{name}")
        warned = _exceeds(name, figure, band.warn)
        if warned:
            warnings.append(f"plan.{name}: {warned}")
    return tuple(warnings)


def _exceeds(name: str, figure: Quantity, limit: float) -> str:
    """Which waypoint exceeds the limit most; empty: none does, or the limit is off."""
    if not limit or not len(figure.values):
        return ""
    at = figure.worst()
    value, tolerance = figure.values[at], figure.tolerances[at]
    if value - tolerance <= limit:
        return ""
    words, unit = _CHECKS[name]
    by = f" (tolerance {tolerance:.2f})" if tolerance else ""
    return f"{words} of {value:.2f} {unit} at waypoint {int(figure.waypoints[at])} exceeds {limit:g} {unit}{by}"


class LastPlan:
    """The last valid plan, for comparison with the next one where odometry tells the motion between them."""

    def __init__(self) -> None:
        self._plan: Plan | None = None
        self._ego: EgoState | None = None

    def keep(self, plan: Plan, ego: EgoState) -> None:
        """``ego``: the state at the plan's t0."""
        self._plan, self._ego = plan, ego

    def distance(self, waypoints_m: np.ndarray, dt_s: float, ego: EgoState) -> Quantity | None:
        """Of a plan to the last one at the same times up to ``COMPARED_S`` after t0; None where none is known.

        A last plan that is older than ``COMPARED_S``, of another frame or of other steps is not compared, nor is one
        after which the odometry jumped: that is no fault of the plan.

        Args:
            ego: the state at t0.
        """
        plan, before = self._plan, self._ego
        if plan is None or before is None or before.stamp_ns != plan.t0_ns or plan.dt_s != dt_s:
            return None
        passed_s = (ego.stamp_ns - plan.t0_ns) * 1e-9
        moved_m = math.hypot(ego.x_m - before.x_m, ego.y_m - before.y_m)
        driven_m = passed_s * (abs(ego.speed_mps) + abs(before.speed_mps)) / 2
        if not 0 < passed_s <= COMPARED_S or abs(moved_m - driven_m) > JUMP_M:
            return None
        try:
            expected = shift_plan(plan, before, ego).waypoints_m
        except EgoStateError:
            return None
        count = min(max(round(COMPARED_S / dt_s), 1), len(expected), len(waypoints_m))
        apart = np.linalg.norm(waypoints_m[:count] - expected[:count], axis=1)
        return Quantity.of(apart, 0.0, np.arange(1, count + 1))
