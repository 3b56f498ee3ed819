"""Leaving the drivable area, and crossing its boundary."""

from __future__ import annotations

import cv2
import numpy as np

from fastdrive_training.data.drivable import DrivableArea, EgoFrame
from fastdrive_training.evaluation.metrics.footprint import CENTRE_AHEAD_M, IMU_AHEAD_M, VEHICLE, step_headings
from fastdrive_training.evaluation.metrics.rasters import HALF_EXTENT_M

GRID_M = 0.1  # largest distance of the points at which a footprint is looked up


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
    sizes = VEHICLE.length_m, VEHICLE.width_m
    along, across = (np.linspace(-size / 2, size / 2, int(np.ceil(size / GRID_M)) + 1) for size in sizes)
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
