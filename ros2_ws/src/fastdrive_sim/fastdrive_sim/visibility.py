"""How much of an object the cameras see, in nuScenes' four levels."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from fastdrive_sim.geometry import box_corners, to_ego
from fastdrive_sim.types import Camera, EgoPose, Thing, Views

LEVELS = ("v0-40", "v40-60", "v60-80", "v80-100")  # tokens "1" .. "4"
_NEAR_M = 0.1  # corners behind this plane are left out of the outline
_FAR_PX = 20_000  # keeps an outline's coordinates within what the rasteriser accepts


def visibility_tokens(things: Sequence[Thing], ego: EgoPose, views: Views, rig: Sequence[Camera]) -> list[str]:
    """nuScenes' visibility token of each thing: visible pixels over visible and hidden ones, over all cameras.

    A pixel within the outline of a thing's box is hidden where something nearer than the whole box was drawn.
    Things that no camera has in its field of view get the lowest level.
    """
    if not things:
        return []
    seen = np.bincount(views.instance.ravel(), minlength=1 + max(thing.instance for thing in things))
    hidden = np.zeros(len(things), np.int64)
    height, width = views.label.shape[1:]
    corners = np.stack([_in_ego(thing, ego) for thing in things])
    for index, camera in enumerate(rig):
        points = (corners - camera.translation) @ camera.rotation
        intrinsic = camera.scaled(width, height)
        for number in np.flatnonzero((points[..., 2] > _NEAR_M).any(axis=1)):
            hidden[number] += _hidden_pixels(points[number], intrinsic, things[number].instance, views, index)
    return [_token(int(seen[thing.instance]), int(count)) for thing, count in zip(things, hidden, strict=True)]


def _in_ego(thing: Thing, ego: EgoPose) -> np.ndarray:
    corners = box_corners(thing)
    return np.concatenate([to_ego(ego, corners[:, :2]), corners[:, 2:]], axis=1)


def _hidden_pixels(points: np.ndarray, intrinsic: np.ndarray, instance: int, views: Views, camera: int) -> int:
    """Pixels of one view within the outline of ``points`` [8, 3] (camera frame) that something nearer covers."""
    ahead = points[points[:, 2] > _NEAR_M]
    pixels = (ahead @ intrinsic.T)[:, :2] / ahead[:, 2:]
    height, width = views.label.shape[1:]
    left, top = np.clip(np.floor(pixels.min(axis=0)), 0, (width, height)).astype(int)
    right, bottom = np.clip(np.ceil(pixels.max(axis=0)) + 1, 0, (width, height)).astype(int)
    if left >= right or top >= bottom:
        return 0
    outline = np.zeros((bottom - top, right - left), np.uint8)
    hull = cv2.convexHull(np.clip(np.floor(pixels) - (left, top), -_FAR_PX, _FAR_PX).astype(np.int32))
    cv2.fillConvexPoly(outline, hull, (1,))
    window = (camera, slice(top, bottom), slice(left, right))
    covered = (views.instance[window] != instance) & (views.depth[window] < points[:, 2].min())
    return int(np.count_nonzero(covered & (outline > 0)))


def _token(seen: int, hidden: int) -> str:
    fraction = seen / max(1, seen + hidden)
    return str(1 + sum(fraction >= limit for limit in (0.4, 0.6, 0.8)))
