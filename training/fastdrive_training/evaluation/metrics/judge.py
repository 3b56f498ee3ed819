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
    vehicle_boxes: Sequence[np.ndarray] | None = None  # of ``boxes`` those of vehicles; None: classes are not known

    @cached_property
    def obstacles(self) -> Obstacles | None:
        return None if self.boxes is None else Obstacles.from_boxes(self.boxes)

    @cached_property
    def truth_hits(self) -> np.ndarray | None:
        """bool [points]: the ground truth itself overlaps an object."""
        return None if self.obstacles is None else self.obstacles.hit_by(self.future_m)

    @cached_property
    def vehicle_cells(self) -> np.ndarray | None:
        """BEV-Planner's raster of each step, 1 where a vehicle is, as packed bits [points, rows, columns / 8]."""
        if self.vehicle_boxes is None:
            return None
        return np.stack([_packed(BEV_PLANNER.draw(boxes)) for boxes in self.vehicle_boxes])

    @cached_property
    def truth_touches(self) -> np.ndarray | None:
        """bool [points]: the ground truth's footprint touches a vehicle, on BEV-Planner's raster."""
        return None if self.vehicle_cells is None else _touches(_cells(self.future_m), self.vehicle_cells)

    @cached_property
    def boundary(self) -> np.ndarray | None:
        """BEV-Planner's raster, 1 where a road boundary runs, as packed bits [rows, columns / 8]."""
        if self.frame is None or self.area is None:
            return None
        return _packed(BEV_PLANNER.draw_lines(boundary_lines(self.frame, self.area)))

    @cached_property
    def truth_crosses(self) -> np.ndarray | None:
        """bool [points]: the ground truth's footprint touches a boundary."""
        return None if self.boundary is None else _touches(_cells(self.future_m), self.boundary[None])


@dataclass(frozen=True)
class Judgement:
    """One plan's figures step by step; None where the dataset does not tell."""

    errors_m: np.ndarray  # float64 [points]
    collision: np.ndarray | None  # bool [points], exact polygons
    off_drivable: np.ndarray | None  # bool [points]
    intersection: np.ndarray | None  # bool [points], of the road boundary
    raster_collision: np.ndarray | None  # bool [points], with a vehicle, on BEV-Planner's raster


def judge_plan(plan: np.ndarray, around: Surroundings) -> Judgement:
    """Judge a plan [points, 2] in the ego frame. What the ground truth does as well is not held against it."""
    collision = intersection = off = raster = None
    cells = _cells(plan)
    if around.obstacles is not None and around.truth_hits is not None:
        collision = around.obstacles.hit_by(plan) & ~around.truth_hits
    if around.boundary is not None and around.truth_crosses is not None:
        intersection = _touches(cells, around.boundary[None]) & ~around.truth_crosses
    if around.frame is not None and around.area is not None:
        off = off_drivable_steps(plan, around.frame, around.area)
    if around.vehicle_cells is not None and around.truth_touches is not None:
        raster = _touches(cells, around.vehicle_cells) & ~around.truth_touches
    return Judgement(step_errors(plan, around.future_m), collision, off, intersection, raster)


def _packed(canvas: np.ndarray) -> np.ndarray:
    """Bits instead of bytes: the canvases of a segment's samples are held together."""
    return np.packbits(canvas, axis=1)


def _cells(path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return BEV_PLANNER.cells_of(path)


def _touches(cells: tuple[np.ndarray, np.ndarray], canvases: np.ndarray) -> np.ndarray:
    """bool [points]: a cell of the box is set in the packed canvas of its step, or in the one that serves all steps."""
    rows, columns = cells
    steps = np.arange(len(canvases))[:, None]  # broadcast where there is one
    return (canvases[steps, rows, columns >> 3] >> (7 - (columns & 7)) & 1).any(axis=1)
