"""The drivable area as a raster, as nuScenes' map masks: 255 where one may drive, 0.1 m a pixel, north up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from fastdrive_sim.types import EgoPose

RESOLUTION_M = 0.1
MARGIN_M = 80.0  # around the ego path: more than the annotation range and a raster of +-50 m need
_SHIFT = 4  # fractional bits of the rasteriser's coordinates


@dataclass(frozen=True)
class MapMask:
    """``origin`` is the world position [m] of the lower left corner of ``pixels``, uint8 [H, W]."""

    origin: tuple[float, float]
    pixels: np.ndarray


def draw_mask(polygons: Iterable[np.ndarray], path: Sequence[EgoPose]) -> MapMask:
    """The drivable polygons (float64 [V, 2], world) around an ego path.

    A point (x, y) from the origin lies in the pixel of column round(x / 0.1) and row H - round(y / 0.1), which is how
    nuscenes-devkit's MapMask finds it.
    """
    positions = np.array([(pose.x, pose.y) for pose in path])
    origin = np.floor(positions.min(axis=0) - MARGIN_M)
    extent = np.ceil(positions.max(axis=0) + MARGIN_M) - origin
    width, height = (math.ceil(side / RESOLUTION_M) for side in extent)
    pixels = np.zeros((height, width), np.uint8)
    for polygon in polygons:
        local = (np.asarray(polygon, np.float64) - origin) / RESOLUTION_M
        columns_rows = np.stack([local[:, 0], height - local[:, 1]], axis=1)
        fixed = np.round(columns_rows * (1 << _SHIFT)).astype(np.int32)
        cv2.fillPoly(pixels, [fixed], (255,), shift=_SHIFT)
    return MapMask((float(origin[0]), float(origin[1])), pixels)
