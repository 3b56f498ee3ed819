"""Other road users: vehicles ahead, behind and oncoming, pedestrians, traffic lights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np

from fastdrive_sim.expert import FRONT_M, STANDSTILL_GAP_M, bend_speed, follow
from fastdrive_sim.roads import BOX_M, LANE_M, Junction, Route
from fastdrive_sim.types import Thing

VEHICLES = {"car": (4.5, 1.9, 1.6), "truck": (7.5, 2.4, 3.2), "bus": (11.0, 2.5, 3.1)}
RED_YELLOW_S = 1.0  # red and yellow together announce green
YELLOW_S = 2.0
SIGHT_M = 50.0


@dataclass
class TrafficVehicle:
    """A vehicle on the route's own lane (``direction`` 1) or the oncoming one (-1)."""

    instance: int
    kind: str
    color: tuple[int, int, int]
    s: float  # arc length of its middle
    speed: float
    limit: float
    direction: int = 1
    accel: float = 0.0
    halts: list[tuple[float, float]] = field(default_factory=list)  # (from, to) s in which it stops without a cause

    @property
    def length(self) -> float:
        return VEHICLES[self.kind][0]

    def drive(self, route: Route, ahead: list[tuple[float, float]], time_s: float, dt: float) -> None:
        """Advance; ``ahead`` lists (gap m, speed m/s) of what this driver reacts to."""
        wanted = bend_speed(route, self.s, self.speed, self.limit) if self.direction > 0 else self.limit
        halted = any(start <= time_s < end for start, end in self.halts)
        accel = -3.0 if halted else follow(self.speed, wanted, ahead)
        new_speed = max(self.speed + accel * dt, 0.0)
        self.accel = (new_speed - self.speed) / dt
        self.s += self.direction * 0.5 * (self.speed + new_speed) * dt
        self.speed = new_speed

    def thing(self, route: Route) -> Thing:
        x, y, yaw = route.at(self.s, 0.0 if self.direction > 0 else LANE_M)
        braking = self.accel < -0.5 or self.speed < 0.05
        yaw = yaw if self.direction > 0 else yaw + math.pi
        state = "brake" if braking else ""
        return Thing(
            self.instance, self.kind, x, y, yaw, VEHICLES[self.kind], self.color, speed=self.speed, state=state
        )


@dataclass
class Pedestrian:
    """Walks along the pavement, or waits and crosses the road once the ego vehicle is near enough."""

    instance: int
    color: tuple[int, int, int]
    s: float
    offset: float
    along: float = 0.0  # m/s
    across: float = 0.0  # m/s while crossing, sign is the direction
    trigger_m: float = 0.0  # crosses when the front bumper is this near; 0: never
    variant: int = 0
    clear_m: float | None = None  # offset at which it comes out from behind something; None: it is in the open
    crossing: bool = False

    def step(self, front_s: float, dt: float) -> None:
        if self.trigger_m and not self.crossing and 0 < self.s - front_s < self.trigger_m:
            self.crossing = True
        if self.crossing:
            self.offset += self.across * dt
            if abs(self.offset - 1.75) > 8:  # the other pavement is reached
                self.crossing, self.trigger_m = False, 0.0
        else:
            self.s += self.along * dt

    def blocks(self) -> bool:
        """Whether a driver in the ego lane waits for it: on the road and not yet past the lane."""
        past = self.offset > 2.2 if self.across > 0 else self.offset < -2.4
        return self.crossing and self._is_out() and not past and -4.2 < self.offset < 5.5

    def _is_out(self) -> bool:
        """Whether a driver can see it: drivers do not brake for a pedestrian behind a truck."""
        return self.clear_m is None or (self.offset - self.clear_m) * self.across > 0

    def thing(self, route: Route) -> Thing:
        x, y, yaw = route.at(self.s, self.offset)
        if self.crossing or self.trigger_m:
            yaw += math.copysign(math.pi / 2, self.across)
            speed = abs(self.across) if self.crossing else 0.0
        else:
            yaw, speed = (yaw if self.along >= 0 else yaw + math.pi), abs(self.along)
        return Thing(
            self.instance, "pedestrian", x, y, yaw, (0.4, 0.6, 1.75), self.color, speed=speed, variant=self.variant
        )


