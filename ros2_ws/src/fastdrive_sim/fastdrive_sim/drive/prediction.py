"""Road users of the next seconds in the frame of the ego's route, if all keep their speed and way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastdrive_sim.drive.agents import extents, project
from fastdrive_sim.drive.scene import DriveScene
from fastdrive_sim.drive.types import Other

SIDE_M, WALKER_SIDE_M, OBSTACLE_SIDE_M = 0.35, 0.7, 0.15  # kept to the side of vehicles, people and obstacles
REACH_M, BEHIND_M = 95.0, 25.0


@dataclass(frozen=True)
class Predicted:
    """Road users and obstacles; arrays [N, T] where not said otherwise."""

    s: np.ndarray  # arc length of the middle
    left: np.ndarray  # offset from the lane's middle
    half_length: np.ndarray  # along the route
    half_width: np.ndarray
    speed: np.ndarray  # along the route
    margin: np.ndarray  # [N], to be kept to the side
    follows: np.ndarray  # bool [N]: it is behind in the lane and has to keep its distance


def predict(scene: DriveScene, ego_s: float, times_s: np.ndarray, obstacles: Sequence[Other]) -> Predicted:
    """
    Args:
        ego_s: arc length of the ego's rear axle.
        times_s: from now, [T].
        obstacles: of the map, those that are in the way.
    """
    users = scene.users()
    others = [*(user.other() for user in users), *obstacles]
    count, steps = len(others), len(times_s)
    if not count:
        empty = np.zeros((0, steps))
        return Predicted(empty, empty, empty, empty, empty, np.zeros(0), np.zeros(0, bool))
    poses = [[user.pose(float(t)) for t in times_s] for user in users]
    poses += [[(each.x, each.y, each.yaw)] * steps for each in obstacles]
    pose = np.array(poses)
    along, left, heading = project(scene.route, ego_s, REACH_M, pose[..., :2].reshape(-1, 2), BEHIND_M)
    along, left = along.reshape(count, steps), left.reshape(count, steps)
    turn = pose[..., 2] - heading.reshape(count, steps)
    cos, sin = np.abs(np.cos(turn)), np.abs(np.sin(turn))
    length, width = (np.array([getattr(each, name) for each in others])[:, None] for name in ("length", "width"))
    speed = np.array([each.speed for each in others])[:, None] * np.cos(turn)
    margin = [_margin(each) for each in others[: len(users)]] + [OBSTACLE_SIDE_M] * len(obstacles)
    follows = (along[:, 0] < ego_s + scene.vehicle.center_m - 2.0) & (np.abs(left[:, 0]) < 2.0)
    return Predicted(
        along,
        left,
        (cos * length + sin * width) / 2,
        (sin * length + cos * width) / 2,
        speed,
        np.array(margin),
        follows,
    )


def obstacles_in_lane(scene: DriveScene) -> list[Other]:
    """Obstacles of the map that reach into the ego's lane."""
    found = []
    for other in scene.map().obstacles:
        _, left, yaw = project(scene.route, scene.start_s, scene.route.length, np.array([(other.x, other.y)]))
        side = extents(other.length, other.width, other.yaw - float(yaw[0]))[1]
        if abs(float(left[0])) - side < 2.0:
            found.append(other)
    return found


def _margin(other: Other) -> float:
    return WALKER_SIDE_M if other.kind in ("pedestrian", "cyclist") else SIDE_M
