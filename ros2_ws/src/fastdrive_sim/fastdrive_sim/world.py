"""The scenery along a route: road surfaces, marks and pavements, in front of a busy background."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from fastdrive_sim.roads import BOX_M, CENTRE_M, LANE_M, LEFT_EDGE_M, RIGHT_EDGE_M, STEP_M, Junction, Route
from fastdrive_sim.traffic import VEHICLES, random_color
from fastdrive_sim.types import Label, Surface, Thing, World

STUB_M = 50.0  # length of the junction legs that the route does not take
PAVEMENT_M = 2.2
Triple = tuple[Any, Any, Any]
Z_PAVEMENT, Z_ROAD, Z_BOX, Z_MARK = 0.01, 0.02, 0.03, 0.05


def build_world(seed: int, rng: np.random.Generator, route: Route, ids: count) -> World:
    """Everything that stands along ``route``."""
    style = _Style.draw(rng)
    legs = [(junction, heading) for junction in route.junctions for heading in junction.stubs()]
    surfaces = _route_surfaces(route, style)
    drivable = [_outline(route, RIGHT_EDGE_M, LEFT_EDGE_M)]
    for junction in route.junctions:
        surfaces += _junction_surfaces(junction, style)
        drivable.append(np.array([junction.point(*p) for p in _square(BOX_M)]))
    for junction, heading in legs:
        surfaces += _stub_surfaces(junction, heading, style)
        drivable.append(_leg(junction, heading, BOX_M, BOX_M + STUB_M, -LANE_M - 0.25, LANE_M + 0.25))
    road = _road_points(route, legs)
    things = _signs(rng, route, ids) + _barriers(rng, route, ids) + _scenery(rng, route, road, style, ids)
    return World(
        seed,
        tuple(surfaces),
        tuple(things),
        tuple(drivable),
        sun_deg=float(rng.uniform(20, 75)),
        haze=float(rng.uniform(0, 0.5)),
        sky=style.sky,
    )


@dataclass(frozen=True)
class _Style:
    """Colors and densities of one world."""

    asphalt: tuple[int, int, int]
    mark: tuple[int, int, int]
    pavement: tuple[int, int, int]
    sky: tuple[int, int, int]
    buildings: float  # fraction of the places along the road that hold one
    trees: float
    billboards: float

    @staticmethod
    def draw(rng: np.random.Generator) -> _Style:
        grey = int(rng.integers(58, 108))
        pale = int(rng.integers(130, 185))
        blue = int(rng.integers(190, 240))
        buildings, trees = [(0.85, 0.3), (0.45, 0.6), (0.1, 0.8)][int(rng.integers(3))]
        return _Style(
            asphalt=(grey, grey, grey + int(rng.integers(0, 8))),
            mark=(235, 235, 230) if rng.random() < 0.7 else (230, 195, 70),
            pavement=(pale, pale - int(rng.integers(0, 18)), pale - int(rng.integers(0, 30))),
            sky=(blue - int(rng.integers(20, 110)), blue - int(rng.integers(5, 40)), blue),
            buildings=buildings,
            trees=trees,
            billboards=float(rng.uniform(0.05, 0.35)),
        )


def _ribbon(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Triangles [2 (n - 1), 3, 2] between two edges [n, 2]."""
    a, b, c, d = left[:-1], left[1:], right[:-1], right[1:]
    return np.concatenate([np.stack([a, c, b], 1), np.stack([b, c, d], 1)]).astype(np.float32)


def _edge(route: Route, offset: float, first: int = 0, last: int | None = None, stride: int = 2) -> np.ndarray:
    """The line ``offset`` m left of the lane's middle, [n, 2]."""
    pick = slice(first, last, stride)
    yaw = route.yaw[pick]
    return route.xy[pick] + offset * np.stack([-np.sin(yaw), np.cos(yaw)], 1)


def _outline(route: Route, right: float, left: float) -> np.ndarray:
    return np.concatenate([_edge(route, left, stride=4), _edge(route, right, stride=4)[::-1]])


def _open_stretches(route: Route) -> list[tuple[int, int]]:
    """Index ranges of the route outside junction boxes."""
    bounds, start = [], 0
    for junction in route.junctions:
        bounds.append((start, int(junction.s_in / STEP_M) - 1))
        start = int(junction.s_out / STEP_M) + 1
    return [*bounds, (start, len(route.yaw) - 1)]


