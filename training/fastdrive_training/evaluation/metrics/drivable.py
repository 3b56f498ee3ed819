"""Leaving the drivable area, and the boundaries of a drivable area."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from fastdrive_training.evaluation.metrics.footprint import (
    CENTRE_AHEAD_M,
    EGO_LENGTH_M,
    EGO_WIDTH_M,
    IMU_AHEAD_M,
    step_headings,
)
from fastdrive_training.evaluation.metrics.rasters import HALF_EXTENT_M

GRID_M = 0.1  # largest distance of the points at which a footprint is looked up


@dataclass(frozen=True)
class EgoFrame:
    """Where the vehicle's frame of t0 lies in the frame of a map."""

    position_m: tuple[float, float]
    yaw_rad: float

    @classmethod
    def facing(cls, position_m: tuple[float, float], forward: np.ndarray) -> EgoFrame:
        """The frame at a position whose x axis points along ``forward`` [2]."""
        return cls(position_m, float(np.arctan2(forward[1], forward[0])))

    @cached_property
    def rotation(self) -> np.ndarray:
        """float64 [2, 2], ego to map."""
        cos, sin = np.cos(self.yaw_rad), np.sin(self.yaw_rad)
        return np.array([[cos, -sin], [sin, cos]])

    def to_map(self, points: np.ndarray) -> np.ndarray:
        """Points [..., 2] of the ego frame in the map's frame."""
        return np.asarray(points, np.float64) @ self.rotation.T + np.asarray(self.position_m)

    def from_map(self, points: np.ndarray) -> np.ndarray:
        """Points [..., 2] of the map's frame in the ego frame."""
        return (np.asarray(points, np.float64) - np.asarray(self.position_m)) @ self.rotation


@dataclass(frozen=True)
class DrivableArea:
    """A raster of where one may drive, north up, one bit a pixel: a city's map has hundreds of millions.

    A point (x, y) of the map lies in the pixel of column round((x - x0) / r) and row H - round((y - y0) / r), as
    nuscenes-devkit's MapMask places it; ``origin_m`` is (x0, y0), ``resolution_m`` is r.
    """

    bits: np.ndarray  # uint8 [H, ceil(W / 8)], as np.packbits gives them
    shape: tuple[int, int]  # H, W
    origin_m: tuple[float, float] = (0.0, 0.0)
    resolution_m: float = 0.1

    @classmethod
    def from_pixels(
        cls, pixels: np.ndarray, origin_m: tuple[float, float] = (0.0, 0.0), resolution_m: float = 0.1
    ) -> DrivableArea:
        """From bool [H, W], True where one may drive."""
        pixels = np.asarray(pixels, bool)
        return cls(np.packbits(pixels, axis=1), pixels.shape, origin_m, resolution_m)

    def contains(self, points: np.ndarray) -> np.ndarray:
        """bool [...] of points [..., 2] in the map's frame; False outside of the raster."""
        height, width = self.shape
        indices = np.round((np.asarray(points, np.float64) - self.origin_m) / self.resolution_m).clip(-1, 1 << 30)
        columns, rows = indices[..., 0].astype(np.int64), height - indices[..., 1].astype(np.int64)
        inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        columns, rows = np.where(inside, columns, 0), np.where(inside, rows, 0)
        return inside & ((self.bits[rows, columns >> 3] >> (7 - (columns & 7)) & 1) == 1)

    def place(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Centres float64 [..., 2] of pixels in the map's frame."""
        return np.stack([columns, self.shape[0] - rows], axis=-1) * self.resolution_m + self.origin_m

    def window(self, rows: tuple[int, int], columns: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
        """Pixels uint8 [h, w] of the rows and columns first to last, cut to the raster, and where they start.

        Columns start at a whole byte, so that a few more than asked may come.
        """
        first, last = np.clip(rows, 0, self.shape[0])
        left, right = np.clip(columns, 0, self.shape[1])
        left -= left % 8
        packed = self.bits[first:last, left // 8 : (right + 7) // 8]
        return np.unpackbits(packed, axis=1)[:, : right - left], (int(first), int(left))


def off_drivable_steps(plan: np.ndarray, frame: EgoFrame, area: DrivableArea) -> np.ndarray:
    """bool [points]: part of the ego box leaves the drivable area at this step (OmniDrive's boundary figure).

    The box (centre 1.486 m ahead of the point, heading of the last segment) is looked up every 0.1 m, and within 50 m
    of the vehicle at t0 to each side. No step is flagged where the box is off the area at t0 already.

    Args:
        plan: [points, 2] in the ego frame.
    """
    if _leaves(np.zeros((1, 2)), np.zeros(1), frame, area).any():
        return np.zeros(len(plan), bool)
    return _leaves(np.asarray(plan, np.float64), step_headings(plan), frame, area)


def _leaves(path: np.ndarray, headings: np.ndarray, frame: EgoFrame, area: DrivableArea) -> np.ndarray:
    cos, sin = np.cos(headings)[:, None], np.sin(headings)[:, None]
    along, across = _FOOTPRINT.T
    points = np.stack([along * cos - across * sin, along * sin + across * cos], axis=-1) + path[:, None]
    counted = (np.abs(points) <= HALF_EXTENT_M).all(axis=-1)
    return (counted & ~area.contains(frame.to_map(points))).any(axis=1)


def _footprint() -> np.ndarray:
    """Points float64 [n, 2] of the ego box at the origin, forward and left, its edges included."""
    along, across = (
        np.linspace(-size / 2, size / 2, int(np.ceil(size / GRID_M)) + 1) for size in (EGO_LENGTH_M, EGO_WIDTH_M)
    )
    grid = np.stack(np.meshgrid(along + CENTRE_AHEAD_M + IMU_AHEAD_M, across, indexing="ij"), axis=-1)
    return grid.reshape(-1, 2)


_FOOTPRINT = _footprint()


def boundary_lines(frame: EgoFrame, area: DrivableArea) -> list[np.ndarray]:
    """The boundaries of the drivable area within 50 m of the vehicle to each side, in the ego frame.

    Polylines float64 [vertices, 2] along the outermost drivable pixels; the raster's own border is no boundary.
    """
    reach = (HALF_EXTENT_M * np.sqrt(2) + 1) / area.resolution_m  # whichever way the vehicle looks
    x, y = (np.asarray(frame.position_m) - area.origin_m) / area.resolution_m
    row = area.shape[0] - y
    window, corner = area.window((int(row - reach), int(row + reach)), (int(x - reach), int(x + reach)))
    if not window.size:
        return []
    outlines, _ = cv2.findContours(window, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    limits = np.array(window.shape[::-1]) - 1
    lines = []
    for outline in outlines:
        pixels = np.concatenate([outline[:, 0], outline[:1, 0]])  # columns and rows, closed
        points = frame.from_map(area.place(pixels[:, 1] + corner[0], pixels[:, 0] + corner[1]))
        wanted = ((pixels > 0) & (pixels < limits)).all(axis=1) & (np.abs(points) < HALF_EXTENT_M).all(axis=1)
        lines += _runs(points, wanted)
    return lines


def _runs(points: np.ndarray, wanted: np.ndarray) -> list[np.ndarray]:
    """The parts of a polyline whose points are all wanted, of two points and more."""
    cuts = np.flatnonzero(np.diff(wanted.astype(np.int8))) + 1
    parts = zip(np.split(points, cuts), np.split(wanted, cuts), strict=True)
    return [part for part, keep in parts if keep[0] and len(part) > 1]
