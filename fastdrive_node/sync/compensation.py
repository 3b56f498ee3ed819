"""Plans moved on by odometry: to the time of publishing, or to a stop along the last path. No ROS."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fastdrive_node.errors import EgoStateError
from fastdrive_node.geometry import to_parent_frame, wrap_angle
from fastdrive_node.types import EgoState, Plan

BRAKE_MODE = "fallback: brake"  # Plan.mode of a stop along the last path
MAX_OFFSET_M = 3.0  # of the vehicle from the last path; farther away the path is of no use
STANDING_MPS = 0.1
MAX_STOP_POINTS = 200


def shift_plan(plan: Plan, start: EgoState, now: EgoState) -> Plan:
    """The part of a plan that is left at ``now``, in the ego frame of ``now``: its first point is at ``now`` + dt.

    Positions between the points are those of a cubic spline (Catmull-Rom) in time. The last point is the last that
    lies within the plan, so that fewer are left.

    Args:
        start: ego state at t0.
        now: ego state at the time of publishing.

    Raises:
        EgoStateError: the two states are of different frames, or nothing of the plan is left.
    """
    passed_s = (now.stamp_ns - plan.t0_ns) * 1e-9
    points = np.vstack([np.zeros(2), plan.waypoints_m])
    left = int(np.floor(len(plan.waypoints_m) - passed_s / plan.dt_s + 1e-9))
    if left < 1:
        raise EgoStateError(f"odometry: the plan ended before it could be published, {passed_s:.2f} s after t0")
    steps = passed_s / plan.dt_s + np.arange(1, left + 1)  # in units of dt

    def at(values: np.ndarray) -> np.ndarray:
        return np.interp(steps, np.arange(1, len(points)), values)

    headings = plan.headings_rad
    if headings is not None:
        headings = wrap_angle(at(np.unwrap(headings)) + start.yaw_rad - now.yaw_rad)
    return replace(
        plan,
        waypoints_m=_to_frame_of(now, _in_fixed_frame(_spline(points, steps), start, now)),
        headings_rad=headings,
        speeds_mps=None if plan.speeds_mps is None else at(plan.speeds_mps),
        shifted_ns=now.stamp_ns,
    )


def stop_plan(plan: Plan, start: EgoState, now: EgoState, decel_mps2: float) -> Plan:
    """A stop along the path of the last valid plan, from the present position and speed.

    The vehicle travels s(t) = v t - a t^2 / 2 along the path from the point nearest to it, and stands from t = v / a
    on. Beyond its end the path goes on straight. A vehicle that stands, or drives backwards, gets one point: where it
    is.

    Args:
        plan: the last valid plan.
        start: ego state in whose frame its waypoints are.
        now: the present ego state.
        decel_mps2: a.

    Raises:
        EgoStateError: the two states are of different frames, or the vehicle is too far from the path.
    """
    points = np.vstack([np.zeros(2), plan.waypoints_m])
    path = _to_frame_of(now, _in_fixed_frame(points, start, now))
    speed = now.speed_mps
    stop_s = max(speed, 0.0) / decel_mps2
    count = int(min(max(np.ceil(stop_s / plan.dt_s), 1), MAX_STOP_POINTS))
    times = np.minimum(plan.dt_s * np.arange(1, count + 1), stop_s)
    travelled = speed * times - decel_mps2 * times**2 / 2
    waypoints = np.zeros((1, 2)) if speed < STANDING_MPS else _along(path, travelled)
    return Plan(now.stamp_ns, waypoints, plan.dt_s, "", BRAKE_MODE)


def _in_fixed_frame(points: np.ndarray, start: EgoState, now: EgoState) -> np.ndarray:
    if start.frame != now.frame:
        raise EgoStateError(f"odometry: its frame was {start.frame} at t0 and is {now.frame} now")
    return to_parent_frame(points, start.x_m, start.y_m, start.yaw_rad)


def _to_frame_of(ego: EgoState, points: np.ndarray) -> np.ndarray:
    return to_parent_frame(points - np.array([ego.x_m, ego.y_m]), 0.0, 0.0, -ego.yaw_rad)


def _spline(points: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Cubic Hermite spline through points [n, 2] at 0, 1, 2, ...; tangents by ``np.gradient``."""
    tangents = np.gradient(points, axis=0, edge_order=2 if len(points) > 2 else 1)
    index = np.clip(np.floor(at).astype(int), 0, len(points) - 2)
    t = (at - index)[:, None]
    before, after = points[index], points[index + 1]
    return (
        before * (2 * t**3 - 3 * t**2 + 1)
        + tangents[index] * (t**3 - 2 * t**2 + t)
        + after * (3 * t**2 - 2 * t**3)
        + tangents[index + 1] * (t**3 - t**2)
    )


def _along(path: np.ndarray, distances_m: np.ndarray) -> np.ndarray:
    """Points of a path, in the frame of a vehicle at the origin, at distances from the vehicle on.

    The vehicle's offset from the path fades out over the way to the stop.
    """
    steps = np.diff(path, axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    moving = lengths > 1e-6
    if not moving.any():  # the plan was to stand: straight on
        return np.stack([distances_m, np.zeros_like(distances_m)], axis=1)
    steps, lengths, starts = steps[moving], lengths[moving], path[:-1][moving]
    fractions = np.clip(-(starts * steps).sum(1) / lengths**2, 0.0, 1.0)
    nearest = starts + fractions[:, None] * steps
    best = int(np.argmin(np.linalg.norm(nearest, axis=1)))
    offset = nearest[best]
    if np.linalg.norm(offset) > MAX_OFFSET_M:
        raise EgoStateError(f"odometry: the vehicle is {np.linalg.norm(offset):.1f} m from the last path")
    ends = np.cumsum(lengths)
    begin = ends[best] - lengths[best] * (1 - fractions[best])
    total = begin + distances_m
    index = np.minimum(np.searchsorted(ends, total), len(ends) - 1)
    places = starts[index] + steps[index] * ((total - ends[index] + lengths[index]) / lengths[index])[:, None]
    fade = np.clip(1 - distances_m / max(float(distances_m[-1]), 1e-6), 0.0, 1.0)
    return places - offset * fade[:, None]
