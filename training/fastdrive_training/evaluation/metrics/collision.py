"""Collision by exact polygons, the convention of SparseDrive and Impromptu-VLA and this project's default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely

from fastdrive_training.evaluation.metrics.footprint import corners, ego_boxes, path_headings


@dataclass(frozen=True)
class Obstacles:
    """The objects around at each future step, as polygons that are built once and asked often."""

    polygons: tuple[np.ndarray, ...]  # of each step, shapely polygons [n]

    @classmethod
    def from_boxes(cls, boxes: Sequence[np.ndarray]) -> Obstacles:
        """From the boxes [n, 5] of each step; n may differ from step to step and may be 0."""
        return cls(tuple(np.asarray(shapely.polygons(corners(step))).reshape(-1) for step in boxes))

    def hit_by(self, path: np.ndarray, start: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
        """bool [points]: the ego box at each point of the path [points, 2] touches an object of that step.

        The box has the heading of central differences, its centre 0.5 m ahead of the point; ``start`` is where the
        vehicle is at t0. Raises ValueError where the path has another number of points than there are steps.
        """
        if len(path) != len(self.polygons):
            raise ValueError(f"path: {len(path)} points, but the objects are known at {len(self.polygons)} steps")
        ego = np.asarray(shapely.polygons(corners(ego_boxes(path, path_headings(path, start)))))
        pairs = zip(ego, self.polygons, strict=True)
        return np.array([bool(shapely.intersects(box, others).any()) for box, others in pairs])


def collision_steps(
    plan: np.ndarray, truth: np.ndarray, obstacles: Obstacles, start: tuple[float, float] = (0.0, 0.0)
) -> np.ndarray:
    """bool [points]: the plan collides at this step, and the ground truth does not.

    Args:
        plan, truth: [points, 2].
    """
    return obstacles.hit_by(plan, start) & ~obstacles.hit_by(truth, start)