def _route_surfaces(route: Route, style: _Style) -> list[Surface]:
    edge = lambda offset, first=0, last=None, stride=2: _edge(route, offset, first, last, stride)  # noqa: E731
    surfaces = [Surface(Label.ROAD, _ribbon(edge(LEFT_EDGE_M), edge(RIGHT_EDGE_M)), Z_ROAD, style.asphalt)]
    marks = []
    for first, last in _open_stretches(route):
        if last - first < 6:
            continue
        for inner, outer in ((RIGHT_EDGE_M, RIGHT_EDGE_M - PAVEMENT_M), (LEFT_EDGE_M + PAVEMENT_M, LEFT_EDGE_M)):
            path = _ribbon(edge(inner, first, last), edge(outer, first, last))
            surfaces.append(Surface(Label.SIDEWALK, path, Z_PAVEMENT, style.pavement))
        for line in (RIGHT_EDGE_M + 0.3, LEFT_EDGE_M - 0.3):
            marks.append(_ribbon(edge(line + 0.08, first, last), edge(line - 0.08, first, last)))
        for dash in range(first, last - 7, 12):
            marks.append(_ribbon(edge(CENTRE_M + 0.08, dash, dash + 7), edge(CENTRE_M - 0.08, dash, dash + 7)))
    surfaces.append(Surface(Label.LANE_MARK, np.concatenate(marks), Z_MARK, style.mark))
    return surfaces


def _square(half: float) -> list[tuple[float, float]]:
    return [(-half, -half), (half, -half), (half, half), (-half, half)]


def _leg(junction: Junction, heading: float, near: float, far: float, right: float, left: float) -> np.ndarray:
    """A rectangle [4, 2] along a leg, measured from the junction's middle."""
    turn = heading - junction.heading
    c, s = math.cos(turn), math.sin(turn)
    corners = ((near, left), (far, left), (far, right), (near, right))
    return np.array([junction.point(c * f - s * w, s * f + c * w) for f, w in corners])


def _quad(corners: np.ndarray) -> np.ndarray:
    return np.stack([corners[[0, 1, 2]], corners[[0, 2, 3]]]).astype(np.float32)


def _junction_surfaces(junction: Junction, style: _Style) -> list[Surface]:
    box = _quad(np.array([junction.point(*p) for p in _square(BOX_M)]))
    back = junction.heading + math.pi  # the leg that the ego vehicle comes from: its own lane is on the left of it
    marks = [_quad(_leg(junction, back, BOX_M + 4.2, BOX_M + 4.8, 0.0, LANE_M))]
    for bar in np.arange(-LANE_M, LANE_M, 1.0):
        marks.append(_quad(_leg(junction, back, BOX_M + 0.6, BOX_M + 3.2, bar, bar + 0.5)))
    return [
        Surface(Label.ROAD, box, Z_BOX, style.asphalt),
        Surface(Label.LANE_MARK, np.concatenate(marks), Z_MARK, (235, 235, 230)),
    ]


def _stub_surfaces(junction: Junction, heading: float, style: _Style) -> list[Surface]:
    far, half = BOX_M + STUB_M, LANE_M + 0.25
    road = _quad(_leg(junction, heading, BOX_M, far, -half, half))
    paths = [_quad(_leg(junction, heading, BOX_M, far, half, half + PAVEMENT_M))]
    paths.append(_quad(_leg(junction, heading, BOX_M, far, -half - PAVEMENT_M, -half)))
    marks = [_quad(_leg(junction, heading, BOX_M, far, side - 0.08, side + 0.08)) for side in (-half + 0.3, half - 0.3)]
    marks += [_quad(_leg(junction, heading, d, d + 3, -0.08, 0.08)) for d in np.arange(BOX_M + 4, far - 3, 6)]
    return [
        Surface(Label.SIDEWALK, np.concatenate(paths), Z_PAVEMENT, style.pavement),
        Surface(Label.ROAD, road, Z_ROAD, style.asphalt),
        Surface(Label.LANE_MARK, np.concatenate(marks), Z_MARK, style.mark),
    ]


def _road_points(route: Route, legs: list[tuple[Junction, float]]) -> np.ndarray:
    """Points on the middle of every road, about 4 m apart, [P, 2]."""
    points = [_edge(route, CENTRE_M, stride=8)]
    for junction, heading in legs:
        reach = np.arange(0, BOX_M + STUB_M, 4.0)
        points.append(np.array(junction.centre) + reach[:, None] * [math.cos(heading), math.sin(heading)])
    return np.concatenate(points)


def _signs(rng: np.random.Generator, route: Route, ids: count) -> list[Thing]:
    """Speed limits now and then, chevrons before tight bends, on the right."""
    found = []
    for s in np.arange(20, route.length - 20, 10.0):
        ahead = route.curvature[int((s + 8) / STEP_M) : int((s + 16) / STEP_M)].mean()
        if abs(ahead) > 1 / 35 and rng.random() < 0.4:
            state = "curve_left" if ahead > 0 else "curve_right"
        elif rng.random() < 0.08:
            state = str(rng.choice(["limit30", "limit50"]))
        else:
            continue
        x, y, yaw = route.at(s, RIGHT_EDGE_M - 0.6)
        found.append(Thing(next(ids), "traffic_sign", x, y, yaw + math.pi, (0.1, 0.8, 2.6), (200, 30, 30), state=state))
    return found


