"""Disturbances of a drive: now and then steering and drive train do something else than the controller wants.

What the expert does from the states that this leads to is what a planner has to learn to find back (DART, Laskey et
al. 2017: noise in the supervisor's actions while data are collected).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from fastdrive_sim.drive.contact import overlap
from fastdrive_sim.drive.scene import DriveScene
from fastdrive_sim.drive.tracking import LOOKAHEAD_S, MIN_LOOKAHEAD_M, Tracker
from fastdrive_sim.drive.types import EgoStep, Other, corners, other_corners
from fastdrive_sim.drive.vehicle import Control

MAX_OFFSET_M, MAX_SPEED_MPS = 0.7, 2.0  # at which a disturbance ends
MAX_HEADING_RAD = math.radians(5.0)  # up to which it steers
LASTING_S, PAUSE_S = (0.5, 1.5), (1.0, 3.0)
SLOWEST_MPS = 2.0  # slower than this nothing is disturbed
CLEAR_SIDE_M, CLEAR_M, CLEAR_S = 0.8, 4.0, 1.3  # what must be free beside the vehicle and ahead of it
MAX_STEER_RAD, MAX_ACCEL = 0.25, 3.5  # of a disturbance
START_OFFSET_M, START_HEADING_RAD, START_SPEED = 0.6, 0.06, (0.5, 1.1)  # of a disturbed start; speed: a factor
PLAIN_STARTS = 0.25  # of all


def random_start(scene: DriveScene, rng: np.random.Generator) -> EgoStep:
    """The scene's start, or a state near it."""
    start = scene.start()
    if rng.random() < PLAIN_STARTS:
        return start
    offset, heading = rng.uniform(-START_OFFSET_M, START_OFFSET_M), rng.uniform(-START_HEADING_RAD, START_HEADING_RAD)
    x, y, yaw = scene.route.at(scene.start_s, float(offset))
    speed = scene.start_speed * float(rng.uniform(*START_SPEED))
    return replace(start, x=x, y=y, yaw=yaw + float(heading), speed=speed, yaw_rate=0.0)


@dataclass(frozen=True)
class _Push:
    """What is added to the controller's command until a time."""

    until_s: float
    control: Control
    speed: float  # of the vehicle when it began


class DisturbedTracker(Tracker):
    """A controller whose commands do not always arrive as it gives them.

    A disturbance begins only where nothing is in the way, and ends when its time is over or the vehicle is as far off
    as it may be.
    """

    def __init__(self, scene: DriveScene, rng: np.random.Generator):
        super().__init__(scene.vehicle)
        self._scene, self._rng = scene, rng
        self._push: _Push | None = None
        self._next_s = float(rng.uniform(0.0, PAUSE_S[1]))
        self._standing = scene.map().obstacles

    def control(self, state: EgoStep, time_s: float) -> Control:
        """As that of ``Tracker``, and what is added to it."""
        wanted = super().control(state, time_s)
        if self._push is None and time_s >= self._next_s:
            self._begin(state, time_s)
        elif self._push is not None and (time_s >= self._push.until_s or self._is_far_off(state, self._push)):
            self._push, self._next_s = None, time_s + float(self._rng.uniform(*PAUSE_S))
        if self._push is None:
            return wanted
        added, limits = self._push.control, self._limits
        _, heading = self._scene.lane_error(state)
        turns = added.steer if heading * math.copysign(1.0, added.steer) < MAX_HEADING_RAD else 0.0
        accel = min(max(wanted.accel + added.accel, -limits.max_brake), limits.max_accel)
        return Control(accel, min(max(wanted.steer + turns, -limits.max_steer_rad), limits.max_steer_rad))

    def _begin(self, state: EgoStep, time_s: float) -> None:
        if state.speed < SLOWEST_MPS or not self._is_clear(state):
            self._next_s = time_s + 0.5
            return
        rng = self._rng
        lasting = float(rng.uniform(*LASTING_S))
        kind = rng.random()  # steering, drive train or both
        steer = self._added_steer(state.speed) if kind < 0.75 else 0.0
        accel = float(rng.choice([-1, 1]) * rng.uniform(0.7, 2.4)) / lasting if kind > 0.45 else 0.0
        control = Control(min(max(2.0 * accel, -MAX_ACCEL), MAX_ACCEL), steer)
        self._push = _Push(time_s + lasting, control, state.speed)

    def _added_steer(self, speed: float) -> float:
        """The angle at which pure pursuit, which steers against it, stays some decimetres off its path."""
        reach = max(MIN_LOOKAHEAD_M, LOOKAHEAD_S * speed)
        offset = float(self._rng.choice([-1, 1]) * self._rng.uniform(0.3, 1.2))
        return min(max(2.6 * self._base * offset / reach**2, -MAX_STEER_RAD), MAX_STEER_RAD)

    def _is_far_off(self, state: EgoStep, push: _Push) -> bool:
        offset, _ = self._scene.lane_error(state)
        change = abs(state.speed - push.speed)
        return abs(offset) > MAX_OFFSET_M or change > MAX_SPEED_MPS or state.speed < SLOWEST_MPS / 2

    def _is_clear(self, state: EgoStep) -> bool:
        """Whether nothing is near the way of the next moments, and no signal asks the vehicle to stop."""
        scene, vehicle = self._scene, self._scene.vehicle
        gaps = scene.ahead(state)
        near = CLEAR_M + CLEAR_S * state.speed
        if gaps["light"] not in ("none", "green") and float(gaps["light_gap_m"]) < near:
            return False
        length, width = vehicle.length_m + near, vehicle.width_m + 2 * CLEAR_SIDE_M
        middle = vehicle.center_m + near / 2
        x, y = state.x + middle * math.cos(state.yaw), state.y + middle * math.sin(state.yaw)
        footprint = corners(x, y, state.yaw, length, width)
        return not any(overlap(footprint, other_corners(each)) for each in self._near(x, y, length))

    def _near(self, x: float, y: float, reach: float) -> list[Other]:
        return [
            each
            for each in (*self._scene.others(), *self._standing)
            if math.hypot(each.x - x, each.y - y) < reach / 2 + each.length / 2 + 5.0
        ]
