"""Errors and collisions of a plan step by step, and from steps to figures at 1, 2 and 3 s.

There are three ways of counting up to a horizon, which must never share a column. Collision is by exact polygons, the
convention of SparseDrive and Impromptu-VLA and this project's default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely

from fastdrive_training.data.adapters.base import FUTURE_INTERVAL_S, FUTURE_POINTS
from fastdrive_training.evaluation.metrics.footprint import corners, ego_boxes, path_headings

HORIZONS_S = (1.0, 2.0, 3.0)
NAMES = tuple(f"{t_s:g}s" for t_s in HORIZONS_S)


def at_metric_steps(plan: np.ndarray, dt_s: float) -> np.ndarray:
    """A plan [points, 2] with its first point at dt_s, at the six steps that all conventions compare, 0.5 s ... 3 s.

    Points between those of the plan, and before its first, are interpolated from the origin on. Raises ValueError: the
    plan ends before 3 s.
    """
    plan = np.asarray(plan, np.float64)
    if len(plan) * dt_s < FUTURE_POINTS * FUTURE_INTERVAL_S - 1e-6:
        raise ValueError(f"the plan ends at {len(plan) * dt_s:g} s, planning figures need {HORIZONS_S[-1]:g} s")
    if abs(dt_s - FUTURE_INTERVAL_S) < 1e-6:
        return plan[:FUTURE_POINTS]
    known_s, wanted_s = dt_s * np.arange(len(plan) + 1), FUTURE_INTERVAL_S * np.arange(1, FUTURE_POINTS + 1)
    return np.stack([np.interp(wanted_s, known_s, [0.0, *axis]) for axis in plan.T], axis=1)


def step_errors(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Euclidean distance of each step, float64 [..., points] from two arrays [..., points, 2] in metres."""
    return np.linalg.norm(np.asarray(predicted, np.float64) - np.asarray(truth, np.float64), axis=-1)


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


def mean_to_t(values: np.ndarray, dt_s: float = FUTURE_INTERVAL_S) -> dict[str, float]:
    """The mean over all steps up to t (ST-P3, VAD, SparseDrive), and over the samples.

    ``values`` is [samples, points], numbers or bools, of one or more samples. Returns "1s", "2s", "3s" and "avg", the
    mean of the three.
    """
    return figures(running_mean(values), dt_s)


def at_t(values: np.ndarray, dt_s: float = FUTURE_INTERVAL_S) -> dict[str, float]:
    """The step at t alone (UniAD). Arguments and result as in :func:`mean_to_t`."""
    return figures(values, dt_s)


def any_to_t(flags: np.ndarray, dt_s: float = FUTURE_INTERVAL_S) -> dict[str, float]:
    """Whether any step up to t is flagged (BEV-Planner, OmniDrive). Arguments and result as in :func:`mean_to_t`."""
    return figures(running_any(flags), dt_s)


def running_mean(values: np.ndarray) -> np.ndarray:
    """The mean of each step and those before it, float64 [samples, points] from [samples, points]."""
    return np.asarray(values, np.float64).cumsum(axis=1) / np.arange(1, np.shape(values)[1] + 1)


def running_any(flags: np.ndarray) -> np.ndarray:
    """Whether a step or one before it is flagged, bool [samples, points] from [samples, points]."""
    return np.logical_or.accumulate(np.asarray(flags, bool), axis=1)


def figures(by_step: np.ndarray, dt_s: float = FUTURE_INTERVAL_S) -> dict[str, float]:
    """Mean over the samples of what [samples, points] holds at 1, 2 and 3 s, and "avg", the mean of the three."""
    at = at_horizons(by_step, dt_s).mean(axis=0).tolist()
    return {**dict(zip(NAMES, at, strict=True)), "avg": float(np.mean(at))}


def at_horizons(by_step: np.ndarray, dt_s: float = FUTURE_INTERVAL_S) -> np.ndarray:
    """What [samples, points] holds at 1, 2 and 3 s, float64 [samples, 3]."""
    columns = [steps_to(t_s, dt_s) - 1 for t_s in HORIZONS_S]
    return np.asarray(by_step, np.float64)[:, columns]


def steps_to(t_s: float, dt_s: float = FUTURE_INTERVAL_S) -> int:
    """How many steps lie at or before t."""
    return round(t_s / dt_s)
