"""One plan against one sample: what the harness stores of every answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fastdrive_training.data.drivable import DrivableArea, EgoFrame
from fastdrive_training.evaluation.metrics.drivable import boundary_lines, off_drivable_steps
from fastdrive_training.evaluation.metrics.horizons import Obstacles, step_errors
from fastdrive_training.evaluation.metrics.rasters import BEV_PLANNER


@dataclass(frozen=True)
class Surroundings:
    """What is known of the world around one sample. None stands for unknown, an empty list for an empty road."""

    future_m: np.ndarray  # float64 [points, 2], where the vehicle really drove
    boxes: Sequence[np.ndarray] | None = None  # of each future step, [n, 5]
    frame: EgoFrame | None = None  # in the map; None where there is none
    area: DrivableArea | None = None

    @cached_property
    def obstacles(self) -> Obstacles | None:
        return None if self.boxes is None else Obstacles.from_boxes(self.boxes)

    @cached_property
    def truth_hits(self) -> np.ndarray | None:
        """bool [points]: the ground truth itself overlaps an object."""
        return None if self.obstacles is None else self.obstacles.hit_by(self.future_m)

    @cached_property
    def boundary(self) -> np.ndarray | None:
        """BEV-Planner's raster, 1 where a road boundary runs, as packed bits [rows, columns / 8]."""
        if self.frame is None or self.area is None:
            return None
        return np.packbits(BEV_PLANNER.draw_lines(boundary_lines(self.frame, self.area)), axis=1)

    @cached_property
    def truth_crosses(self) -> np.ndarray | None:
        """bool [points]: the ground truth's footprint touches a boundary."""
        return None if self.boundary is None else _crosses(self.future_m, self.boundary)


@dataclass(frozen=True)
class Judgement:
    """One plan's figures step by step; None where the dataset does not tell."""

    errors_m: np.ndarray  # float64 [points]
    collision: np.ndarray | None  # bool [points], exact polygons
    off_drivable: np.ndarray | None  # bool [points]
    intersection: np.ndarray | None  # bool [points], of the road boundary


def judge_plan(plan: np.ndarray, around: Surroundings) -> Judgement:
    """Judge a plan [points, 2] in the ego frame. What the ground truth does as well is not held against it."""
    collision = intersection = off = None
    if around.obstacles is not None and around.truth_hits is not None:
        collision = around.obstacles.hit_by(plan) & ~around.truth_hits
    if around.boundary is not None and around.truth_crosses is not None:
        intersection = _crosses(plan, around.boundary) & ~around.truth_crosses
    if around.frame is not None and around.area is not None:
        off = off_drivable_steps(plan, around.frame, around.area)
    return Judgement(step_errors(plan, around.future_m), collision, off, intersection)


def _crosses(path: np.ndarray, boundary: np.ndarray) -> np.ndarray:
    rows, columns = BEV_PLANNER.cells_of(path)
    return (boundary[rows, columns >> 3] >> (7 - (columns & 7)) & 1).any(axis=1)
