"""Other road users of a closed-loop run: vehicles that react by IDM and change lanes, people who keep walking."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from fastdrive_sim.drive.types import Other
from fastdrive_sim.expert import bend_speed, follow
from fastdrive_sim.roads import STEP_M, Route
from fastdrive_sim.types import Thing

SIZES = {
    "car": (4.5, 1.9, 1.6),
    "truck": (7.5, 2.4, 3.2),
    "bus": (11.0, 2.5, 3.1),
    "cyclist": (1.8, 0.6, 1.75),
    "pedestrian": (0.4, 0.6, 1.75),
}
DECISION_S = 0.1  # between two decisions of a driver
SIGHT_M = 60.0
ATTENTION_M = 50.0  # ahead of the front bumper, of what is written as ahead
LANE_HALF_M = 1.2  # beside the lane's middle, the ego vehicle's way
ROADSIDE_M = (1.5, 4.2, 5.5)  # in the lane; from its middle to where somebody waits on the right, on the left
SIDE_GAP_M = 0.35  # beside a path, nearer things are in the way


@dataclass(frozen=True)
class Pace:
    """From a time on a driver means to go at this speed, braking at most so hard."""

    from_s: float
    speed: float
    brake: float = 3.0  # m/s^2


@dataclass(frozen=True)
class Shift:
    """A lane change: from a time on to another offset from the path, within ``lasting_s``."""

    from_s: float
    offset: float
    lasting_s: float = 2.5


@dataclass(frozen=True)
class Stop:
    """A place on a path at which its drivers stop while ``state`` says so; arc length of the line."""

    s: float
    closed: bool


class LaneChanges(Protocol):
    """Decides on lane changes."""

    def decide(self, vehicle: RoadVehicle, time_s: float, others: Sequence[Other]) -> None: ...


@dataclass
class RoadVehicle:
    """A vehicle, or a cyclist, on a path."""

    instance: int
    kind: str
    color: tuple[int, int, int]
    path: Route
    s: float  # arc length of its middle
    speed: float
    limit: float
    offset: float = 0.0  # left of the path
    paces: Sequence[Pace] = ()
    shifts: Sequence[Shift] = ()
    reacts: bool = True  # to what is ahead of it
    overtaking: LaneChanges | None = None
    variant: int = 0
    accel: float = 0.0
    lateral: float = 0.0  # m/s, to the left
    _from: dict[int, float] = field(default_factory=dict, repr=False)  # offset at which a shift began

    @property
    def size(self) -> tuple[float, float, float]:
        return SIZES[self.kind]

    def decide(self, time_s: float, others: Sequence[Other], stops: Sequence[Stop]) -> None:
        """Choose an acceleration; ``others`` is everybody, the ego vehicle and this one among them."""
        if self.overtaking is not None:
            self.overtaking.decide(self, time_s, others)
        self.accel = self._decide(time_s, others, stops)

    def step(self, time_s: float, dt: float) -> None:
        """Advance by ``dt``."""
        speed = max(self.speed + self.accel * dt, 0.0)
        self.s += 0.5 * (self.speed + speed) * dt
        self.speed = speed
        if self.shifts:
            before = self.offset
            self._shift(time_s)
            self.lateral = (self.offset - before) / dt

    def pose(self, ahead_s: float = 0.0) -> tuple[float, float, float]:
        """x, y and yaw now, or in ``ahead_s`` seconds at constant speed."""
        x, y, yaw = self.path.at(self.s + self.speed * ahead_s, self.offset + self.lateral * min(ahead_s, 1.0))
        return x, y, yaw + (math.atan2(self.lateral, self.speed) if self.speed > 1.0 else 0.0)

    def other(self) -> Other:
        x, y, yaw = self.pose()
        length, width, _ = self.size
        return Other(self.instance, self.kind, x, y, yaw, length, width, self.speed)

    def thing(self) -> Thing:
        x, y, yaw = self.pose()
        state = "brake" if self.kind != "cyclist" and (self.accel < -0.5 or self.speed < 0.05) else ""
        look = {"speed": self.speed, "state": state, "variant": self.variant}
        return Thing(self.instance, self.kind, x, y, yaw, self.size, self.color, **look)

    def _decide(self, time_s: float, others: Sequence[Other], stops: Sequence[Stop]) -> float:
        nose = self.s + self.size[0] / 2
        ahead = [(stop.s - nose + 2.5, 0.0) for stop in stops if stop.closed and stop.s > nose - 1.5]
        if self.reacts:
            ahead += self.ahead_of(others)
        accel = follow(self.speed, bend_speed(self.path, self.s, self.speed, self.limit), ahead)
        accel = min(accel, self._towards(next((p for p in reversed(self.paces) if time_s >= p.from_s), None)))
        return accel if self.speed > 0 or accel > 0.05 else 0.0

    def _towards(self, pace: Pace | None) -> float:
        """Acceleration to a pace, braking no harder than it says."""
        if pace is None:
            return math.inf
        if pace.speed < 0.1:  # IDM needs a speed
            return max(-pace.brake, -self.speed / DECISION_S)
        return max(-pace.brake, follow(self.speed, pace.speed, []))

    def ahead_of(self, others: Sequence[Other]) -> list[tuple[float, float]]:
        """(gap m, speed m/s along the path) of what is in this vehicle's way."""
        x, y, _ = self.path.at(self.s)
        rest = (other for other in others if other.instance != self.instance)
        near = [other for other in rest if math.hypot(other.x - x, other.y - y) < SIGHT_M]
        if not near:
            return []
        along, left, yaw = project(self.path, self.s, SIGHT_M, np.array([(other.x, other.y) for other in near]))
        found = []
        for other, s, offset, heading in zip(near, along, left, yaw, strict=True):
            turn = other.yaw - heading
            reach, side = extents(other.length, other.width, turn)
            gap = s - self.s - reach - self.size[0] / 2
            if s > self.s and abs(offset - self.offset) < side + self.size[1] / 2 + SIDE_GAP_M:
                found.append((float(gap), float(other.speed * math.cos(turn))))
        return found

    def _shift(self, time_s: float) -> None:
        for index, shift in enumerate(self.shifts):
            if time_s >= shift.from_s:
                begin = self._from.setdefault(index, self.offset)
                part = min((time_s - shift.from_s) / shift.lasting_s, 1.0)
                self.offset = begin + (shift.offset - begin) * (3 - 2 * part) * part * part


