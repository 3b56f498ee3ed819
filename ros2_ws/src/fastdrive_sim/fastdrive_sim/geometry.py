"""Poses and rotations on the ground plane and of the cameras."""

from __future__ import annotations

import math

import numpy as np

from fastdrive_sim.types import EgoPose, Thing


def quaternion_of_yaw(yaw: float) -> tuple[float, float, float, float]:
    """(w, x, y, z) of a turn by ``yaw`` [rad] about z."""
    return (math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2))


def quaternion_of_matrix(rotation: np.ndarray) -> tuple[float, float, float, float]:
    """(w, x, y, z) with w >= 0 of a rotation matrix [3, 3]."""
    from scipy.spatial.transform import Rotation  # half a second, which a process that only drives need not wait

    x, y, z, w = (float(part) for part in Rotation.from_matrix(rotation).as_quat(canonical=True))
    return w, x, y, z


def to_ego(pose: EgoPose, xy: np.ndarray) -> np.ndarray:
    """World points [..., 2] in the frame of ``pose`` (x forward, y left)."""
    cos, sin = math.cos(pose.yaw), math.sin(pose.yaw)
    return (np.asarray(xy, np.float64) - (pose.x, pose.y)) @ np.array([[cos, -sin], [sin, cos]])


def box_corners(thing: Thing) -> np.ndarray:
    """The corners of a thing's box in the world, float64 [8, 3]."""
    length, width, height = thing.size
    signs = np.array([[a, b, c] for a in (-0.5, 0.5) for b in (-0.5, 0.5) for c in (0.0, 1.0)])
    local = signs * (length, width, height)
    cos, sin = math.cos(thing.yaw), math.sin(thing.yaw)
    turned = np.stack([local[:, 0] * cos - local[:, 1] * sin, local[:, 0] * sin + local[:, 1] * cos, local[:, 2]], 1)
    return turned + np.array([thing.x, thing.y, thing.z])
