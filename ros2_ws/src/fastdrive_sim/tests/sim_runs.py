"""Made runs of the closed loop on a straight road along x, whose scores are known by hand.

The ego's lane is y in [-2, 1.75], the oncoming one [1.75, 5.5]; the road may be driven on from y = -2 to 5.5. The
vehicle is 4 m long and 2 m wide, its rear axle 1 m before its rear bumper: its middle is 1 m ahead of its position.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fastdrive_node.types import Vehicle
from fastdrive_sim.drive.types import (
    RECORD_S,
    Collision,
    DriveRow,
    EgoStep,
    Lane,
    Light,
    Other,
    PlanStep,
    RunRecord,
    RunStep,
    StaticMap,
)

VEHICLE = Vehicle(length_m=4.0, width_m=2.0, rear_overhang_m=1.0)
GOAL_M = 100.0
LENGTH_M = 300.0


def box(x0: float, x1: float, y0: float, y1: float) -> np.ndarray:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


ROAD = box(-50, LENGTH_M, -2.0, 5.5)
OWN, ONCOMING = box(-50, LENGTH_M, -2.0, 1.75), box(-50, LENGTH_M, 1.75, 5.5)
LINE = np.stack([np.arange(0, LENGTH_M, 0.5), np.zeros(int(LENGTH_M / 0.5))], axis=1)


def make_map(junctions: tuple[np.ndarray, ...] = (), obstacles: tuple[Other, ...] = ()) -> StaticMap:
    lanes = (Lane(OWN, LINE, False), Lane(ONCOMING, LINE[::-1] + np.array([0, 3.5]), True))
    return StaticMap(LINE, 0.5, GOAL_M, (ROAD,), lanes, junctions, obstacles, 12.0)


def steady(seconds: float, speed: float = 5.0, y: float = 0.0, x: float = 0.0) -> list[EgoStep]:
    """Straight on at one speed."""
    return [ego(x + speed * RECORD_S * index, y, speed) for index in range(round(seconds / RECORD_S) + 1)]


def ego(x: float, y: float = 0.0, speed: float = 5.0, yaw: float = 0.0, accel: float = 0.0) -> EgoStep:
    return EgoStep(x, y, yaw, speed, accel, 0.0, 0.0)


def braking(first: float, decel: float, seconds: float) -> list[EgoStep]:
    """Braking from a speed at a deceleration."""
    times = RECORD_S * np.arange(round(seconds / RECORD_S) + 1)
    return [ego(first * t - decel * t * t / 2, 0.0, first - decel * t, accel=-decel) for t in times]


def make_run(
    egos: list[EgoStep],
    others: Callable[[float], tuple[Other, ...]] = lambda _: (),
    lights: Callable[[float], tuple[Light, ...]] = lambda _: (),
    plans: tuple[PlanStep, ...] = (),
    map_: StaticMap | None = None,
    **more,
) -> RunRecord:
    """A run through these states; others and lights by time. The expert went as far unless ``more`` says otherwise."""
    steps = tuple(
        RunStep(round(RECORD_S * i, 6), each, others(RECORD_S * i), lights(RECORD_S * i), "straight", each.x, -1, 0.0)
        for i, each in enumerate(egos)
    )
    run = RunRecord(
        "made", 0, DriveRow("none"), map_ or make_map(), steps, plans, (), "completed",
        expert_progress_m=np.array([each.x for each in egos]), vehicle=VEHICLE,
    )  # fmt: skip
    return replace(run, **more)


def parked(x: float, y: float = 0.0, kind: str = "car", instance: int = 9) -> Other:
    """Something of 4 x 2 m that stands."""
    return Other(instance, kind, x, y, 0.0, 4.0, 2.0)


def hit(other: Other, at: EgoStep, is_static: bool = True) -> Collision:
    velocity = np.array([np.cos(at.yaw), np.sin(at.yaw)]) * at.speed
    theirs = np.array([np.cos(other.yaw), np.sin(other.yaw)]) * other.speed
    return Collision(1.0, other, is_static, at.speed, float(np.linalg.norm(velocity - theirs)), "front", at)


def straight_plan(at: EgoStep, time_s: float, speed: float, y: float = 0.0, points: int = 6) -> PlanStep:
    """Waypoints every 0.5 s straight on, ``y`` left of the vehicle."""
    times = 0.5 * np.arange(1, points + 1)
    xy = np.stack([at.x + speed * times, np.full(points, at.y + y)], axis=1)
    return PlanStep(time_s, "planned", "", time_s, xy, time_s + times, at)