@dataclass
class Walker:
    """Somebody on foot, on a straight way; sets off once and keeps walking to its end."""

    instance: int
    color: tuple[int, int, int]
    start: tuple[float, float]
    end: tuple[float, float]
    pace: float  # m/s
    trigger_s: float | None = None  # sets off when the ego vehicle is so near in time; None: walks from the start
    at_s: float = 0.0  # arc length of the ego's route at which the way meets it
    variant: int = 0
    gone_m: float = 0.0
    walking: bool = False
    length: float = field(init=False)

    def __post_init__(self) -> None:
        self.length = math.hypot(self.end[0] - self.start[0], self.end[1] - self.start[1])

    def step(self, ego_front_s: float, ego_speed: float, dt: float) -> None:
        """Advance by ``dt``; ``ego_front_s``: arc length of the ego's front bumper on its route."""
        if not self.walking:
            away = self.at_s - ego_front_s
            self.walking = self.trigger_s is None or 0 < away < self.trigger_s * max(ego_speed, 2.0)
        if self.walking:
            self.gone_m = min(self.gone_m + self.pace * dt, self.length)

    @property
    def speed(self) -> float:
        return self.pace if self.walking and self.gone_m < self.length else 0.0

    def pose(self, ahead_s: float = 0.0) -> tuple[float, float, float]:
        """x, y and yaw now, or in ``ahead_s`` seconds at the present speed."""
        part = min(self.gone_m + self.speed * ahead_s, self.length) / max(self.length, 1e-6)
        dx, dy = self.end[0] - self.start[0], self.end[1] - self.start[1]
        return self.start[0] + part * dx, self.start[1] + part * dy, math.atan2(dy, dx)

    def other(self) -> Other:
        length, width, _ = SIZES["pedestrian"]
        return Other(self.instance, "pedestrian", *self.pose(), length, width, self.speed)

    def thing(self) -> Thing:
        size = SIZES["pedestrian"]
        return Thing(
            self.instance, "pedestrian", *self.pose(), size, self.color, speed=self.speed, variant=self.variant
        )


