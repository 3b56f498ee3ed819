"""A run as arrays: where the ego vehicle was at each step, on what, and where the others were."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from fastdrive_node.types import Vehicle
from fastdrive_sim.drive.scoring.polygons import distances, inside, inside_any, rectangles
from fastdrive_sim.drive.types import RECORD_S, Lane, Other, RunRecord, StaticMap

# Things that are no road users: a collision with one halves NC. Parked vehicles are road users, as in NAVSIM.
FURNITURE = ("barrier", "traffic_cone", "lamp_post", "traffic_sign", "tree", "building")
# Only these of them are annotated in nuPlan, so that TTC sees them; the others stand beside the road.
ON_THE_ROAD = ("barrier", "traffic_cone")
OFF_ROUTE_M = 4.0  # from the middle of the ego's lane, which is 3.75 m wide


@dataclass(frozen=True)
class Areas:
    """What a rectangle of the ego vehicle is on, for each of T poses."""

    several_lanes: np.ndarray  # bool [T]: corners in more than one lane, and no lane has all four
    off_road: np.ndarray  # bool [T]: a corner is on no drivable polygon
    wrong_way: np.ndarray  # bool [T]: the centre is in an oncoming lane or off the route, and in no junction
    junction: np.ndarray  # bool [T]: the centre is in a junction

    @classmethod
    def of(cls, corners: np.ndarray, map_: StaticMap) -> Areas:
        """``corners`` are [T, 4, 2]."""
        centers = corners.mean(axis=1)
        in_lane = _in_lanes(corners, map_.lanes)
        junction = inside_any(centers, map_.junctions)
        several = ((in_lane.any(axis=-1)).sum(axis=0) > 1) & ~in_lane.all(axis=-1).any(axis=0)
        own = inside_any(centers, [lane.polygon for lane in map_.lanes if not lane.is_oncoming])
        against = inside_any(centers, [lane.polygon for lane in map_.lanes if lane.is_oncoming])
        off_route = distances(centers, map_.route) > OFF_ROUTE_M  # also where a wrong turn has no lanes
        off_road = np.asarray(~inside_any(corners, map_.drivable).all(axis=1))
        return cls(several, off_road, (against | off_route) & ~own & ~junction, junction)


def _in_lanes(corners: np.ndarray, lanes: tuple[Lane, ...]) -> np.ndarray:
    """bool [L, T, 4]."""
    found = [inside(corners, lane.polygon) for lane in lanes]
    return np.array(found) if found else np.zeros((0, *corners.shape[:2]), bool)


@dataclass(frozen=True)
class Others:
    """Road users at many instants, one row for each of them and step, in the order of the steps; arrays [N]."""

    step: np.ndarray  # int
    instance: np.ndarray  # int
    x: np.ndarray
    y: np.ndarray
    yaw: np.ndarray
    length: np.ndarray
    width: np.ndarray
    speed: np.ndarray

    @classmethod
    def of(cls, steps: list[tuple[int, Other]]) -> Others:
        names = ("instance", "x", "y", "yaw", "length", "width", "speed")
        columns = [np.array([getattr(other, name) for _, other in steps]) for name in names]
        return cls(np.array([step for step, _ in steps], int), *columns)

    def take(self, chosen: np.ndarray) -> Others:
        return Others(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    def after(self, seconds: float) -> Others:
        """All of them so much later, at constant velocity."""
        x = self.x + seconds * self.speed * np.cos(self.yaw)
        y = self.y + seconds * self.speed * np.sin(self.yaw)
        return replace(self, x=x, y=y)

    @property
    def corners(self) -> np.ndarray:
        """float64 [N, 4, 2]."""
        return rectangles(self.x, self.y, self.yaw, self.length, self.width)

    @property
    def radius(self) -> np.ndarray:
        return np.hypot(self.length, self.width) / 2


class Track:
    """A run as arrays; T steps ``RECORD_S`` apart."""

    def __init__(self, run: RunRecord):
        self.run = run
        egos = [step.ego for step in run.steps]
        self.time_s = np.array([step.time_s for step in run.steps])
        self.x, self.y, self.yaw, self.speed, self.accel, self.yaw_rate = (
            np.array([getattr(ego, name) for ego in egos]) for name in ("x", "y", "yaw", "speed", "accel", "yaw_rate")
        )

    def __len__(self) -> int:
        return len(self.time_s)

    @cached_property
    def corners(self) -> np.ndarray:
        """float64 [T, 4, 2]."""
        return ego_rectangles(self.x, self.y, self.yaw, self.run.vehicle)

    @cached_property
    def centers(self) -> np.ndarray:
        """float64 [T, 2], middle of the vehicle."""
        return self.corners.mean(axis=1)

    @cached_property
    def areas(self) -> Areas:
        return Areas.of(self.corners, self.run.map)

    @cached_property
    def others(self) -> Others:
        return Others.of([(index, other) for index, step in enumerate(self.run.steps) for other in step.others])

    @cached_property
    def obstacles(self) -> Others:
        """All that stands; ``step`` is -1."""
        return Others.of([(-1, other) for other in self.run.map.obstacles])

    def others_until(self, beyond_s: float) -> Others:
        """The others at all steps, and for some time after the last one, in which they go on at constant velocity."""
        last = len(self) - 1
        parts, end = [self.others], self.others.take(self.others.step == last)
        for beyond in range(1, round(beyond_s / RECORD_S) + 1):
            parts.append(replace(end.after(beyond * RECORD_S), step=end.step + beyond))
        return Others(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in Others.__dataclass_fields__)
        )


def ego_rectangles(x: np.ndarray, y: np.ndarray, yaw: np.ndarray, vehicle: Vehicle) -> np.ndarray:
    """Corners [T, 4, 2] of the ego vehicle, from its rear axle's poses."""
    ahead = vehicle.center_m
    middle_x, middle_y = x + ahead * np.cos(yaw), y + ahead * np.sin(yaw)
    return rectangles(middle_x, middle_y, yaw, vehicle.length_m, vehicle.width_m)


def bearing_deg(x, y, yaw, to_x, to_y) -> np.ndarray:
    """Angle between the heading at a pose and the direction to points, degrees in [0, 180]."""
    angle = np.arctan2(np.asarray(to_y) - y, np.asarray(to_x) - x) - yaw
    return np.degrees(np.abs(np.arctan2(np.sin(angle), np.cos(angle))))