@dataclass
class TrafficLight:
    """The signal of one junction, for the ego's leg. Its cycle starts once the ego vehicle comes near."""

    junction: Junction
    instances: tuple[int, int]
    red_first: bool
    red_s: float
    green_s: float
    elapsed: float | None = None

    def step(self, front_s: float, dt: float) -> None:
        if self.elapsed is None and self.junction.s_stop - front_s < 38:
            self.elapsed = 0.0
        elif self.elapsed is not None:
            self.elapsed += dt

    @property
    def state(self) -> str:
        """green -> yellow -> red -> red_yellow -> green, or from red at once."""
        if self.elapsed is None:
            return "red" if self.red_first else "green"
        clock = self.elapsed
        if not self.red_first:
            if clock < self.green_s:
                return "green"
            if clock < self.green_s + YELLOW_S:
                return "yellow"
            clock -= self.green_s + YELLOW_S
        if clock < self.red_s:
            return "red"
        return "red_yellow" if clock < self.red_s + RED_YELLOW_S else "green"

    def things(self) -> list[Thing]:
        facing = self.junction.heading + math.pi
        places = ((BOX_M + 1.0, -5.2), (BOX_M + 1.0, 5.2))
        return [
            Thing(
                instance,
                "traffic_light",
                *self.junction.point(*place),
                facing,
                (0.5, 0.9, 5.0),
                (40, 40, 40),
                state=self.state,
            )
            for instance, place in zip(self.instances, places, strict=True)
        ]


@dataclass
class Traffic:
    """All that moves around the ego vehicle."""

    route: Route
    vehicles: list[TrafficVehicle]
    pedestrians: list[Pedestrian]
    lights: list[TrafficLight]

    def step(self, ego_s: float, ego_speed: float, time_s: float, dt: float) -> None:
        front = ego_s + FRONT_M
        for light in self.lights:
            light.step(front, dt)
        for pedestrian in self.pedestrians:
            pedestrian.step(front, dt)
        own = sorted((v for v in self.vehicles if v.direction > 0), key=lambda v: v.s)
        for vehicle, leader in zip_longest(own, own[1:]):
            ahead = (
                [] if leader is None else [(leader.s - vehicle.s - (leader.length + vehicle.length) / 2, leader.speed)]
            )
            nose = vehicle.s + vehicle.length / 2
            if vehicle.s < ego_s and (leader is None or leader.s > ego_s):
                ahead.append((ego_s - 1.0 - nose, ego_speed))
            ahead += self.stops(nose, vehicle.speed)
            vehicle.drive(self.route, ahead, time_s, dt)
        for vehicle in (v for v in self.vehicles if v.direction < 0):
            vehicle.drive(self.route, [], time_s, dt)
            if vehicle.s < ego_s - 45:
                vehicle.s = ego_s + 90 + 20 * (vehicle.instance % 3)

    def stops(self, nose: float, speed: float) -> list[tuple[float, float]]:
        """Stop lines and pedestrians that a driver with its nose at ``nose`` reacts to, as (gap, speed)."""
        found = []
        for light in self.lights:
            gap = light.junction.s_stop - nose
            needs = speed**2 / (2 * 3.5)
            closed = light.state in ("red", "red_yellow") or (light.state == "yellow" and gap > needs)
            if closed and gap > -1.5:
                found.append((gap + STANDSTILL_GAP_M - 0.5, 0.0))
        for pedestrian in self.pedestrians:
            gap = pedestrian.s - 1.0 - nose
            if pedestrian.blocks() and gap > -0.5:
                found.append((gap, 0.0))
        return found

    def obstacles(self, ego_s: float, ego_speed: float) -> list[tuple[float, float]]:
        """What the ego driver reacts to, as (gap, speed)."""
        front = ego_s + FRONT_M
        leaders = [v for v in self.vehicles if v.direction > 0 and v.s > ego_s]
        nearest = [(v.s - v.length / 2 - front, v.speed) for v in sorted(leaders, key=lambda v: v.s)[:1]]
        return [*self.stops(front, ego_speed), *nearest]

    def ahead(self, ego_s: float) -> dict[str, float | str]:
        """What an attentive driver sees ahead within 50 m: labels for training, gaps in metres from the bumper."""
        front = ego_s + FRONT_M
        found: dict[str, float | str] = {"light": "none"}
        for light in self.lights:
            gap = light.junction.s_stop - front
            if -1.5 < gap < SIGHT_M:
                found |= {"light": light.state, "light_gap_m": round(gap, 2)}
                break
        leaders = [v.s - v.length / 2 - front for v in self.vehicles if v.direction > 0 and v.s > ego_s]
        walking = [p.s - front for p in self.pedestrians if p.blocks() and p.s > front]
        for name, gaps in (("vehicle_gap_m", leaders), ("pedestrian_gap_m", walking)):
            if gaps and min(gaps) < SIGHT_M:
                found[name] = round(min(gaps), 2)
        return found

    def things(self, ego_s: float) -> list[Thing]:
        near = lambda s: -60 < s - ego_s < 130  # noqa: E731
        moving = [v.thing(self.route) for v in self.vehicles if near(v.s)]
        walking = [p.thing(self.route) for p in self.pedestrians if near(p.s)]
        return moving + walking + [thing for light in self.lights for thing in light.things()]


def random_color(rng: np.random.Generator) -> tuple[int, int, int]:
    """A color of a car or of clothes."""
    red, green, blue = (int(v) for v in rng.integers(20, 235, 3))
    return red, green, blue
