"""The controller: it follows a plan's waypoints at the plan's own times.

Steering is pure pursuit (Coulter 1992) on the path through the waypoints. The speed is that of a cubic in time, fitted
to the distances along this path by least squares: waypoints are rounded (to 0.1 m in the answers of some VLAs), so
differences of neighbours would make the vehicle jerk. Distance and speed errors are fed back.

After the last waypoint's time there is nothing to follow: the vehicle brakes along the path's end.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from fastdrive_node.types import Vehicle
from fastdrive_sim.drive.types import EgoStep
from fastdrive_sim.drive.vehicle import Actuators, Control

LOOKAHEAD_S = 0.7  # of pure pursuit, times the speed
MIN_LOOKAHEAD_M = 3.0
DISTANCE_GAIN = 0.6  # 1/s^2, of the distance along the path
SPEED_GAIN = 1.6  # 1/s
MAX_ERROR_M = 3.0  # of the distance that is fed back: a plan that is far away is approached slowly
HOLD_M = 0.35  # a plan that goes no further asks the vehicle to stand
NO_PLAN_BRAKE = 2.5  # m/s^2, where no plan is in use or its time is over
DELAY_S = 0.2  # the reference is read this much ahead: dead time and lag of the actuators


@dataclass(frozen=True)
class Reference:
    """A plan prepared for tracking."""

    path: list[tuple[float, float]]  # at least two points, far apart enough to have directions
    arc: list[float]  # distance along it, of each point
    start_s: float  # time at which the plan begins
    end_s: float  # time of the last waypoint
    profile: tuple[float, float, float]  # distance = a t + b t^2 + c t^3
    stands: bool

    @classmethod
    def of_plan(cls, start: EgoStep, start_s: float, xy: np.ndarray, times_s: np.ndarray) -> Reference:
        """
        Args:
            start: the vehicle where the plan begins.
            start_s: time of ``start``.
            xy: waypoints in the world, [P, 2].
            times_s: their times [P], ascending, after ``start_s``.
        """
        points = np.concatenate([[[start.x, start.y]], xy])
        arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
        path, path_arc = _usable_path(points, start.yaw)
        fit = _fit_profile(times_s - start_s, arc[1:], start.speed)
        return cls(path, path_arc, start_s, float(times_s[-1]), fit, bool(arc[-1] < HOLD_M))

    def distance(self, time_s: float) -> tuple[float, float, float]:
        """Distance, speed and acceleration along the path at a time; the speed is 0 or more."""
        t = min(max(time_s, self.start_s), self.end_s) - self.start_s
        a, b, c = self.profile
        return t * (a + t * (b + t * c)), max(a + t * (2 * b + 3 * c * t), 0.0), 2 * b + 6 * c * t


class Tracker:
    """Follows the newest reference."""

    def __init__(self, vehicle: Vehicle | None = None, actuators: Actuators | None = None):
        self._base = (vehicle or Vehicle()).wheel_base_m
        self._limits = actuators or Actuators()
        self.reference: Reference | None = None

    def control(self, state: EgoStep, time_s: float) -> Control:
        """The command for the vehicle's state at a time."""
        reference = self.reference
        if reference is None:
            return Control(-NO_PLAN_BRAKE, state.steer)
        along = _project(reference, state)
        steer = self._steer(reference, state, along)
        if time_s >= reference.end_s or reference.stands:
            return Control(-NO_PLAN_BRAKE, steer)
        distance, speed, accel = reference.distance(time_s)
        _, later_speed, later_accel = reference.distance(time_s + DELAY_S)
        error = min(max(distance - along, -MAX_ERROR_M), MAX_ERROR_M)
        wanted = later_accel + SPEED_GAIN * (speed - state.speed) + DISTANCE_GAIN * error
        if later_speed < 0.3 and speed < 0.5 and accel <= 0.3:
            wanted = min(wanted, -1.0)  # the plan stops here: stand, do not creep
        return Control(min(max(wanted, -self._limits.max_brake), self._limits.max_accel), steer)

    def _steer(self, reference: Reference, state: EgoStep, along: float) -> float:
        reach = max(MIN_LOOKAHEAD_M, LOOKAHEAD_S * state.speed)
        x, y = _at(reference, along + reach)
        dx, dy = x - state.x, y - state.y
        left = -math.sin(state.yaw) * dx + math.cos(state.yaw) * dy
        curvature = 2 * left / max(dx * dx + dy * dy, 1.0)
        steer = math.atan(curvature * self._base)
        return min(max(steer, -self._limits.max_steer_rad), self._limits.max_steer_rad)


def _usable_path(points: np.ndarray, yaw: float) -> tuple[list[tuple[float, float]], list[float]]:
    """The points that lie a step apart and not backwards, continued straight where the plan is short."""
    kept = [points[0]]
    direction = np.array([math.cos(yaw), math.sin(yaw)])
    for point in points[1:]:
        step = point - kept[-1]
        length = float(np.linalg.norm(step))
        if length >= 0.5 and float(step @ direction) > 0:
            kept.append(point)
            direction = step / length
    kept.append(kept[-1] + 30.0 * direction)
    lengths = np.linalg.norm(np.diff(np.array(kept), axis=0), axis=1)
    return [(float(x), float(y)) for x, y in kept], [0.0, *np.cumsum(lengths).tolist()]


def _fit_profile(times: np.ndarray, arc: np.ndarray, speed: float) -> tuple[float, float, float]:
    """a, b, c of the distance a t + b t^2 + c t^3; the initial speed ``speed`` counts as much as a waypoint."""
    rows = np.stack([times, times**2, times**3], axis=1)
    weight = 0.5  # the plan may mean another initial speed than odometry has, but hardly
    rows = np.concatenate([rows, [[weight, 0.0, 0.0]]])
    a, b, c = np.linalg.lstsq(rows, np.concatenate([arc, [weight * speed]]), rcond=None)[0]
    return float(a), float(b), float(c)


def _project(reference: Reference, state: EgoStep) -> float:
    """Distance along the path of the point nearest to the vehicle."""
    best, found = math.inf, 0.0
    for (x0, y0), (x1, y1), start, end in zip(
        reference.path, reference.path[1:], reference.arc, reference.arc[1:], strict=False
    ):
        length = end - start
        dx, dy = (x1 - x0) / length, (y1 - y0) / length
        along = min(max((state.x - x0) * dx + (state.y - y0) * dy, 0.0), length)
        gap = math.hypot(x0 + along * dx - state.x, y0 + along * dy - state.y)
        if gap < best:
            best, found = gap, start + along
    return found


def _at(reference: Reference, along: float) -> tuple[float, float]:
    index = min(max(bisect_right(reference.arc, along) - 1, 0), len(reference.arc) - 2)
    (x0, y0), (x1, y1) = reference.path[index], reference.path[index + 1]
    part = (along - reference.arc[index]) / (reference.arc[index + 1] - reference.arc[index])
    return x0 + part * (x1 - x0), y0 + part * (y1 - y0)