RoadUser = RoadVehicle | Walker


def extents(length: float, width: float, turn: float) -> tuple[float, float]:
    """Half of what a rectangle that is turned by ``turn`` takes up along and across a path."""
    cos, sin = abs(math.cos(turn)), abs(math.sin(turn))
    return (cos * length + sin * width) / 2, (sin * length + cos * width) / 2


def project(
    path: Route, near_s: float, reach_m: float, xy: np.ndarray, behind_m: float = 10.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arc length, left offset and the path's heading, each [n], at the nearest points of a path to points [n, 2].

    The search is from ``behind_m`` before ``near_s`` to ``reach_m`` after it.
    """
    first = max(int((near_s - behind_m) / STEP_M), 0)
    last = min(int((near_s + reach_m) / STEP_M) + 1, len(path.yaw))
    first = min(first, last - 1)
    samples = path.xy[first:last]
    x, y = (xy[:, None, axis] - samples[None, :, axis] for axis in (0, 1))  # one array [n, m, 2] takes twice the time
    index = first + (x * x + y * y).argmin(1)
    yaw = path.yaw[index]
    delta = xy - path.xy[index]
    along = delta[:, 0] * np.cos(yaw) + delta[:, 1] * np.sin(yaw)
    left = -delta[:, 0] * np.sin(yaw) + delta[:, 1] * np.cos(yaw)
    return index * STEP_M + along, left, yaw


def gaps_in_lane(route: Route, front_s: float, others: Sequence[Other]) -> dict[str, float | str]:
    """``vehicle_gap_m`` and ``pedestrian_gap_m`` of the nearest within 50 m of a front bumper, where there are any.

    Vehicles count where they reach into the lane, people where they are on the road and not yet past the lane.
    """
    near = [other for other in others if other.kind in SIZES]
    if not near:
        return {}
    xy = np.array([(other.x, other.y) for other in near])
    along, left, yaw = project(route, front_s, ATTENTION_M + 10.0, xy)
    found: dict[str, float | str] = {}
    for other, s, offset, heading in zip(near, along, left, yaw, strict=True):
        reach, side = extents(other.length, other.width, other.yaw - heading)
        gap = float(s - front_s - (0.0 if other.kind == "pedestrian" else reach))
        if not (s > front_s and gap < ATTENTION_M):
            continue
        if other.kind == "pedestrian":
            name, counts = "pedestrian_gap_m", _is_crossing(float(offset), other.speed * math.sin(other.yaw - heading))
        else:
            name, counts = "vehicle_gap_m", abs(offset) - side < LANE_HALF_M
        if counts:
            found[name] = round(min(gap, float(found.get(name, gap))), 2)
    return found


def _is_crossing(left: float, to_left: float) -> bool:
    """Whether a driver in the lane waits for somebody on foot at an offset, who walks to the left so fast, m/s."""
    if abs(to_left) < 0.3:  # stands, or walks along the road
        return abs(left) < ROADSIDE_M[0]
    is_past = left > 2.2 if to_left > 0 else left < -2.4
    return -ROADSIDE_M[1] < left < ROADSIDE_M[2] and not is_past
