"""What a family of scenarios is, and the parts that families put their scenes together from."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np

from fastdrive_sim.drive.agents import SIZES, RoadVehicle, Walker
from fastdrive_sim.drive.paths import oncoming_path
from fastdrive_sim.drive.scene import Detour, DriveScene
from fastdrive_sim.population import LEFT_PAVEMENT_M, RIGHT_PAVEMENT_M, START_M
from fastdrive_sim.roads import STEP_M, Bend, Crossing, Junction, Route, Straight, route_of
from fastdrive_sim.traffic import TrafficLight, random_color
from fastdrive_sim.types import Thing
from fastdrive_sim.world import build_world

Part = Straight | Bend | Crossing
WALK_M = 25.0  # that bystanders go


class Family:
    """A kind of scenario. A subclass is a file of this package and an entry in ``FAMILIES``."""

    name = ""
    summary = ""

    def scene(self, seed: int) -> DriveScene:
        """The scenario of a seed, at its start. The same seed gives the same one."""
        draft = SceneDraft(self.name, seed)
        self.prepare(draft)
        return draft.finish()

    def prepare(self, draft: SceneDraft) -> None:
        """Draw the parameters (``draft.draw``) and place what the scenario needs."""
        raise NotImplementedError


class SceneDraft:
    """A scene in the making. Random numbers follow from the family's name and the seed alone."""

    def __init__(self, family: str, seed: int):
        self.family, self.seed = family, seed
        self.rng = np.random.default_rng((zlib.crc32(family.encode()), seed))
        self.parameters: dict[str, Any] = {}
        self.ids = count(1)
        self.limit = 0.0
        self.start_speed = 0.0
        self.start_offset = 0.0
        self.goal_m = 0.0
        self.timeout_s = 0.0
        self.drivers: list[RoadVehicle] = []
        self.walkers: list[Walker] = []
        self.lights: list[TrafficLight] = []
        self.detours: list[Detour] = []
        self.extra: list[Thing] = []

    def draw(self, name: str, low: float, high: float) -> float:
        """A parameter of the scenario, uniform between two values; it is recorded."""
        value = round(float(self.rng.uniform(low, high)), 3)
        self.parameters[name] = value
        return value

    def choose(self, name: str, choices: Sequence[Any]) -> Any:
        """A parameter, one of several; it is recorded."""
        value = choices[int(self.rng.integers(len(choices)))]
        self.parameters[name] = value
        return value

    def road(self, parts: Sequence[Part], goal_m: float) -> Route:
        """The road, with 40 m before the start and enough after the goal; ``goal_m`` is from the start."""
        parts = [Straight(START_M), *parts]
        length = sum(_length(part) for part in parts)
        self.route = route_of([*parts, Straight(max(START_M + goal_m + 75.0 - length, 20.0))])
        self.goal_m = goal_m
        return self.route

    def pace(self, low: float = 8.0, high: float = 12.5) -> float:
        """The speed limit, at which the ego vehicle starts unless ``start_speed`` is set."""
        self.limit = self.draw("limit", low, high)
        self.start_speed = round(0.9 * self.limit, 3)
        return self.limit

    def s(self, from_start_m: float) -> float:
        """Arc length on the route of a place so far from the start."""
        return START_M + from_start_m

    def junction(self, index: int = 0) -> Junction:
        return self.route.junctions[index]

    def vehicle(self, kind: str, path: Route, s: float, speed: float, **more: Any) -> RoadVehicle:
        """Adds a vehicle; ``s`` is the arc length of its middle on the path."""
        look = {"color": random_color(self.rng), "variant": int(self.rng.integers(99))}
        limit = more.pop("limit", max(speed, 1.0))
        user = RoadVehicle(next(self.ids), kind, path=path, s=s, speed=speed, limit=limit, **look, **more)
        self.drivers.append(user)
        return user

    def walker(self, s: float, from_offset: float, to_offset: float, pace: float, trigger_s: float | None) -> Walker:
        """Adds somebody who crosses the road at arc length ``s``."""
        x0, y0, _ = self.route.at(s, from_offset)
        x1, y1, _ = self.route.at(s, to_offset)
        color, variant = random_color(self.rng), int(self.rng.integers(99))
        user = Walker(next(self.ids), color, (x0, y0), (x1, y1), pace, trigger_s, s, variant)
        self.walkers.append(user)
        return user

    def parked(self, kind: str, s: float, offset: float, oncoming: bool = False) -> Thing:
        """Adds something that stands for the whole run; ``s`` and ``offset`` of its middle."""
        x, y, yaw = self.route.at(s, offset)
        size = SIZES.get(kind) or {"barrier": (2.9, 0.5, 0.9), "traffic_cone": (0.4, 0.4, 0.75)}[kind]
        color = random_color(self.rng) if kind in SIZES else (220, 90, 40)
        turned = yaw + np.pi if oncoming else yaw
        thing = Thing(next(self.ids), kind, x, y, turned, size, color, variant=int(self.rng.integers(99)))
        self.extra.append(thing)
        return thing

    def light(self, junction: Junction, red_first: bool, red_s: float, green_s: float = 6.0) -> TrafficLight:
        signal = TrafficLight(junction, (next(self.ids), next(self.ids)), red_first, red_s, green_s)
        self.lights.append(signal)
        return signal

    def bystanders(self, oncoming: int = 2) -> None:
        """Some oncoming vehicles and people on the pavements, who only are there."""
        end = min(self.s(self.goal_m) + 50, self.route.length - 5)
        clear = max((junction.s_out for junction in self.route.junctions), default=0.0)
        if end - clear > 60:
            path = oncoming_path(self.route, end, max(clear, 2.0))
            for index in range(int(self.rng.integers(0, oncoming + 1))):
                kind = str(self.rng.choice(["car", "car", "truck"]))
                speed = float(self.limit * self.rng.uniform(0.6, 0.9))
                self.vehicle(kind, path, 5.0 + 25.0 * index + float(self.rng.uniform(0, 12)), speed)
        for _ in range(int(self.rng.integers(0, 4))):
            s = self.s(float(self.rng.uniform(5, self.goal_m)))
            offset = LEFT_PAVEMENT_M if self.rng.random() < 0.5 else RIGHT_PAVEMENT_M - 0.4
            to_s = s + float(self.rng.choice([-1, 1])) * WALK_M
            look = random_color(self.rng), int(self.rng.integers(99))
            pace = float(self.rng.uniform(0.8, 1.5))
            if self._is_straight(min(s, to_s), max(s, to_s)):
                (a, b, _), (c, d, _) = self.route.at(s, offset), self.route.at(to_s, offset)
                self.walkers.append(Walker(next(self.ids), look[0], (a, b), (c, d), pace, variant=look[1]))

    def _is_straight(self, from_s: float, to_s: float) -> bool:
        """Whether a straight way beside the road stays beside it."""
        bent = np.abs(self.route.curvature[int(from_s / STEP_M) : int(to_s / STEP_M) + 1]).max() > 1e-3
        crossed = any(each.s_stop < to_s and from_s < each.s_out + 6.0 for each in self.route.junctions)
        return not bent and not crossed

    def finish(self) -> DriveScene:
        """The scene; its scenery leaves the places of what was added free."""
        world = build_world(self.seed, self.rng, self.route, self.ids)
        kept = tuple(thing for thing in world.things if self._may_stay(thing))
        scene = DriveScene(
            self.family, self.seed, self.parameters, self.route, replace(world, things=(*kept, *self.extra)),
            START_M, self.start_speed, self.goal_m, self.limit,
            self.timeout_s or round(12.0 + 2.5 * self.goal_m / self.limit, 1),
            self.drivers, self.walkers, self.lights, tuple(self.detours), self.start_offset,
        )  # fmt: skip
        return scene

    def _may_stay(self, thing: Thing) -> bool:
        """Nothing of the scenery stands in the way of somebody who was added, or in something that was."""
        radius = 0.5 * max(thing.size[:2])
        for walker in self.walkers:
            a, b = np.array(walker.start), np.array(walker.end)
            part = np.clip(((thing.x, thing.y) - a) @ (b - a) / max(float((b - a) @ (b - a)), 1e-6), 0, 1)
            x, y = a + part * (b - a)
            if np.hypot(thing.x - x, thing.y - y) < radius + 0.6:
                return False
        for other in self.extra:
            if np.hypot(thing.x - other.x, thing.y - other.y) < radius + 0.5 * max(other.size[:2]):
                return False
        return True


def _length(part: Part) -> float:
    if isinstance(part, Straight):
        return part.length_m
    if isinstance(part, Bend):
        return part.radius_m * abs(part.angle_rad)
    return 24.0 + {"left": 18.5, "right": 13.0, "straight": 20.0}[part.turn]
