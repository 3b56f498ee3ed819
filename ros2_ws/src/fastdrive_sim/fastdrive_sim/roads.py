"""The route through a world: one long lane with bends and junctions, drawn without crossing itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

STEP_M = 0.5  # spacing of the samples along the lane
LANE_M = 3.5
RIGHT_EDGE_M = -2.0  # offsets from the middle of the ego lane, left positive
LEFT_EDGE_M = 5.5
CENTRE_M = 1.75  # the line between the two directions
BOX_M = 10.0  # half the side of a junction
CLEARANCE_M = 26.0  # between parts of the road that are far apart along it
LOCAL_M = 60.0  # closer than this along the road, parts may be close in space
MAX_HEADING_RAD = 2.3


@dataclass(frozen=True)
class Junction:
    """A crossing of two roads. Its frame: origin in its middle, x along the incoming heading."""

    s_stop: float  # where the front bumper stops, arc length
    s_in: float  # entry of the box
    s_out: float
    turn: str  # "left" | "straight" | "right"
    centre: tuple[float, float]
    heading: float
    has_light: bool

    def point(self, forward: float, left: float) -> tuple[float, float]:
        """A point of the junction's frame in the world frame."""
        c, s = math.cos(self.heading), math.sin(self.heading)
        return self.centre[0] + c * forward - s * left, self.centre[1] + s * forward + c * left

    def stubs(self) -> list[float]:
        """Headings of the legs that the route does not take."""
        taken = {"left": 0.5, "straight": 0.0, "right": -0.5}[self.turn]
        return [self.heading + quarter * math.pi for quarter in (0.5, 0.0, -0.5) if quarter != taken]


@dataclass(frozen=True)
class Route:
    """The middle of the ego lane, sampled every ``STEP_M``; arrays [R]."""

    xy: np.ndarray  # float64 [R, 2]
    yaw: np.ndarray
    curvature: np.ndarray  # 1/m, left positive
    junctions: tuple[Junction, ...]

    @property
    def length(self) -> float:
        return (len(self.yaw) - 1) * STEP_M

    @cached_property
    def _samples(self) -> list[tuple[float, float, float]]:
        """x, y and yaw as Python's numbers, which are faster one by one."""
        return list(zip(*self.xy.T.tolist(), self.yaw.tolist(), strict=True))

    def at(self, s: float, offset: float = 0.0) -> tuple[float, float, float]:
        """Position and heading (x, y, yaw) at arc length ``s`` m, ``offset`` m to the left."""
        index = min(max(s / STEP_M, 0.0), len(self.yaw) - 1.001)
        i, f = int(index), index - int(index)
        (x0, y0, yaw0), (x1, y1, yaw1) = self._samples[i : i + 2]
        x, y = x0 * (1 - f) + x1 * f, y0 * (1 - f) + y1 * f
        yaw = yaw0 * (1 - f) + yaw1 * f
        return x - math.sin(yaw) * offset, y + math.cos(yaw) * offset, yaw

    def curvature_at(self, s: float) -> float:
        return float(self.curvature[min(max(int(s / STEP_M), 0), len(self.curvature) - 1)])

    def project(self, x: float, y: float, near_s: float) -> tuple[float, float]:
        """Arc length and left offset of the nearest point within 15 m of ``near_s``."""
        lo = max(int((near_s - 15) / STEP_M), 0)
        hi = min(int((near_s + 15) / STEP_M) + 1, len(self.yaw))
        dx, dy = x - self.xy[lo:hi, 0], y - self.xy[lo:hi, 1]
        i = int((dx * dx + dy * dy).argmin())
        yaw = self.yaw[lo + i]
        along = dx[i] * math.cos(yaw) + dy[i] * math.sin(yaw)
        across = -dx[i] * math.sin(yaw) + dy[i] * math.cos(yaw)
        return (lo + i) * STEP_M + float(along), float(across)

    def next_junction(self, s: float) -> Junction | None:
        """The first junction whose box is not yet behind ``s``."""
        return next((junction for junction in self.junctions if junction.s_out > s), None)


