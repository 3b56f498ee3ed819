"""The ego vehicle's box along a path, and the headings that the evaluators derive from a path's points."""

from __future__ import annotations

import numpy as np

from fastdrive_node import geometry
from fastdrive_node.types import Vehicle

VEHICLE = Vehicle()  # nuScenes' Renault Zoe, in all evaluators
CENTRE_AHEAD_M = 0.5  # of the box, from the trajectory point
IMU_AHEAD_M = 0.985793  # further, where the frame is nuScenes' ego frame and not the lidar's
STANDING_M = 0.5  # a path that is shorter than this from first to last point has no direction
SHORT_STEP_M = 1.0  # a step that is shorter has none


def path_headings(path: np.ndarray, start: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """Heading at each point by central differences, the last one by the last segment (SparseDrive, Impromptu-VLA).

    A path that spans less than 0.5 m from first to last point looks forward throughout. ``path`` is [points, 2];
    ``start`` is where the vehicle is at t0. Returns float64 [points] in rad.
    """
    path = np.asarray(path, np.float64)
    if np.linalg.norm(path[-1] - path[0]) < STANDING_M:
        return np.zeros(len(path))
    points = np.concatenate([[start], path])
    before, after = points[:-1], np.concatenate([points[2:], points[-1:]])
    return np.arctan2(after[:, 1] - before[:, 1], after[:, 0] - before[:, 0])


def step_headings(path: np.ndarray, start: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """Heading of the segment that ends at each point; of one shorter than 1 m, that of the one before.

    At the start it is 0, the vehicle's own. BEV-Planner turns short segments forward, OmniDrive takes them as they are;
    a vehicle that has turned and stops keeps its heading. Arguments and result as in :func:`path_headings`.
    """
    steps = np.diff(np.concatenate([[start], np.asarray(path, np.float64)]), axis=0)
    return geometry.step_headings(steps, SHORT_STEP_M)


def ego_boxes(
    path: np.ndarray, headings: np.ndarray, ahead_m: float = CENTRE_AHEAD_M, vehicle: Vehicle = VEHICLE
) -> np.ndarray:
    """The ego box at each point, float64 [points, 5], its center ``ahead_m`` ahead of the point."""
    direction = np.stack([np.cos(headings), np.sin(headings)], axis=1)
    centres = np.asarray(path, np.float64) + ahead_m * direction
    sizes = np.broadcast_to([vehicle.length_m, vehicle.width_m], centres.shape)
    return np.concatenate([centres, headings[:, None], sizes], axis=1)


def corners(boxes: np.ndarray) -> np.ndarray:
    """Corners float64 [n, 4, 2] of boxes [n, 5], counter-clockwise from the front left."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 5)
    local = boxes[:, None, 3:] / 2 * np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    cos, sin = np.cos(boxes[:, 2, None]), np.sin(boxes[:, 2, None])
    turned = np.stack([local[..., 0] * cos - local[..., 1] * sin, local[..., 0] * sin + local[..., 1] * cos], axis=-1)
    return turned + boxes[:, None, :2]
