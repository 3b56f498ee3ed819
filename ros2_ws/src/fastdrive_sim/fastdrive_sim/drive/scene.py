"""A scenario of one family and seed, ready to run: road, scenery, and road users that react to the ego vehicle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from fastdrive_node.types import Vehicle
from fastdrive_sim.drive.agents import ATTENTION_M, DECISION_S, RoadUser, RoadVehicle, Stop, Walker, gaps_in_lane
from fastdrive_sim.drive.static_map import red_area, static_map, stop_line
from fastdrive_sim.drive.types import EgoStep, Light, Other, StaticMap
from fastdrive_sim.drive.vehicle import SUBSTEP_S
from fastdrive_sim.roads import Route
from fastdrive_sim.sim import COMMAND_REACH_M, ROUTE_AHEAD_M
from fastdrive_sim.traffic import VEHICLES, TrafficLight
from fastdrive_sim.types import EgoPose, Snapshot, World

SIGHT_M = 100.0  # others within this distance are recorded and drawn
DECISION_STEPS = round(DECISION_S / SUBSTEP_S)
EGO = 0  # instance of the ego vehicle, which no thing has


@dataclass(frozen=True)
class Detour:
    """Where the expert leaves the middle of its lane: ``offset`` m to the left, from one arc length to another."""

    from_s: float
    to_s: float
    offset: float


@dataclass
class DriveScene:
    """The state of a scenario. ``step`` advances all but the ego vehicle."""

    family: str
    seed: int
    parameters: dict
    route: Route
    world: World
    start_s: float  # of the rear axle
    start_speed: float
    goal_m: float  # from start_s
    limit: float  # m/s
    timeout_s: float
    drivers: list[RoadVehicle] = field(default_factory=list)
    walkers: list[Walker] = field(default_factory=list)
    lights: list[TrafficLight] = field(default_factory=list)
    detours: tuple[Detour, ...] = ()
    start_offset: float = 0.0  # left of the lane's middle
    vehicle: Vehicle = field(default_factory=Vehicle)
    ego_s: float = 0.0  # of the rear axle
    _steps: int = 0
    _others: tuple[Other, ...] | None = None

    def __post_init__(self) -> None:
        self.ego_s = self.start_s

    @cached_property
    def _parked(self) -> list[Other]:
        return [
            Other(each.instance, each.kind, each.x, each.y, each.yaw, *each.size[:2])
            for each in self.world.things
            if each.kind in VEHICLES
        ]

    @property
    def front_m(self) -> float:
        """From the rear axle to the front bumper."""
        return self.vehicle.length_m - self.vehicle.rear_overhang_m

    def map(self) -> StaticMap:
        return static_map(self.route, self.world, self.start_s, self.goal_m, self.limit)

    def start(self, before_s: float = 0.0) -> EgoStep:
        """The ego vehicle at the start, or up to 2.5 s before it at the same speed."""
        s = self.start_s - before_s * self.start_speed
        x, y, yaw = self.route.at(s, self.start_offset)
        return EgoStep(x, y, yaw, self.start_speed, 0.0, self.route.curvature_at(s) * self.start_speed, 0.0)

    def step(self, ego: EgoStep, time_s: float, dt: float) -> None:
        """Advance the others by ``dt``; they see the ego vehicle where it is now."""
        if self._steps % DECISION_STEPS == 0:
            self._decide(ego, time_s)
        self._steps += 1
        front = self.ego_s + self.front_m
        for light in self.lights:
            light.step(front, dt)
        for walker in self.walkers:
            walker.step(front, ego.speed, dt)
        for driver in self.drivers:
            driver.step(time_s, dt)
        self._others = None

    def _decide(self, ego: EgoStep, time_s: float) -> None:
        self.ego_s, _ = self.route.project(ego.x, ego.y, self.ego_s)
        everybody = [*self.others(), self.ego_as_other(ego)]
        stops = [Stop(light.junction.s_stop, light.state != "green") for light in self.lights]
        for driver in self.drivers:
            driver.decide(time_s, everybody, stops if driver.path is self.route else ())

    def ego_as_other(self, ego: EgoStep) -> Other:
        ahead = self.vehicle.center_m
        x, y = ego.x + ahead * math.cos(ego.yaw), ego.y + ahead * math.sin(ego.yaw)
        return Other(EGO, "car", x, y, ego.yaw, self.vehicle.length_m, self.vehicle.width_m, ego.speed)

    def users(self) -> Sequence[RoadUser]:
        return [*self.drivers, *self.walkers]

    def others(self) -> tuple[Other, ...]:
        """All other road users now."""
        if self._others is None:
            self._others = tuple(user.other() for user in self.users())
        return self._others

    def others_near(self, ego: EgoStep) -> tuple[Other, ...]:
        """Those within ``SIGHT_M`` of the ego vehicle."""
        return tuple(each for each in self.others() if math.hypot(each.x - ego.x, each.y - ego.y) < SIGHT_M)

    def light_states(self) -> tuple[Light, ...]:
        return tuple(
            Light(light.instances[0], light.state, stop_line(self.route, light.junction), self._areas(light))
            for light in self.lights
        )

    def _areas(self, light: TrafficLight) -> tuple[tuple[float, float], ...]:
        return red_area(self.route, light.junction)

    def lane_error(self, ego: EgoStep) -> tuple[float, float]:
        """The vehicle's offset from the middle of its lane, m to the left, and its heading from the lane's, rad."""
        s, left = self.route.project(ego.x, ego.y, self.ego_s)
        return left, math.remainder(ego.yaw - self.route.at(s)[2], 2 * math.pi)

    def ahead(self, ego: EgoStep) -> dict[str, float | str]:
        """What an attentive driver sees ahead in its lane, as ``traffic.Traffic.ahead``; a cyclist is a vehicle."""
        front = self.route.project(ego.x, ego.y, self.ego_s)[0] + self.front_m
        found: dict[str, float | str] = {"light": "none"}
        for light in self.lights:
            gap = light.junction.s_stop - front
            if -1.5 < gap < ATTENTION_M:
                found |= {"light": light.state, "light_gap_m": round(gap, 2)}
                break
        return found | gaps_in_lane(self.route, front, [*self.others(), *self._parked])

    @property
    def command(self) -> str:
        """The way at the next junction within reach, as in the datasets."""
        junction = self.route.next_junction(self.ego_s)
        return junction.turn if junction is not None and junction.s_in - self.ego_s < COMMAND_REACH_M else "straight"

    def snapshot(self, ego: EgoStep, time_s: float) -> Snapshot:
        """What the cameras see now."""
        near = {other.instance for other in self.others_near(ego)}
        things = [user.thing() for user in self.users() if user.instance in near] + [
            thing for light in self.lights for thing in light.things()
        ]
        way = np.array([self.route.at(self.ego_s + step)[:2] for step in np.arange(0, ROUTE_AHEAD_M, 1.0)])
        return Snapshot(time_s, pose_of(ego), tuple(things), self.command, way)


def pose_of(ego: EgoStep) -> EgoPose:
    """The state as the renderer and the datasets have it."""
    return EgoPose(ego.x, ego.y, ego.yaw, ego.speed, ego.accel, ego.yaw_rate)
