"""Lane changes that a driver decides on: past a slower vehicle on the oncoming lane, and back ahead of it.

The incentive and the safety criterion are those of MOBIL (Kesting et al. 2007) for a road with oncoming traffic: the
vehicle ahead is slower than one wants to go, and nobody comes on the other lane.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastdrive_sim.drive.agents import RoadVehicle, Shift, project
from fastdrive_sim.drive.types import Other
from fastdrive_sim.roads import LANE_M, STEP_M

SLOWER = 0.8  # of the wanted speed: who drives below is worth overtaking
NEAR_M = 22.0  # to the vehicle ahead, when its driver decides
PATIENCE_S = 1.5  # of following, before
CLEAR_AHEAD_M, CLEAR_BEHIND_M = 95.0, 12.0  # of the oncoming lane
STRAIGHTEST = 1 / 120  # 1/m; nobody overtakes in a bend
CHANGE_S = 2.2


@dataclass
class Overtaking:
    """The decisions of one driver, who overtakes once.

    Args:
        fast: limit on the oncoming lane, m/s.
        after: limit once it is back, m/s.
        gap_m: between its tail and the bumper of whom it has overtaken, when it goes back.
    """

    fast: float
    after: float
    gap_m: float
    phase: str = "follows"  # then "passes" and "done"
    _blocked_since: float | None = None

    def decide(self, vehicle: RoadVehicle, time_s: float, others: Sequence[Other]) -> None:
        """Look around, and begin a lane change where it is time."""
        if self.phase == "follows" and self._wants(vehicle, time_s, others) and self._is_free(vehicle, others):
            self._change(vehicle, time_s, LANE_M, "passes", self.fast)
        elif self.phase == "passes" and vehicle.offset > 0.95 * LANE_M and self._is_past(vehicle, others):
            self._change(vehicle, time_s, 0.0, "done", self.after)

    def _change(self, vehicle: RoadVehicle, time_s: float, offset: float, phase: str, limit: float) -> None:
        vehicle.shifts = (*vehicle.shifts, Shift(time_s, offset, CHANGE_S))
        vehicle.limit, self.phase = limit, phase

    def _wants(self, vehicle: RoadVehicle, time_s: float, others: Sequence[Other]) -> bool:
        blocked = [True for gap, speed in vehicle.ahead_of(others) if gap < NEAR_M and speed < SLOWER * vehicle.limit]
        if not blocked:
            self._blocked_since = None
            return False
        if self._blocked_since is None:
            self._blocked_since = time_s
        return time_s - self._blocked_since >= PATIENCE_S

    @staticmethod
    def _is_free(vehicle: RoadVehicle, others: Sequence[Other]) -> bool:
        first, last = int(vehicle.s / STEP_M), int((vehicle.s + CLEAR_AHEAD_M) / STEP_M)
        if np.abs(vehicle.path.curvature[first:last]).max() > STRAIGHTEST:
            return False
        along, left = _around(vehicle, others)
        in_lane = np.abs(left - LANE_M) < LANE_M / 2 + 0.5
        return not bool((in_lane & (along > -CLEAR_BEHIND_M) & (along < CLEAR_AHEAD_M)).any())

    def _is_past(self, vehicle: RoadVehicle, others: Sequence[Other]) -> bool:
        along, left = _around(vehicle, others)
        lengths = np.array([other.length for other in others if other.instance != vehicle.instance])
        gap = np.abs(along) - (lengths + vehicle.size[0]) / 2
        near = (np.abs(left) < LANE_M / 2) & (along < 25.0) & (along > -60.0)
        return not bool((near & ((along > 0) | (gap < self.gap_m))).any())


def _around(vehicle: RoadVehicle, others: Sequence[Other]) -> tuple[np.ndarray, np.ndarray]:
    """Distance along the path and offset to its left of all others, [n] each; far ones are far along it."""
    rest = [other for other in others if other.instance != vehicle.instance]
    if not rest:
        return np.zeros(0), np.zeros(0)
    xy = np.array([(other.x, other.y) for other in rest])
    along, left, _ = project(vehicle.path, vehicle.s, CLEAR_AHEAD_M + 20, xy, behind_m=40)
    x, y, _ = vehicle.path.at(vehicle.s)
    far = np.hypot(xy[:, 0] - x, xy[:, 1] - y) > CLEAR_AHEAD_M + 20
    return np.where(far, math.inf, along - vehicle.s), left
