"""The drivable area of a map as a raster, and where the vehicle stands in it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


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
        height, width = pixels.shape
        return cls(np.packbits(pixels, axis=1), (height, width), origin_m, resolution_m)

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