def _barriers(rng: np.random.Generator, route: Route, ids: count) -> list[Thing]:
    """Rows of barriers or cones along an edge of the road."""
    found = []
    for first, last in _open_stretches(route):
        s, end = first * STEP_M + 6, last * STEP_M - 6
        while s < end:
            if rng.random() < 0.25:
                offset = RIGHT_EDGE_M - 0.25 if rng.random() < 0.6 else LEFT_EDGE_M + 0.25
                kind, gap, size = [("barrier", 3.0, (2.9, 0.5, 0.9)), ("traffic_cone", 2.5, (0.4, 0.4, 0.75))][
                    int(rng.random() < 0.3)
                ]
                for at in np.arange(s, min(s + rng.uniform(9, 24), end), gap):
                    x, y, yaw = route.at(at, offset)
                    found.append(Thing(next(ids), kind, x, y, yaw, size, (220, 90, 40)))
            s += 25
    return found


def _scenery(rng: np.random.Generator, route: Route, road: np.ndarray, style: _Style, ids: count) -> list[Thing]:
    found: list[Thing] = []
    for s in np.arange(0, route.length, 7.0):
        for side in (-1, 1):
            found += [
                thing
                for thing in _beside(rng, route, float(s), side, style, ids)
                if _clear(thing, road, 3.8 if thing.kind in VEHICLES or thing.kind == "lamp_post" else 5.0)
            ]
    return found


def _clear(thing: Thing, road: np.ndarray, margin: float) -> bool:
    """Whether the footprint's circle stays ``margin`` m from the middle of every road."""
    radius = 0.5 * math.hypot(thing.size[0], thing.size[1]) if thing.kind == "building" else 0.5 * thing.size[1]
    distance2 = ((road - [thing.x, thing.y]) ** 2).sum(1).min()
    return distance2 > (radius + margin) ** 2


def _beside(rng: np.random.Generator, route: Route, s: float, side: int, style: _Style, ids: count) -> list[Thing]:
    """What stands beside the road near ``s`` on one side: nearest first, farther behind."""
    edge = LEFT_EDGE_M if side > 0 else RIGHT_EDGE_M

    def place(away: float, along: float = 0.0) -> tuple[float, float, float]:
        return route.at(s + along, edge + side * away)

    found: list[Thing] = []

    def put(kind: str, x: float, y: float, yaw: float, size: Triple, color: Triple, variants: int = 0) -> None:
        """One more thing; ``variants``: how many looks its kind has."""
        variant = int(rng.integers(variants)) if variants else 0
        found.append(Thing(next(ids), kind, x, y, yaw, size, color, variant=variant))

    draw = rng.random(6)
    if draw[0] < 0.12:
        x, y, yaw = place(1.15)
        put("car", x, y, yaw if side < 0 else yaw + math.pi, VEHICLES["car"], random_color(rng))
    elif draw[0] < 0.3:
        x, y, yaw = place(0.8)
        put("lamp_post", x, y, yaw - side * math.pi / 2, (0.2, 0.2, 6.5), (90, 95, 100))
    if draw[1] < style.trees:
        height = rng.uniform(4, 10)
        at = place(rng.uniform(3.5, 14), rng.uniform(-3, 3))
        green = (int(rng.integers(30, 90)), int(rng.integers(80, 150)), int(rng.integers(20, 70)))
        put("tree", *at, (height * 0.55, height * 0.55, height), green, 99)
    if draw[2] < 0.3:
        at = place(rng.uniform(2.8, 8), rng.uniform(-3, 3))
        size = rng.uniform(0.8, 2.0)
        put("bush", *at, (size, size, size * 0.8), (60, 110, 50), 99)
    if draw[3] < style.billboards * 0.35:
        x, y, yaw = place(rng.uniform(4, 9))
        put("billboard", x, y, yaw + math.pi + side * rng.uniform(0, 0.7), (0.4, 5.0, 6.0), random_color(rng), 999)
    if draw[4] < style.buildings:
        length, depth, height = rng.uniform(7, 16), rng.uniform(8, 14), rng.uniform(4, 26)
        at = place(rng.uniform(3.5, 12) + depth / 2)
        red, green, blue = (int(value) for value in rng.integers(90, 225) * rng.uniform(0.75, 1.0, 3))
        put("building", *at, (length, depth, height), (red, green, blue), 999)
    return found
