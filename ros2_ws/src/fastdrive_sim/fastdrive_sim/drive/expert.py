"""The expert of the closed loop: it knows the true state, though not the future, and plans as a VLA does.

As in PDM-Closed (Dauner et al. 2023) it rolls out a few proposals (speeds by IDM, and stops) against road users that
keep their speed and way, and takes the best one. The same controller and vehicle follow its plan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastdrive_sim.drive.prediction import Predicted, obstacles_in_lane, predict
from fastdrive_sim.drive.scene import DriveScene
from fastdrive_sim.drive.types import EgoStep
from fastdrive_sim.expert import COMFORT_ACCEL, COMFORT_BRAKE, HEADWAY_S, LATERAL_ACCEL, STANDSTILL_GAP_M
from fastdrive_sim.roads import STEP_M

STEP_S, STEPS = 0.2, 22  # of the proposals: 4.4 s
WAYPOINT_S, WAYPOINTS = 0.5, 6
SPEEDS = (1.0, 0.75, 0.5, 0.25, 0.0)  # times the highest sensible speed, one proposal each
MAX_BRAKE = 6.0
AHEAD_M = 0.8  # kept before and behind others
NOBODY_M = 1e6
DETOUR_M = 6.0  # along the road, in which most of a change of the offset is made
TURN_M, TURN_S = 4.0, 0.75  # of a label, in which the vehicle's heading turns to the plan's; the larger one counts
MAX_TURN_RAD = 0.8


@dataclass(frozen=True)
class Rollouts:
    """Proposals; arrays [P, STEPS + 1]."""

    s: np.ndarray  # of the rear axle
    left: np.ndarray
    speed: np.ndarray


class Expert:
    """Plans for one scene."""

    def __init__(self, scene: DriveScene):
        self._scene = scene
        self._obstacles = obstacles_in_lane(scene)
        self._cap = np.minimum(
            np.sqrt(0.8 * LATERAL_ACCEL / np.maximum(np.abs(scene.route.curvature), 1e-4)), scene.limit
        )
        for index in range(len(self._cap) - 2, -1, -1):  # from which every bend is reached comfortably
            slower = np.sqrt(self._cap[index + 1] ** 2 + 2 * 0.7 * COMFORT_BRAKE * STEP_M)
            self._cap[index] = min(self._cap[index], slower)

    def plan(self, ego: EgoStep) -> tuple[np.ndarray, np.ndarray]:
        """Waypoints in the world [6, 2] for the present state, and their times from now [6]."""
        along, left = self._choose(ego, *self._scene.route.project(ego.x, ego.y, self._scene.ego_s))
        return self._in_world(along, left), WAYPOINT_S * np.arange(1, WAYPOINTS + 1)

    def label(self, ego: EgoStep) -> np.ndarray:
        """The plan as a label, world [6, 2]: it begins along the vehicle's heading.

        ``plan`` leaves the heading to the controller. A planner that learned this would bend its plans more sharply
        next to the vehicle than the node's plan checks accept.
        """
        s, left = self._scene.route.project(ego.x, ego.y, self._scene.ego_s)
        along, offset = self._choose(ego, s, left)
        _, heading = self._scene.lane_error(ego)
        turn = math.tan(min(max(heading, -MAX_TURN_RAD), MAX_TURN_RAD)) - (self._wanted(s, ego.speed) - left) / DETOUR_M
        gone = np.maximum(along - s, 0.0)
        return self._in_world(along, offset + turn * gone * np.exp(-gone / max(TURN_M, TURN_S * ego.speed)))

    def _in_world(self, along: np.ndarray, left: np.ndarray) -> np.ndarray:
        route = self._scene.route
        return np.array([route.at(float(a), float(b))[:2] for a, b in zip(along, left, strict=True)])

    def _choose(self, ego: EgoStep, s: float, left: float) -> tuple[np.ndarray, np.ndarray]:
        """Arc length and offset of the best proposal at the waypoints' times, [6] each."""
        grid = STEP_S * np.arange(STEPS + 1)
        others = predict(self._scene, s, grid, self._obstacles)
        speeds, stops = self._proposals(s)
        rollouts = self._roll_out((s, left), ego, speeds, stops, others)
        best = int(np.argmax(self._scores(rollouts, others)))
        times = WAYPOINT_S * np.arange(1, WAYPOINTS + 1)
        return np.interp(times, grid, rollouts.s[best]), np.interp(times, grid, rollouts.left[best])

    def _proposals(self, ego_s: float) -> tuple[np.ndarray, np.ndarray]:
        """Factors of the speed [P], and where the front bumper stops [P]; inf: nowhere."""
        scene, front = self._scene, ego_s + self._scene.front_m
        lines = [light.junction.s_stop for light in scene.lights if light.state != "green"]
        closed = [line for line in lines if line > front - 0.5]
        stop = min(closed, default=np.inf)
        found = [(factor, stop) for factor in SPEEDS]
        junction = scene.route.next_junction(ego_s)
        if junction is not None and junction.s_stop > front:
            found += [(1.0, min(stop, junction.s_stop)), (1.0, min(stop, junction.s_in + 4.0))]
        return np.array([factor for factor, _ in found]), np.array([place for _, place in found]) - 0.4

    def _roll_out(
        self, start: tuple[float, float], ego: EgoStep, factors: np.ndarray, stops: np.ndarray, others: Predicted
    ) -> Rollouts:
        count = len(factors)
        s, left = np.full(count, start[0]), np.full(count, start[1])
        speed, accel = np.full(count, ego.speed), np.full(count, ego.accel)
        states = []
        for step in range(STEPS + 1):
            states.append((s, left, speed))
            cap = self._cap[np.clip((s / STEP_M).astype(int), 0, len(self._cap) - 1)]
            free = COMFORT_ACCEL * (1 - (speed / np.maximum(cap * factors, 0.1)) ** 4)
            front = s + self._scene.front_m
            gap, closing = self._gap(front, left, speed, others, step)
            to_stop = np.minimum(stops - front + STANDSTILL_GAP_M, NOBODY_M)
            wish = np.minimum(_behind(speed, gap, closing, free), _behind(speed, to_stop, speed, free))
            wish = np.clip(np.minimum(free, wish), -MAX_BRAKE, COMFORT_ACCEL)
            accel = np.clip(wish, accel - 14 * STEP_S, accel + 6 * STEP_S)  # jerk
            after = np.maximum(speed + accel * STEP_S, 0.0)
            gone = 0.5 * (speed + after) * STEP_S
            wanted = np.array([self._wanted(float(a), float(v)) for a, v in zip(s, speed, strict=True)])
            left = left + (wanted - left) * np.clip(gone / DETOUR_M, 0, 1)
            s, speed = s + gone, after
        return Rollouts(*(np.stack(part, axis=1) for part in zip(*states, strict=True)))

    def _wanted(self, s: float, speed: float) -> float:
        """The offset that a vehicle at an arc length turns to."""
        s += 3.0 + 0.8 * speed
        return next((each.offset for each in self._scene.detours if each.from_s <= s <= each.to_s), 0.0)

    def _gap(
        self, front: np.ndarray, left: np.ndarray, speed: np.ndarray, others: Predicted, step: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Distance to what is ahead in the way, and the speed difference to it; [P] each."""
        if not len(others.s):
            return np.full(len(front), NOBODY_M), np.zeros(len(front))
        side = others.half_width[:, step] + others.margin + self._scene.vehicle.width_m / 2
        in_way = np.abs(others.left[:, step] - left[:, None]) < side
        ahead = in_way & (others.s[:, step] > front[:, None] - 1.5)
        gaps = np.where(ahead, (others.s - others.half_length)[:, step] - front[:, None], NOBODY_M)
        nearest = gaps.argmin(axis=1)
        return np.maximum(gaps.min(axis=1), 0.1), speed - others.speed[nearest, step]

    def _scores(self, rollouts: Rollouts, others: Predicted) -> np.ndarray:
        """Progress, minus hard braking, minus much where somebody is met, the sooner and faster the more; [P]."""
        vehicle = self._scene.vehicle
        braking = np.maximum(-np.diff(rollouts.speed, axis=1) / STEP_S - 3.0, 0).max(axis=1)
        score = rollouts.s[:, -1] - rollouts.s[:, 0] - braking
        if not len(others.s):
            return score
        middle = rollouts.s + vehicle.center_m
        near = np.abs(others.s - middle[:, None]) < others.half_length + vehicle.length_m / 2 + AHEAD_M
        side = others.half_width + vehicle.width_m / 2 + others.margin[:, None]
        near &= np.abs(others.left - rollouts.left[:, None]) < side
        near &= ~others.follows[:, None]
        meets = near.max(axis=1)  # [P, T]
        is_met = meets.max(axis=1)
        first = np.where(is_met, meets.argmax(axis=1), STEPS)
        fast = rollouts.speed[np.arange(len(first)), first]
        return score - np.where(is_met, 1000.0 - 20.0 * first + 10.0 * fast, 0.0)


def _behind(speed: np.ndarray, gap: np.ndarray, closing: np.ndarray, free: np.ndarray) -> np.ndarray:
    """IDM's acceleration behind something."""
    dynamic = speed * HEADWAY_S + speed * closing / (2 * np.sqrt(COMFORT_ACCEL * COMFORT_BRAKE))
    return free - COMFORT_ACCEL * ((STANDSTILL_GAP_M + np.maximum(dynamic, 0.0)) / np.maximum(gap, 0.1)) ** 2
