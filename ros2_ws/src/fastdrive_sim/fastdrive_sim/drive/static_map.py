"""The map of a scene for the scores: route, lanes, junctions, drivable area, and what stands beside the road."""

from __future__ import annotations

import math

import numpy as np

from fastdrive_sim.drive.agents import project
from fastdrive_sim.drive.types import Lane, Other, StaticMap
from fastdrive_sim.roads import BOX_M, CENTRE_M, LANE_M, LEFT_EDGE_M, RIGHT_EDGE_M, Junction, Route
from fastdrive_sim.types import Thing, World

SPACING_M = 0.5  # of the route's points
BEYOND_M = 60.0  # of the route, after the goal
NEAR_M = 15.0  # obstacles within this distance of the route
SOLID = ("car", "truck", "bus", "barrier", "traffic_cone", "lamp_post", "traffic_sign", "tree", "building")
_POLE_M = 0.25  # thickness of what a lamp post or a sign has near the ground


def static_map(route: Route, world: World, start_s: float, goal_m: float, limit: float) -> StaticMap:
    """
    Args:
        start_s: arc length of the ego's rear axle at the start; the map's route begins there.
        goal_m: from there to the goal.
    """
    end = min(start_s + goal_m + BEYOND_M, route.length)
    line = np.array([route.at(s)[:2] for s in np.arange(start_s, end, SPACING_M)])
    boxes = tuple(np.array([junction.point(*corner) for corner in _SQUARE]) for junction in route.junctions)
    lanes = [lane for stretch in _stretches(route) for lane in _lanes(route, *stretch)]
    obstacles = _obstacles(route, world, start_s, end)
    return StaticMap(line, SPACING_M, goal_m, tuple(world.drivable), tuple(lanes), boxes, obstacles, limit)


def stop_line(route: Route, junction: Junction) -> tuple[tuple[float, float], tuple[float, float]]:
    """Right and left end of the line at which the front bumper stops."""
    right, left = route.at(junction.s_stop, RIGHT_EDGE_M), route.at(junction.s_stop, CENTRE_M)
    return (right[0], right[1]), (left[0], left[1])


def red_area(route: Route, junction: Junction) -> tuple[tuple[float, float], ...]:
    """The ego's lane from 0.5 m after the stop line to 2 m into the junction."""
    first, last = junction.s_stop + 0.5, junction.s_in + 2.0
    corners = [(first, CENTRE_M), (first, RIGHT_EDGE_M), (last, RIGHT_EDGE_M), (last, CENTRE_M)]
    points = (route.at(*corner) for corner in corners)
    return tuple((x, y) for x, y, _ in points)


_SQUARE = ((-BOX_M, -BOX_M), (BOX_M, -BOX_M), (BOX_M, BOX_M), (-BOX_M, BOX_M))


def _stretches(route: Route) -> list[tuple[float, float]]:
    """Arc lengths outside of the junctions' boxes."""
    bounds, start = [], 0.0
    for junction in route.junctions:
        bounds.append((start, junction.s_in))
        start = junction.s_out
    return [(first, last) for first, last in [*bounds, (start, route.length)] if last - first > 2.0]


def _lanes(route: Route, first: float, last: float) -> tuple[Lane, Lane]:
    at = np.arange(first, last, 2.0)
    line = lambda offset: np.array([route.at(s, offset)[:2] for s in at])  # noqa: E731
    middle = line(CENTRE_M)
    own = np.concatenate([middle, line(RIGHT_EDGE_M)[::-1]])
    other = np.concatenate([line(LEFT_EDGE_M), middle[::-1]])
    return Lane(own, line(0.0), False), Lane(other, line(LANE_M)[::-1], True)


def _obstacles(route: Route, world: World, start_s: float, end_s: float) -> tuple[Other, ...]:
    things = [thing for thing in world.things if thing.kind in SOLID]
    if not things:
        return ()
    middles = np.array([(thing.x, thing.y) for thing in things])
    middle_s, reach = (start_s + end_s) / 2, (end_s - start_s) / 2 + 10
    along, left, _ = project(route, middle_s, reach, middles, behind_m=reach)
    away = np.hypot(left, np.clip(np.maximum(start_s - 10 - along, along - end_s), 0, None))
    radius = np.array([math.hypot(thing.size[0], thing.size[1]) / 2 for thing in things])
    return tuple(_obstacle(thing) for thing, near in zip(things, away < NEAR_M + radius, strict=True) if near)


def _obstacle(thing: Thing) -> Other:
    length, width, _ = thing.size
    if thing.kind == "tree":  # the crown is above the road
        length = width = 0.1 * thing.size[2]
    elif thing.kind in ("lamp_post", "traffic_sign"):
        length = width = _POLE_M
    return Other(thing.instance, thing.kind, thing.x, thing.y, thing.yaw, length, width)
