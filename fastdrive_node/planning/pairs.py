"""What the pairs of an answer mean: each kind of pair to waypoints of the ego frame, and back.

Angles in an answer are degrees, 0 is straight ahead and left is positive; distances are metres, speeds m/s. The kinds:

- ``xy``: position. ``dxdy``: change of it since the last point.
- ``distance_heading``: length of a step, and its direction in the frame of t0.
- ``distance_turn``: length of a step, and the change of direction since the last one.
- ``distance_curvature``: length of a step, and its curvature in 1/(100 m).
- ``polar``: distance and direction of a point from the origin.
- ``speed_curvature``: speed over a step, and its curvature in 1/m.
"""

from __future__ import annotations

import math

import numpy as np

from fastdrive_node.families.spec import FrameName, PairKind
from fastdrive_node.geometry import step_headings, wrap_angle
from fastdrive_node.types import Trajectory

_MIN_STEP_M = 0.05  # a shorter step has no direction


def trajectory_of(
    pairs: np.ndarray, kind: PairKind, dt_s: float, frame: FrameName = "x_forward_y_left", origin_m: float = 0.0
) -> Trajectory:
    """The trajectory of the rear axle that pairs state.

    Args:
        pairs: [points, 2], as written.
        dt_s: between points.
        frame: axes of ``xy`` and ``dxdy``.
        origin_m: the pairs are about a point of the vehicle so far ahead of the rear axle.

    Returns:
        Headings and speeds are there where the kind states them.
    """
    pairs = np.asarray(pairs, np.float64)
    first, second = pairs[:, 0], pairs[:, 1]
    headings = speeds = None
    if kind in ("xy", "dxdy"):
        points = np.stack([second, -first], axis=1) if frame == "x_right_y_forward" else pairs
        points = points.cumsum(axis=0) if kind == "dxdy" else points
    elif kind == "polar":
        points = _directed(first, np.deg2rad(second))
    elif kind in ("distance_heading", "distance_turn"):
        angles = np.deg2rad(second.cumsum() if kind == "distance_turn" else second)
        points = _directed(first, angles).cumsum(axis=0)
    else:
        lengths, scale = (first * dt_s, 1.0) if kind == "speed_curvature" else (first, 0.01)
        turns = lengths * second * scale
        headings = turns.cumsum()
        chords = lengths * np.sinc(turns / (2 * np.pi))  # of an arc
        points = _directed(chords, headings - turns / 2).cumsum(axis=0)
        speeds = lengths / dt_s
    points, followed = rear_axle_path(points, origin_m)
    if headings is not None:
        headings = wrap_angle(headings if followed is None else followed)
    return Trajectory(points, dt_s, headings, speeds)


def pairs_of(
    waypoints_m: np.ndarray, kind: PairKind, dt_s: float, frame: FrameName = "x_forward_y_left", origin_m: float = 0.0
) -> np.ndarray:
    """The pairs [points, 2] that state waypoints [points, 2] of the rear axle; the inverse of ``trajectory_of``.

    With ``origin_m`` the vehicle is taken to point along its path.
    """
    points = np.asarray(waypoints_m, np.float64)
    if origin_m:
        headings = step_headings(np.diff(points, axis=0, prepend=0.0), _MIN_STEP_M)
        points = points + origin_m * (_directed(np.ones(len(points)), headings) - [1, 0])
    if kind == "polar":
        return np.stack([np.linalg.norm(points, axis=1), np.rad2deg(_angles(points))], axis=1)
    steps = np.diff(points, axis=0, prepend=0.0)
    if kind in ("xy", "dxdy"):
        values = points if kind == "xy" else steps
        return np.stack([-values[:, 1], values[:, 0]], axis=1) if frame == "x_right_y_forward" else values
    chords, angles = np.linalg.norm(steps, axis=1), step_headings(steps, _MIN_STEP_M)
    if kind == "distance_heading":
        return np.stack([chords, np.rad2deg(angles)], axis=1)
    if kind == "distance_turn":
        return np.stack([chords, np.rad2deg(wrap_angle(np.diff(angles, prepend=0.0)))], axis=1)
    return _arcs(chords, angles, dt_s, kind)


def _arcs(chords: np.ndarray, angles: np.ndarray, dt_s: float, kind: PairKind) -> np.ndarray:
    """Lengths or speeds, and curvatures, of arcs that join smoothly and have these chords."""
    heading, pairs = 0.0, []
    for chord, angle in zip(chords, angles, strict=True):
        turn = 2 * float(wrap_angle(float(angle) - heading)) if chord >= _MIN_STEP_M else 0.0
        heading += turn
        length = chord / np.sinc(turn / (2 * np.pi))
        curvature = turn / length if length else 0.0
        pairs.append((length / dt_s, curvature) if kind == "speed_curvature" else (length, 100 * curvature))
    return np.array(pairs)


def rear_axle_path(points: np.ndarray, origin_m: float) -> tuple[np.ndarray, np.ndarray | None]:
    """The path of the rear axle, from that of a point of the vehicle ``origin_m`` ahead of it.

    The rear axle rolls without slip, so it follows the point as a trailer does: along a straight step of length s the
    angle e between step and vehicle obeys tan(e / 2) -> tan(e / 2) exp(-s / origin). While the point moves back the
    heading is kept.

    Args:
        points: [n, 2] in the frame that has its origin in the point at t0 and x along the vehicle.

    Returns:
        Positions [n, 2] in the ego frame of t0, and the vehicle's headings in rad [n]; the points as they are and None
        where ``origin_m`` is 0.
    """
    if not origin_m:
        return points, None
    heading, headings = 0.0, []
    steps = np.diff(points, axis=0, prepend=0.0)
    for (dx, dy), length in zip(steps, np.linalg.norm(steps, axis=1), strict=True):
        angle = math.atan2(dy, dx)
        error = float(wrap_angle(angle - heading))
        if length > 0 and abs(error) < math.pi / 2:
            heading = angle - 2 * math.atan(math.tan(error / 2) * math.exp(-length / origin_m))
        headings.append(heading)
    turned = np.array(headings)
    return points + origin_m * (np.array([1.0, 0.0]) - _directed(np.ones(len(turned)), turned)), turned


def _directed(lengths: np.ndarray, angles: np.ndarray) -> np.ndarray:
    return np.stack([lengths * np.cos(angles), lengths * np.sin(angles)], axis=1)


def _angles(points: np.ndarray) -> np.ndarray:
    return np.arctan2(points[:, 1], points[:, 0])
