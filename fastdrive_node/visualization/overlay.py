"""What is drawn into a camera's image: the tokens that were kept, and the trajectory on the road."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from fastdrive_node.types import Vehicle
from fastdrive_node.visualization.layout import SMOOTH
from fastdrive_node.visualization.projection import CameraModel

KEPT = (72, 207, 173)
_KEPT = np.array(KEPT, np.float32)
_DIM = (0.4 * np.arange(256) + 8).astype(np.uint8)  # brightness of a dropped token's pixels
_NEAR, _FAR = np.array([255, 196, 61]), np.array([255, 82, 119])  # the trajectory, from now to its end
MIN_DEPTH_M = 0.8  # what is nearer to the camera is not drawn


def overlay(image: np.ndarray, kept: np.ndarray, scores: np.ndarray | None = None) -> np.ndarray:
    """One camera's image with its kept tokens: dropped ones gray and dim, kept ones outlined.

    Args:
        image: uint8 RGB [H, W, 3].
        kept: bool [rows, columns].
        scores: float [rows, columns]; where given, the kept tokens are tinted, more with a higher score.

    Returns:
        uint8 RGB [H, W, 3].
    """
    height, width = image.shape[:2]
    cells = tuple(np.arange(size) * count // size for size, count in zip((height, width), kept.shape, strict=True))
    mask = kept[np.ix_(*cells)]
    gray = _DIM[np.asarray(Image.fromarray(image).convert("L"))]
    bright = image
    if scores is not None:
        weight = 0.35 * _relative(scores)[np.ix_(*cells)][..., None]
        bright = (image * (1 - weight) + _KEPT * weight).astype(np.uint8)
    result = np.where(mask[..., None], bright, gray[..., None])
    outline = _outline(mask, max(1, round(width / 300)))
    result[outline] = (0.25 * result[outline] + 0.75 * _KEPT).astype(np.uint8)
    return result


def _relative(scores: np.ndarray) -> np.ndarray:
    """Scores scaled to 0..1."""
    low, high = float(scores.min()), float(scores.max())
    return ((scores - low) / max(high - low, 1e-9)).astype(np.float32)


def _outline(mask: np.ndarray, thickness: int) -> np.ndarray:
    """Pixels of the mask within ``thickness`` of its border (the image's own border left out)."""
    inner = mask.copy()
    for axis in (0, 1):
        for shift in (thickness, -thickness):
            moved = np.roll(mask, shift, axis)
            edge = [slice(None)] * 2
            edge[axis] = slice(0, thickness) if shift > 0 else slice(-thickness, None)
            moved[tuple(edge)] = True
            inner &= moved
    return mask & ~inner


def path_through(waypoints_m: np.ndarray, samples: int = 24) -> np.ndarray:
    """A smooth path [n, 2] from the origin through the waypoints (uniform Catmull-Rom spline)."""
    knots = np.concatenate([[[0.0, 0.0]], waypoints_m])
    padded = np.concatenate([[2 * knots[0] - knots[1]], knots, [2 * knots[-1] - knots[-2]]])
    t = np.arange(samples)[:, None] / samples
    pieces = []
    for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        pieces.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    return np.concatenate([*pieces, knots[-1:]])


def time_color(fraction: float) -> tuple[int, int, int]:
    """Color of the trajectory after a fraction of its time."""
    red, green, blue = (int(value) for value in _NEAR + (_FAR - _NEAR) * np.clip(fraction, 0, 1))
    return red, green, blue


def draw_ribbon(draw: ImageDraw.ImageDraw, waypoints_m: np.ndarray, camera: CameraModel, vehicle: Vehicle) -> None:
    """The path on the ground [points, 2], as wide as the vehicle, seen by a camera; a dot at each waypoint."""
    path = path_through(waypoints_m)
    if np.linalg.norm(path[-1]) < 0.5:
        return
    left, right = _edges(path, vehicle.width_m / 2)
    (left_px, depth), (right_px, _) = (camera.project(on_ground(edge)) for edge in (left, right))
    seen = [i for i in range(len(path) - 1) if min(depth[i], depth[i + 1]) > MIN_DEPTH_M]
    for i in seen:
        quad = [left_px[i], left_px[i + 1], right_px[i + 1], right_px[i]]
        draw.polygon([tuple(point) for point in quad], fill=(*time_color(i / (len(path) - 1)), 130))
    for edge in (left_px, right_px):
        for i in seen:
            draw.line([tuple(edge[i]), tuple(edge[i + 1])], fill=(*time_color(i / len(path)), 255), width=2 * SMOOTH)
    dots, depths = camera.project(on_ground(waypoints_m))
    for i, ((x, y), away) in enumerate(zip(dots, depths, strict=True)):
        if away > MIN_DEPTH_M:
            radius = SMOOTH * float(np.clip(60 / away, 3, 7))
            box = (x - radius, y - 0.6 * radius, x + radius, y + 0.6 * radius)
            draw.ellipse(box, fill=(255, 255, 255, 235), outline=(*time_color(i / 5), 255), width=SMOOTH)


def _edges(path: np.ndarray, half_width: float) -> tuple[np.ndarray, np.ndarray]:
    """The path moved to its left and right."""
    direction = np.gradient(path, axis=0)
    direction /= np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-6)
    normal = np.stack([-direction[:, 1], direction[:, 0]], axis=1) * half_width
    return path + normal, path - normal


def on_ground(points: np.ndarray) -> np.ndarray:
    """[n, 2] -> [n, 3] with z = 0."""
    return np.concatenate([points, np.zeros((len(points), 1))], axis=1)
