"""Angles and planar frames, written once for node, training and simulator. Pure numpy."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np

Angle = TypeVar("Angle", float, np.ndarray)


def wrap_angle(angle_rad: Angle) -> Angle:
    """An angle, or an array of them, in [-pi, pi)."""
    return (angle_rad + math.pi) % (2 * math.pi) - math.pi  # pyright: ignore[reportReturnType]  # numpy's operators lose the type


def step_headings(steps: np.ndarray, min_length_m: float = 0.0) -> np.ndarray:
    """Heading of each step of a path; a step shorter than ``min_length_m`` has the heading of the one before.

    Args:
        steps: [n, 2], differences of points. Before the first one the heading is 0.

    Returns:
        float64 [n] in rad.
    """
    headings = np.arctan2(steps[:, 1], steps[:, 0])
    known = np.linalg.norm(steps, axis=1) >= min_length_m
    latest = np.maximum.accumulate(np.where(known, np.arange(len(steps)), -1))
    return np.where(latest >= 0, headings[latest], 0.0)


def to_parent_frame(points: np.ndarray, x: float, y: float, yaw_rad: float) -> np.ndarray:
    """Points [n, 2] of a frame, in the frame in which its origin is at x, y and its x axis points to ``yaw_rad``."""
    cos, sin = math.cos(yaw_rad), math.sin(yaw_rad)
    return points @ np.array([[cos, sin], [-sin, cos]]) + np.array([x, y])


def yaw_of_quaternion(x: float, y: float, z: float, w: float) -> float:
    """Rotation about z of a unit quaternion, in the order yaw, pitch, roll; in [-pi, pi]."""
    return math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
