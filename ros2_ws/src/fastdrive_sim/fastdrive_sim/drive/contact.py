"""Contacts between the ego vehicle and other things, found at every sub-step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fastdrive_node.types import Vehicle
from fastdrive_sim.drive.types import Collision, EgoStep, Other, Where, ego_corners, other_corners

LOOK_M = 5.0  # the vehicle may move so far until nearby obstacles are looked up again


def overlap(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two rectangles, corners [4, 2] each, overlap (separating axes)."""
    for rectangle in (first, second):
        for axis in (rectangle[0] - rectangle[1], rectangle[1] - rectangle[2]):
            a, b = first @ axis, second @ axis
            if a.max() < b.min() or b.max() < a.min():
                return False
    return True


class ContactFinder:
    """Finds contacts with obstacles of the map, each of which is reported once, and with road users."""

    def __init__(self, obstacles: Sequence[Other], vehicle: Vehicle):
        self._vehicle = vehicle
        self._obstacles = list(obstacles)
        self._corners = [other_corners(each) for each in obstacles]
        self._middles = np.array([(each.x, each.y) for each in obstacles]).reshape(-1, 2)
        self._radii = np.array([math.hypot(each.length, each.width) / 2 for each in obstacles])
        self._touched: set[int] = set()
        self._reach = math.hypot(vehicle.length_m, vehicle.width_m) / 2
        self._looked_at: tuple[float, float] | None = None
        self._candidates: list[int] = []

    def find(self, time_s: float, ego: EgoStep, others: Sequence[Other]) -> list[Collision]:
        """Contacts that begin now."""
        ahead = self._vehicle.center_m
        x, y = ego.x + ahead * math.cos(ego.yaw), ego.y + ahead * math.sin(ego.yaw)
        near = [other for other in others if self._within(other, x, y)]
        obstacles = [index for index in self._nearby(x, y) if self._within(self._obstacles[index], x, y)]
        if not near and not obstacles:
            return []
        corners, found = ego_corners(ego, self._vehicle), []
        for index in obstacles:
            obstacle = self._obstacles[index]
            if index not in self._touched and overlap(corners, self._corners[index]):
                self._touched.add(index)
                found.append(self._collision(time_s, ego, obstacle, True))
        hits = [other for other in near if overlap(corners, other_corners(other))]
        return [*found, *(self._collision(time_s, ego, other, False) for other in hits)]

    def _within(self, other: Other, x: float, y: float) -> bool:
        return math.hypot(other.x - x, other.y - y) < self._reach + math.hypot(other.length, other.width) / 2

    def _nearby(self, x: float, y: float) -> list[int]:
        """Obstacles that could be met; looked up anew after some metres."""
        if self._looked_at is None or math.hypot(self._looked_at[0] - x, self._looked_at[1] - y) > LOOK_M:
            self._looked_at = (x, y)
            away = np.hypot(self._middles[:, 0] - x, self._middles[:, 1] - y)
            self._candidates = np.flatnonzero(away < self._radii + self._reach + LOOK_M).tolist()
        return self._candidates

    def _collision(self, time_s: float, ego: EgoStep, other: Other, is_static: bool) -> Collision:
        velocity = np.array([math.cos(ego.yaw), math.sin(ego.yaw)]) * ego.speed
        theirs = np.array([math.cos(other.yaw), math.sin(other.yaw)]) * other.speed
        impact = float(np.linalg.norm(velocity - theirs))
        return Collision(time_s, other, is_static, ego.speed, impact, self._where(ego, other), ego)

    def _where(self, ego: EgoStep, other: Other) -> Where:
        """The face of the ego vehicle that the deepest point of the other's outline is nearest to."""
        outline = other_corners(other)
        parts = np.linspace(0, 1, 8, endpoint=False)[:, None]
        points = np.concatenate([a + parts * (b - a) for a, b in zip(outline, np.roll(outline, -1, 0), strict=True)])
        cos, sin = math.cos(ego.yaw), math.sin(ego.yaw)
        local = (points - (ego.x, ego.y)) @ np.array([[cos, -sin], [sin, cos]])
        ahead, left = local[:, 0] - self._vehicle.center_m, local[:, 1]
        half_length, half_width = self._vehicle.length_m / 2, self._vehicle.width_m / 2
        depths = np.stack([half_length - ahead, half_length + ahead, half_width - np.abs(left)], axis=1)
        deepest = depths[int(np.argmax(depths.min(axis=1)))]
        faces: tuple[Where, ...] = ("front", "rear", "side")
        return faces[int(np.argmin(deepest))]