@dataclass
class _Builder:
    rng: np.random.Generator
    xy: list[np.ndarray] = field(default_factory=lambda: [np.zeros(2)])
    yaw: list[float] = field(default_factory=lambda: [0.0])
    curvature: list[float] = field(default_factory=lambda: [0.0])
    occupied: list[np.ndarray] = field(default_factory=list)  # rows x, y, arc length
    boxes: list[tuple[int, int, str, bool]] = field(default_factory=list)

    @property
    def s(self) -> float:
        return (len(self.yaw) - 1) * STEP_M

    def sketch(self, pieces: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Samples of (length, curvature) pieces after the present end."""
        curvature = np.concatenate([np.full(max(round(n / STEP_M), 1), k) for n, k in pieces])
        yaw = self.yaw[-1] + np.cumsum(curvature) * STEP_M
        middle = yaw - curvature * STEP_M / 2
        xy = self.xy[-1] + np.cumsum(np.stack([np.cos(middle), np.sin(middle)], 1), 0) * STEP_M
        return xy, yaw, curvature

    def free(self, xy: np.ndarray, s: np.ndarray) -> bool:
        if not self.occupied:
            return True
        old = np.concatenate(self.occupied)
        near = ((xy[:, None] - old[None, :, :2]) ** 2).sum(2) < CLEARANCE_M**2
        far_along = np.abs(s[:, None] - old[None, :, 2]) > LOCAL_M
        return not bool((near & far_along).any())

    def extend(self, pieces: list[tuple[float, float]]) -> bool:
        """Append the pieces unless the road would meet itself or turn back."""
        xy, yaw, curvature = self.sketch(pieces)
        s = self.s + STEP_M * np.arange(1, len(yaw) + 1)
        if abs(yaw[-1]) > MAX_HEADING_RAD or not self.free(xy[::4], s[::4]):
            return False
        self.xy += list(xy)
        self.yaw += list(yaw)
        self.curvature += list(curvature)
        self.occupied.append(np.column_stack([xy[::4], s[::4]]))
        return True

    def bend(self) -> bool:
        radius = math.exp(self.rng.uniform(math.log(14), math.log(45)))
        angle = math.radians(self.rng.uniform(25, 85))
        length = min(max(radius * angle, 9.0), 26.0)
        away = self.rng.random() < 0.5 - 0.25 * self.yaw[-1]  # drawn back to the first heading
        return self.extend([(length, (1 if away else -1) / radius)])

    def junction(self, turn: str | None = None, has_light: bool | None = None) -> bool:
        """A crossing; what is not given is drawn."""
        turn = turn or str(self.rng.choice(["left", "straight", "right"]))
        reach = {"left": BOX_M + CENTRE_M, "right": BOX_M - CENTRE_M, "straight": BOX_M * 4 / math.pi}[turn]
        bow = {"left": 1 / reach, "right": -1 / reach, "straight": 0.0}[turn]
        first = len(self.yaw) + int(12 / STEP_M)
        if not self.extend([(12.0, 0.0), (reach * math.pi / 2, bow), (12.0, 0.0)]):
            return False
        last = first + round(reach * math.pi / 2 / STEP_M)
        lit = bool(self.rng.random() < 0.7) if has_light is None else has_light
        self.boxes.append((first, last, turn, lit))
        return True


@dataclass(frozen=True)
class Straight:
    """A straight part of a route."""

    length_m: float


@dataclass(frozen=True)
class Bend:
    """A part of a route with one radius; ``angle_rad`` is positive to the left."""

    radius_m: float
    angle_rad: float


@dataclass(frozen=True)
class Crossing:
    """A junction of a route, with 12 m of straight road before and after its box."""

    turn: str  # "left" | "straight" | "right"
    has_light: bool = False


def route_of(parts: Sequence[Straight | Bend | Crossing]) -> Route:
    """The route of these parts, one after another. Raises ValueError where the road would meet itself or turn back."""
    builder = _Builder(np.random.default_rng(0))
    for part in parts:
        if isinstance(part, Straight):
            done = builder.extend([(part.length_m, 0.0)])
        elif isinstance(part, Bend):
            length = part.radius_m * abs(part.angle_rad)
            done = builder.extend([(length, math.copysign(1 / part.radius_m, part.angle_rad))])
        else:
            done = builder.junction(part.turn, part.has_light)
        if not done:
            raise ValueError(f"{part}: the road would meet itself or turn back")
    return _finish(builder)


def build_route(rng: np.random.Generator, length_m: float) -> Route:
    """A random route of at least ``length_m``."""
    while True:
        builder = _Builder(rng)
        if _fill(builder, length_m):
            return _finish(builder)


def _fill(builder: _Builder, length_m: float) -> bool:
    builder.extend([(float(builder.rng.uniform(8, 20)), 0.0)])
    junction_due = builder.rng.uniform(25, 70)
    failures = 0
    while builder.s < length_m:
        kind = "junction" if builder.s > junction_due else builder.rng.choice(["bend", "straight"], p=[0.85, 0.15])
        if kind == "junction":
            done = builder.junction()
            junction_due = builder.s + builder.rng.uniform(45, 95) if done else junction_due + 10
        elif kind == "bend":
            done = builder.bend()
        else:
            done = builder.extend([(float(builder.rng.uniform(6, 18)), 0.0)])
        failures = 0 if done else failures + 1
        if failures > 40:
            return False
    return True


def _finish(builder: _Builder) -> Route:
    """Ease the curvature over 5 m, as a driver does, and integrate anew."""
    width = int(5 / STEP_M)
    padded = np.pad(np.array(builder.curvature), (width // 2, width - 1 - width // 2), mode="edge")
    curvature = np.convolve(padded, np.full(width, 1 / width), "valid")
    yaw = np.cumsum(curvature) * STEP_M
    middle = yaw - curvature * STEP_M / 2
    xy = np.cumsum(np.stack([np.cos(middle), np.sin(middle)], 1), 0) * STEP_M
    junctions = []
    for first, last, turn, has_light in builder.boxes:
        heading = float(yaw[first - int(6 / STEP_M)])
        forward, left = (
            np.array([math.cos(heading), math.sin(heading)]),
            np.array([-math.sin(heading), math.cos(heading)]),
        )
        centre = xy[first] + forward * BOX_M + left * CENTRE_M
        s_in = first * STEP_M
        junctions.append(
            Junction(s_in - 5.0, s_in, last * STEP_M, turn, (float(centre[0]), float(centre[1])), heading, has_light)
        )
    return Route(xy, yaw, curvature, tuple(junctions))
