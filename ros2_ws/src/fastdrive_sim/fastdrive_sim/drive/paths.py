"""Ways of other road users: polylines with arc length, in the form of a ``Route``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fastdrive_sim.roads import LANE_M, STEP_M, Junction, Route

LEG_M = 55.0  # how far from a junction's middle its legs are used
HALF_LANE_M = LANE_M / 2


def path_of(points: np.ndarray | Sequence[tuple[float, float]]) -> Route:
    """The path through points [n, 2], sampled every ``STEP_M``."""
    corners = np.asarray(points, np.float64)
    steps = np.linalg.norm(np.diff(corners, axis=0), axis=1)
    arc = np.concatenate([[0.0], np.cumsum(steps)])
    at = np.arange(0.0, arc[-1], STEP_M)
    xy = np.stack([np.interp(at, arc, corners[:, axis]) for axis in (0, 1)], axis=1)
    difference = np.diff(xy, axis=0)
    yaw = np.unwrap(np.arctan2(difference[:, 1], difference[:, 0]))
    yaw = np.concatenate([yaw, yaw[-1:]])
    curvature = np.gradient(yaw) / STEP_M
    return Route(xy, yaw, np.convolve(curvature, np.full(5, 0.2), "same"), ())


def offset_path(route: Route, offset_m: float, from_s: float, to_s: float) -> np.ndarray:
    """Points [n, 2] beside a route, ``offset_m`` to its left; backwards where ``from_s`` is the larger."""
    step = math.copysign(1.0, to_s - from_s)
    return np.array([route.at(s, offset_m)[:2] for s in np.arange(from_s, to_s, step)])


def oncoming_path(route: Route, from_s: float, to_s: float) -> Route:
    """The way against the route on its other lane, from ``from_s`` down to ``to_s``."""
    return path_of(offset_path(route, LANE_M, from_s, to_s))


def arc_points(center: tuple[float, float], radius: float, from_rad: float, to_rad: float) -> np.ndarray:
    """Points [n, 2] of an arc."""
    angles = np.linspace(from_rad, to_rad, max(int(abs(to_rad - from_rad) * radius / 0.7), 3))
    return np.stack([center[0] + radius * np.cos(angles), center[1] + radius * np.sin(angles)], axis=1)


def in_world(junction: Junction, points: Sequence[tuple[float, float]] | np.ndarray) -> np.ndarray:
    """Points of a junction's frame [n, 2] in the world."""
    return np.array([junction.point(float(forward), float(left)) for forward, left in points])


def opposite_path(route: Route, junction: Junction) -> Route:
    """Straight across from the leg ahead into the oncoming lane of the road that the route comes from."""
    across = in_world(junction, [(LEG_M, HALF_LANE_M), (-8.0, HALF_LANE_M)])
    back = offset_path(route, LANE_M, junction.s_in - 2.0, max(junction.s_in - 60.0, 2.0))
    return path_of(np.concatenate([across, back]))


def crossing_path(junction: Junction, from_left: bool) -> Route:
    """Straight across the route, from the left or the right leg to the other one."""
    side, forward = (1.0, -HALF_LANE_M) if from_left else (-1.0, HALF_LANE_M)
    return path_of(in_world(junction, [(forward, side * LEG_M), (forward, -side * LEG_M)]))


def merging_path(route: Route, junction: Junction) -> Route:
    """From the right leg by a right turn into the lane that the route leaves a straight crossing by."""
    radius = 5.0
    x, y = HALF_LANE_M + radius, -HALF_LANE_M - radius
    turn = arc_points((x, y), radius, math.pi, math.pi / 2)
    joined = np.concatenate([[(HALF_LANE_M, -LEG_M)], turn])
    after = offset_path(route, 0.0, junction.s_out + 1.0, route.length - 2.0)
    return path_of(np.concatenate([in_world(junction, joined), after]))
