"""Points, rectangles and polygons on the ground, many at a time."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

EDGE_M = 1e-6  # a point so near to an edge is inside


def inside(points: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """bool [...]: which points [..., 2] are in a polygon [V, 2], by crossings of a ray; its edges belong to it."""
    points = np.asarray(points, np.float64)
    flat = points.reshape(-1, 2)
    found = np.zeros(len(flat), bool)
    margin = EDGE_M + 1e-9
    near = ((flat >= polygon.min(axis=0) - margin) & (flat <= polygon.max(axis=0) + margin)).all(axis=1)
    if near.any():
        found[near] = _inside(flat[near], polygon)
    return found.reshape(points.shape[:-1])


def inside_any(points: np.ndarray, polygons: Iterable[np.ndarray]) -> np.ndarray:
    """bool [...]: which points are in at least one of the polygons."""
    found = np.zeros(np.asarray(points).shape[:-1], bool)
    for polygon in polygons:
        found |= inside(points, polygon)
    return found


def _inside(points: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    start = np.asarray(polygon, np.float64)
    end = np.roll(start, -1, axis=0)
    x, y = points[:, :1], points[:, 1:]
    dx, dy = (end - start).T
    spans = (start[:, 1] > y) != (end[:, 1] > y)
    at = start[:, 0] + (y - start[:, 1]) * (dx / np.where(dy == 0, 1.0, dy))
    found = (spans & (x < at)).sum(axis=1) % 2 == 1
    rest = ~found
    if rest.any():
        found[rest] = distances(points[rest], np.concatenate([start, start[:1]])) <= EDGE_M
    return found


def distances(points: np.ndarray, line: np.ndarray) -> np.ndarray:
    """Distance [N] of points [N, 2] from a polyline [V, 2]."""
    start, along = line[:-1], np.diff(line, axis=0)
    length2 = np.maximum((along**2).sum(axis=1), 1e-12)
    away = points[:, None] - start
    part = np.clip((away * along).sum(axis=2) / length2, 0.0, 1.0)
    return np.linalg.norm(away - part[..., None] * along, axis=2).min(axis=1)


def rectangles(x, y, yaw, length, width) -> np.ndarray:
    """Corners [..., 4, 2] of rectangles around their middles: front left, rear left, rear right, front right."""
    values = (np.asarray(value, np.float64) for value in (x, y, yaw, length, width))
    x, y, yaw, length, width = np.broadcast_arrays(*values)
    along = np.stack([length, -length, -length, length], axis=-1) / 2
    left = np.stack([width, width, -width, -width], axis=-1) / 2
    cos, sin = np.cos(yaw)[..., None], np.sin(yaw)[..., None]
    return np.stack([x[..., None] + cos * along - sin * left, y[..., None] + sin * along + cos * left], axis=-1)


def overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """bool [...]: which pairs of convex polygons [..., V, 2], [..., W, 2] have a point in common (separating axes).

    Both may have another number of corners, and two corners are a line.
    """
    apart = np.zeros(np.broadcast_shapes(first.shape[:-2], second.shape[:-2]), bool)
    for polygon in (first, second):
        edges = np.roll(polygon, -1, axis=-2) - polygon
        normals = np.stack([-edges[..., 1], edges[..., 0]], axis=-1)
        if polygon.shape[-2] == 2:  # a line can also lie in the continuation of the other's edge
            normals = np.concatenate([normals, edges], axis=-2)
        a = np.einsum("...vc,...nc->...nv", first, normals)
        b = np.einsum("...vc,...nc->...nv", second, normals)
        gap = (a.max(axis=-1) < b.min(axis=-1)) | (b.max(axis=-1) < a.min(axis=-1))
        apart |= gap.any(axis=-1)
    return ~apart
