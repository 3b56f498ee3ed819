"""Poses and rotations on the ground plane and of the cameras."""

from __future__ import annotations

import math

import numpy as np

from fastdrive_sim.types import EgoPose, Thing


def quaternion_of_yaw(yaw: float) -> tuple[float, float, float, float]:
    """(w, x, y, z) of a turn by ``yaw`` [rad] about z."""
    return (math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2))


def quaternion_of_matrix(rotation: np.ndarray) -> tuple[float, float, float, float]:
    """(w, x, y, z) with w >= 0 of a rotation matrix [3, 3].

    The unit quaternion is the eigenvector of the largest eigenvalue of Bar-Itzhack's symmetric matrix (2000), which
    has no special case where the trace is small.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    symmetric = np.array(
        [
            [xx + yy + zz, zy - yz, xz - zx, yx - xy],
            [zy - yz, xx - yy - zz, xy + yx, xz + zx],
            [xz - zx, xy + yx, yy - xx - zz, yz + zy],
            [yx - xy, xz + zx, yz + zy, zz - xx - yy],
        ]
    )
    quaternion = np.linalg.eigh(symmetric)[1][:, -1]
    w, x, y, z = (float(part) for part in quaternion * (-1 if quaternion[0] < 0 else 1))
    return w, x, y, z


def wrap(angle: float) -> float:
    """The angle [rad] in -pi .. pi."""
    return math.atan2(math.sin(angle), math.cos(angle))


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
