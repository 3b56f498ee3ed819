"""Low-polygon meshes: a ``Mesh`` of plain arrays, and the ``MeshBuilder`` that makes one of boxes, prisms and discs.

Local frame: x forward (along yaw), y left, z up, the origin in the middle of the footprint. Metres.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fastdrive_sim import textures

Rgb = tuple[float, float, float]
BODY: Rgb = (-1.0, -1.0, -1.0)  # "the color of the thing"


@dataclass(frozen=True)
class Mesh:
    """Flat-shaded triangles. ``tint`` is the fraction of the thing's own color, used where it is above 0."""

    position: np.ndarray  # float32 [V, 3]
    normal: np.ndarray  # float32 [V, 3]
    color: np.ndarray  # float32 [V, 3], 0..1
    tint: np.ndarray  # float32 [V]
    glow: np.ndarray  # bool [V], shines by itself
    uv: np.ndarray  # float32 [V, 2]
    layer: np.ndarray  # uint8 [V], of the texture array
    triangles: np.ndarray  # int32 [T, 3]


class MeshBuilder:
    """Collects convex faces. Points of a face run counter-clockwise as seen from outside."""

    def __init__(self) -> None:
        self._points: list[np.ndarray] = []
        self._rows: list[tuple[np.ndarray, Rgb, float, bool, int, np.ndarray]] = []

    def face(
        self,
        points: ArrayLike,
        color: Rgb = BODY,
        layer: int = textures.FLAT,
        uv: ArrayLike | None = None,
        shade: float = 1.0,
        glow: bool = False,
        scale: float = 0.25,
    ) -> None:
        """A convex polygon [K, 3]. Without ``uv`` the texture repeats every 1 / ``scale`` metres."""
        corners = np.asarray(points, np.float32)
        normal = np.cross(corners[1] - corners[0], corners[2] - corners[0])
        normal = normal / (np.linalg.norm(normal) + 1e-12)
        if uv is None:
            axis = int(np.argmax(np.abs(normal)))
            uv = corners[:, ((1, 2), (0, 2), (0, 1))[axis]] * scale
        self._points.append(corners)
        self._rows.append((normal, color, shade, glow, layer, np.asarray(uv, np.float32)))

    def prism(self, bottom: np.ndarray, top: np.ndarray, cap: dict | None = None, **look) -> None:
        """The hull between two polygons [K, 3], both counter-clockwise from above; ``cap`` is the look of the top."""
        count = len(bottom)
        for i in range(count):
            j = (i + 1) % count
            self.face([bottom[i], bottom[j], top[j], top[i]], **look)
        self.face(top, **{**look, **(cap or {})})

    def box(self, low: Sequence[float], high: Sequence[float], cap: dict | None = None, **look) -> None:
        """An axis-aligned box without its bottom."""
        self.frustum(low, high, (low[0], low[1]), (high[0], high[1]), cap, **look)

    def frustum(self, low, high, top_low, top_high, cap: dict | None = None, **look) -> None:
        """A box whose top is the rectangle from ``top_low`` to ``top_high`` (xy)."""
        self.prism(_rectangle(low, high, low[2]), _rectangle(top_low, top_high, high[2]), cap, **look)

    def cone(self, x: float, y: float, z: tuple[float, float], radius: tuple[float, float], sides: int, **look) -> None:
        """A cylinder or cone about a vertical axis; z and radius at the bottom and at the top."""
        self.prism(_ring(x, y, z[0], radius[0], sides), _ring(x, y, z[1], radius[1], sides), **look)

    def blob(self, center: Sequence[float], radius: Sequence[float], sides: int = 6, **look) -> None:
        """A coarse ellipsoid."""
        (x, y, z), (rx, ry, rz) = center, radius
        rings = []
        for k, turn in zip((-0.75, -0.1, 0.65), (0.0, 0.5, 0.0), strict=True):
            ring = _ring(0, 0, k * rz, math.sqrt(1 - k * k), sides, turn)
            rings.append(ring * (rx, ry, 1) + (x, y, z))
        self.prism(rings[0], rings[1], {"glow": False}, **look)
        self.prism(rings[1], rings[2], **look)
        apex = np.array([x, y, z + rz])
        for i in range(sides):
            self.face([rings[2][i], rings[2][(i + 1) % sides], apex], **look)

    def extrude(self, profile: Sequence[tuple[float, float]], y: tuple[float, float], **look) -> None:
        """A convex profile in xz, counter-clockwise as seen from the right (-y), drawn along y from right to left."""
        right = [(px, y[0], pz) for px, pz in profile]
        left = [(px, y[1], pz) for px, pz in profile]
        self.face(right, **look)
        self.face(left[::-1], **look)
        for i in range(len(profile)):
            j = (i + 1) % len(profile)
            self.face([right[j], right[i], left[i], left[j]], **look)

    def disc(self, center: Sequence[float], radius: float, sides: int = 8, back: bool = False, **look) -> None:
        """A regular polygon that faces +x (-x with ``back``); its texture spans it once, upright."""
        angle = (np.arange(sides) + 0.5) * 2 * math.pi / sides
        side = -1.0 if back else 1.0
        plane = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        points = np.stack([np.zeros(sides), side * plane[:, 0] * radius, plane[:, 1] * radius], axis=1)
        self.face(points + np.asarray(center), uv=0.5 + plane * (0.5, -0.5) / math.cos(math.pi / sides), **look)

    def panel(self, x: float, y: Sequence[float], z: tuple[float, float], back: bool = False, **look) -> None:
        """An upright rectangle that faces +x (-x with ``back``); its texture spans it once, upright."""
        right, left = y if not back else y[::-1]
        points = [(x, right, z[0]), (x, left, z[0]), (x, left, z[1]), (x, right, z[1])]
        self.face(points, uv=np.array([[0, 1], [1, 1], [1, 0], [0, 0]]), **look)

    def mesh(self) -> Mesh:
        """All faces so far, each split into a fan of triangles."""
        counts = np.array([len(points) for points in self._points])
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        fans = [
            start + np.stack([np.zeros(n - 2, int), np.arange(1, n - 1), np.arange(2, n)], axis=1)
            for start, n in zip(starts, counts, strict=True)
        ]
        normals, colors, shades, glows, layers, uvs = zip(*self._rows, strict=True)
        rgb = np.array(colors, np.float32)
        body = rgb[:, 0] < 0
        shade = np.array(shades, np.float32)
        return Mesh(
            position=np.concatenate(self._points),
            normal=np.repeat(np.array(normals, np.float32), counts, axis=0),
            color=np.repeat(np.where(body[:, None], 0, rgb * shade[:, None]), counts, axis=0).astype(np.float32),
            tint=np.repeat(np.where(body, shade, 0), counts).astype(np.float32),
            glow=np.repeat(np.array(glows), counts),
            uv=np.concatenate(uvs),
            layer=np.repeat(np.array(layers, np.uint8), counts),
            triangles=np.concatenate(fans).astype(np.int32),
        )


def _rectangle(low: Sequence[float], high: Sequence[float], z: float) -> np.ndarray:
    (x0, y0), (x1, y1) = low[:2], high[:2]
    return np.array([(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)])


def _ring(x: float, y: float, z: float, radius: float, sides: int, turn: float = 0.0) -> np.ndarray:
    angle = (np.arange(sides) + turn) * 2 * math.pi / sides
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle), np.full(sides, z)], axis=1)
