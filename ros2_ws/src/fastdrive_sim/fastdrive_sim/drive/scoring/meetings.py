"""Which poses of the ego vehicle touch whom, all at once."""

from __future__ import annotations

import numpy as np

from fastdrive_sim.drive.scoring.polygons import overlap
from fastdrive_sim.drive.scoring.track import Others

Pairs = tuple[np.ndarray, np.ndarray]  # indices of poses, and rows of the others that they touch


def meet_moving(corners: np.ndarray, steps: np.ndarray, others: Others) -> Pairs:
    """Poses that touch somebody at their own step.

    Args:
        corners: [M, 4, 2] of the poses.
        steps: int [M], the step at which each pose is taken.
        others: rows in ascending order of their steps.
    """
    first = np.searchsorted(others.step, steps, side="left")
    count = np.searchsorted(others.step, steps, side="right") - first
    poses = np.repeat(np.arange(len(steps)), count)
    rows = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
    return _touching(corners, others, poses, rows)


def meet_standing(corners: np.ndarray, things: Others) -> Pairs:
    """Poses that touch something, whatever its step."""
    poses, rows = np.meshgrid(np.arange(len(corners)), np.arange(len(things.step)), indexing="ij")
    return _touching(corners, things, poses.ravel(), rows.ravel())


def _touching(corners: np.ndarray, things: Others, poses: np.ndarray, rows: np.ndarray) -> Pairs:
    if not len(rows):
        return poses, rows
    middles = corners.mean(axis=1)
    reach = float(np.linalg.norm(corners[0, 0] - middles[0]))
    away = np.hypot(things.x[rows] - middles[poses, 0], things.y[rows] - middles[poses, 1])
    near = away <= reach + things.radius[rows] + 1e-6
    poses, rows = poses[near], rows[near]
    touched = overlap(corners[poses], things.corners[rows]) if len(rows) else np.zeros(0, bool)
    return poses[touched], rows[touched]
