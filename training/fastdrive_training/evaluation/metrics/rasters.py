"""Collision on rasters, as ST-P3, VAD, UniAD and BEV-Planner count it, and BEV-Planner's crossing of the road boundary.

They exist to compare with published figures: a raster of 0.5 m reports a hit for a car that is passed at 0.22 m. Which
way an index is rounded decides such cases, so each convention rounds as its evaluator does, in single precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from fastdrive_training.evaluation.metrics.footprint import CENTRE_AHEAD_M, IMU_AHEAD_M, SHORT_STEP_M, VEHICLE, corners

HALF_EXTENT_M = 50.0
_FAR = 1 << 20  # cells; beyond it an index is only known to be outside


@dataclass(frozen=True)
class HalfMetreRaster:
    """Cells of 0.5 m over 100 m, the ego box along the axes whatever the path's direction.

    ``forward`` and ``left`` are the signs with which rows grow forward and columns grow to the left.
    """

    forward: int
    left: int
    cell_m = 0.5
    cells = 200

    def draw(self, boxes: np.ndarray) -> np.ndarray:
        """uint8 [cells, cells], 1 where one of the boxes [n, 5] is."""
        canvas = np.zeros((self.cells, self.cells), np.uint8)
        signed = corners(boxes) * (self.forward, self.left)
        rows_columns = np.rint((signed + HALF_EXTENT_M) / self.cell_m).clip(-_FAR, _FAR).astype(np.int32)
        for outline in rows_columns[..., ::-1]:
            cv2.fillPoly(canvas, [outline], (1,))
        return canvas

    def cells_of(self, path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns int [points, cells of the box] of the ego box at each point of a path [points, 2]."""
        signs = np.array([self.forward, self.left], np.float32)
        places = np.asarray(path, np.float32) / np.float32(self.cell_m) * signs
        rows, columns = (
            np.trunc((places[:, axis, None] + own).clip(0, self.cells - 1)).astype(np.int64)
            for axis, own in enumerate(self._own_cells)
        )
        return rows, columns

    @cached_property
    def _own_cells(self) -> tuple[np.ndarray, np.ndarray]:
        along, across = _indices_inside(self.cell_m, CENTRE_AHEAD_M)
        if self.forward < 0:  # the evaluator turns the index around, and not the coordinate
            along = self.cells - along
        rows, columns = np.meshgrid(along, across, indexing="ij")
        return rows.ravel(), columns.ravel()


@dataclass(frozen=True)
class BevPlannerRaster:
    """Cells of 0.1 m over 100 m; the ego box turns with the last segment and stands further ahead (IMU frame).

    Rows grow to the left, columns forward.
    """

    cell_m = 0.1
    cells = 1000

    def draw(self, boxes: np.ndarray) -> np.ndarray:
        """uint8 [cells, cells], 1 where one of the boxes [n, 5] is."""
        canvas = np.zeros((self.cells, self.cells), np.uint8)
        for outline in self._indices(corners(boxes)).clip(-_FAR, _FAR).astype(np.int32):
            cv2.fillPoly(canvas, [outline], (1,))
        return canvas

    def draw_lines(self, lines: Sequence[np.ndarray]) -> np.ndarray:
        """uint8 [cells, cells], 1 along the polylines [vertices, 2], drawn one cell wide."""
        canvas = np.zeros((self.cells, self.cells), np.uint8)
        outlines = [self._indices(line).clip(0, self.cells - 1).astype(np.int32) for line in lines if len(line) > 1]
        cv2.polylines(canvas, outlines, False, (1,), thickness=1)
        return canvas

    def cells_of(self, path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns int [points, cells of the box] of the ego box at each point of a path [points, 2]."""
        path = np.asarray(path, np.float32)
        steps = np.diff(path, axis=0, prepend=np.zeros((1, 2), np.float32))
        headings = np.arctan2(steps[:, 1], steps[:, 0])
        headings[np.linalg.norm(steps, axis=1) < SHORT_STEP_M] = 0
        cos, sin = np.cos(headings)[:, None], np.sin(headings)[:, None]
        ahead, left = self._own_cells.T
        turned = np.stack([ahead * cos - left * sin, ahead * sin + left * cos], axis=-1)
        indices = np.round(turned + self._middle) + (path / np.float32(self.cell_m))[:, None]
        indices = np.trunc(indices.clip(0, self.cells - 1)).astype(np.int64)
        return indices[..., 1], indices[..., 0]

    def _indices(self, points: np.ndarray) -> np.ndarray:
        """Columns and rows of points [..., 2], truncated."""
        start = np.float32(self.cell_m / 2 - HALF_EXTENT_M)
        return np.trunc((np.asarray(points, np.float32) - start) / np.float32(self.cell_m))

    @property
    def _middle(self) -> float:
        """The index, a half one, of the vehicle's origin."""
        return self.cells / 2 - 0.5

    @cached_property
    def _own_cells(self) -> np.ndarray:
        """float64 [cells, 2] forward and left of the origin, in cells."""
        along, across = _indices_inside(self.cell_m, CENTRE_AHEAD_M + IMU_AHEAD_M)
        return np.stack([axis.ravel() for axis in np.meshgrid(along, across, indexing="ij")], axis=1) - self._middle


def _indices_inside(cell_m: float, ahead_m: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the cells whose centres the ego box at the origin covers, along and across."""
    first = HALF_EXTENT_M - cell_m / 2  # of cell 0, behind the origin
    extents = ((ahead_m, VEHICLE.length_m), (0.0, VEHICLE.width_m))
    edges = [((centre - size / 2 + first) / cell_m, (centre + size / 2 + first) / cell_m) for centre, size in extents]
    along, across = (np.arange(np.ceil(low), np.floor(high) + 1) for low, high in edges)
    return along, across


BEV_PLANNER = BevPlannerRaster()
Raster = HalfMetreRaster | BevPlannerRaster

RASTERS: dict[str, Raster] = {
    "ST-P3": HalfMetreRaster(forward=1, left=1),
    "VAD": HalfMetreRaster(forward=-1, left=-1),
    "UniAD": HalfMetreRaster(forward=1, left=-1),
    "BEV-Planner": BEV_PLANNER,
}


def touches(raster: Raster, path: np.ndarray, canvases: Sequence[np.ndarray]) -> np.ndarray:
    """bool [points]: a cell of the ego box is set in the canvas of its step."""
    rows, columns = raster.cells_of(path)
    return np.array([canvas[row, column].any() for canvas, row, column in zip(canvases, rows, columns, strict=True)])


def raster_collision_steps(
    raster: Raster, plan: np.ndarray, truth: np.ndarray, boxes: Sequence[np.ndarray]
) -> np.ndarray:
    """bool [points]: the plan collides at this step, and the ground truth does not.

    Args:
        raster: one of ``RASTERS``.
        plan, truth: [points, 2] from the origin.
        boxes: of each step, [n, 5] of the classes that the convention counts (UniAD and BEV-Planner: vehicles only).
    """
    canvases = [raster.draw(step) for step in boxes]
    return touches(raster, plan, canvases) & ~touches(raster, truth, canvases)


def boundary_steps(plan: np.ndarray, truth: np.ndarray, lines: Sequence[np.ndarray]) -> np.ndarray:
    """bool [points]: BEV-Planner's box touches a road boundary at this step, and the ground truth's does not.

    ``lines`` are the boundaries as they are at t0, polylines [vertices, 2].
    """
    raster = BEV_PLANNER
    canvases = [raster.draw_lines(lines)] * len(plan)
    return touches(raster, plan, canvases) & ~touches(raster, truth, canvases)
