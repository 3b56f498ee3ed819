"""The expert driver: follows the lane, keeps its distance, stops for pedestrians and signals."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastdrive_sim.roads import Route
from fastdrive_sim.types import EgoPose

FRONT_M = 3.8  # rear axle to front bumper
LATERAL_ACCEL = 3.6  # m/s^2 in bends
COMFORT_BRAKE = 2.4  # m/s^2
COMFORT_ACCEL = 2.2
HARD_BRAKE = 6.0
HEADWAY_S = 1.2
STANDSTILL_GAP_M = 3.0
PREVIEW_S = 3.5


def idm(speed: float, wanted: float, gap: float | None, closing: float) -> float:
    """Acceleration by the Intelligent Driver Model (Treiber et al. 2000), m/s^2.

    ``gap`` in metres to what is ahead (``None``: free road), ``closing`` the speed difference to it in m/s.
    """
    wanted = max(wanted, 0.1)
    accel = COMFORT_ACCEL * (1 - (speed / wanted) ** 4)
    if gap is not None:
        dynamic = speed * HEADWAY_S + speed * closing / (2 * math.sqrt(COMFORT_ACCEL * COMFORT_BRAKE))
        desired = STANDSTILL_GAP_M + max(dynamic, 0.0)
        accel -= COMFORT_ACCEL * (desired / max(gap, 0.1)) ** 2
    return max(min(accel, COMFORT_ACCEL), -HARD_BRAKE)


def bend_speed(route: Route, s: float, speed: float, limit: float) -> float:
    """The speed at ``s`` from which every bend within the preview is reached comfortably, m/s."""
    wanted = limit
    distance = 0.0
    while distance < 8 + PREVIEW_S * speed:
        bow = abs(route.curvature_at(s + distance))
        if bow > 1e-3:
            corner = math.sqrt(LATERAL_ACCEL / bow)
            wanted = min(wanted, math.sqrt(corner**2 + 2 * 0.7 * COMFORT_BRAKE * distance))
        distance += 2.0
    return wanted


def follow(speed: float, wanted: float, ahead: list[tuple[float, float]]) -> float:
    """Acceleration by :func:`idm` for the nearest constraint of ``ahead``, each (gap m, its speed m/s); m/s^2."""
    reactions = [idm(speed, wanted, gap, speed - other) for gap, other in ahead]
    return min([idm(speed, wanted, None, 0.0), *reactions])


@dataclass
class Driver:
    """A kinematic bicycle on a route, steered by lane error and driven by IDM."""

    route: Route
    pose: EgoPose
    limit: float  # m/s
    s: float = 0.0
    offset_wish: float = 0.0  # where in the lane it means to be, left positive: perturbations move it
    bow: float = 0.0  # present curvature, 1/m

    def step(self, obstacles: list[tuple[float, float]], dt: float) -> None:
        """Advance by ``dt`` seconds; ``obstacles`` are (m from the front bumper, speed m/s)."""
        speed = self.pose.speed
        accel = follow(speed, bend_speed(self.route, self.s, speed, self.limit), obstacles)
        accel = max(min(accel, self.pose.accel + 6 * dt), self.pose.accel - 14 * dt)  # jerk
        new_speed = max(speed + accel * dt, 0.0)
        if new_speed < 0.08 and accel <= 0.05:
            new_speed = 0.0
        self._steer(dt)
        travelled = 0.5 * (speed + new_speed) * dt
        yaw = self.pose.yaw + self.bow * travelled
        middle = self.pose.yaw + self.bow * travelled / 2
        x, y = self.pose.x + travelled * math.cos(middle), self.pose.y + travelled * math.sin(middle)
        self.pose = EgoPose(x, y, yaw, new_speed, (new_speed - speed) / dt, self.bow * new_speed)
        self.s, _ = self.route.project(x, y, self.s + travelled)

    def _steer(self, dt: float) -> None:
        speed = self.pose.speed
        _, _, lane_yaw = self.route.at(self.s)
        _, offset = self.route.project(self.pose.x, self.pose.y, self.s)
        heading_error = math.remainder(self.pose.yaw - lane_yaw, 2 * math.pi)
        reach = 0.13  # 1/m: lane errors fade over about 1 / reach metres
        wish = self.route.curvature_at(self.s + 0.12 * speed)
        wish -= reach**2 * (offset - self.offset_wish) + 2 * reach * math.sin(heading_error)
        wish = max(min(wish, 0.2), -0.2)
        rate = 0.35 * dt
        self.bow += max(min(wish - self.bow, rate), -rate)
