"""The road users of a world: random vehicles, pedestrians and signals along a route."""

from __future__ import annotations

from itertools import count

import numpy as np

from fastdrive_sim.roads import Route
from fastdrive_sim.traffic import Pedestrian, Traffic, TrafficLight, TrafficVehicle, random_color

START_M = 40.0  # where the ego vehicle starts along the route, with road behind it
LEFT_PAVEMENT_M = 6.6
RIGHT_PAVEMENT_M = -3.2


def populate(rng: np.random.Generator, route: Route, limit: float, seconds: float, ids: count) -> Traffic:
    """Traffic for ``seconds`` of driving from the route's start."""
    vehicles = _own_lane(rng, limit, seconds, ids) + _oncoming(rng, limit, ids)
    pedestrians = _walkers(rng, route, ids) + _crossers(rng, route, ids)
    return Traffic(route, vehicles, pedestrians, _lights(rng, route, ids))


def _kind(rng: np.random.Generator) -> str:
    return str(rng.choice(["car", "truck", "bus"], p=[0.78, 0.14, 0.08]))


def _own_lane(rng: np.random.Generator, limit: float, seconds: float, ids: count) -> list[TrafficVehicle]:
    vehicles = []
    if rng.random() < 0.45:
        s = START_M + 10.0
        for _ in range(int(rng.integers(1, 3))):
            s += rng.uniform(14, 35)
            halts, clock = [], rng.uniform(3, 9)
            while clock < seconds:
                pause = rng.uniform(2.0, 3.5)
                halts.append((clock, clock + pause))
                clock += pause + rng.uniform(9, 22)
            pace = limit * rng.uniform(0.6, 1.0)
            vehicles.append(TrafficVehicle(next(ids), _kind(rng), random_color(rng), s, pace * 0.7, pace, halts=halts))
    if rng.random() < 0.5:
        vehicles.append(
            TrafficVehicle(next(ids), _kind(rng), random_color(rng), START_M - rng.uniform(8, 25), limit * 0.5, limit)
        )
    return vehicles


def _oncoming(rng: np.random.Generator, limit: float, ids: count) -> list[TrafficVehicle]:
    return [
        TrafficVehicle(
            next(ids),
            _kind(rng),
            random_color(rng),
            START_M + rng.uniform(20, 160),
            limit * 0.6,
            limit * rng.uniform(0.4, 0.7),
            direction=-1,
        )
        for _ in range(int(rng.integers(0, 5)))
    ]


def _walkers(rng: np.random.Generator, route: Route, ids: count) -> list[Pedestrian]:
    found = []
    for s in np.arange(5, route.length, 28.0):
        if rng.random() < 0.6:
            offset = rng.uniform(-0.5, 0.5) + (LEFT_PAVEMENT_M if rng.random() < 0.5 else RIGHT_PAVEMENT_M)
            along = rng.uniform(0.8, 1.5) * rng.choice([-1, 1])
            found.append(
                Pedestrian(
                    next(ids), random_color(rng), s + rng.uniform(0, 20), offset, along, variant=int(rng.integers(99))
                )
            )
    return found


def _crossers(rng: np.random.Generator, route: Route, ids: count) -> list[Pedestrian]:
    """Waiting at the kerb, facing the road; they step out when the ego vehicle is 12 to 24 m away."""
    found = []
    s = START_M + rng.uniform(20, 60)
    while s < route.length - 20:
        clear = all(not junction.s_stop - 3 < s < junction.s_out + 3 for junction in route.junctions)
        if clear:
            from_right = rng.random() < 0.6
            offset = -2.9 if from_right else 6.3
            across = rng.uniform(1.2, 1.9) * (1 if from_right else -1)
            trigger = rng.uniform(12, 24)
            found.append(
                Pedestrian(next(ids), random_color(rng), s, offset, 0.0, across, trigger, variant=int(rng.integers(99)))
            )
        s += rng.uniform(60, 140)
    return found


def _lights(rng: np.random.Generator, route: Route, ids: count) -> list[TrafficLight]:
    return [
        TrafficLight(
            junction,
            (next(ids), next(ids)),
            red_first=bool(rng.random() < 0.5)
            and junction.s_stop > START_M + 40,  # nobody starts in front of a red light
            red_s=rng.uniform(3, 7),
            green_s=rng.uniform(0.5, 9),
        )
        for junction in route.junctions
        if junction.has_light
    ]
