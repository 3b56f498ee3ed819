"""Pedestrians who step out from behind something, as the simulator's scenario ``step-out`` records them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fastdrive_node.errors import InputError
from fastdrive_training.data.adapters.base import Item
from fastdrive_training.data.masks import cell_coverage

FOLDER = "step_out"  # <CAMERA>/<sample token>.png: uint8, the number of the pedestrian that a pixel shows


@dataclass(frozen=True)
class Sighting:
    """A pedestrian in one keyframe, after it came into sight."""

    scene: str
    number: int  # in its scene
    keyframes_since: int  # 0: the keyframe in which it came into sight
    pixels: np.ndarray  # float32 [cameras, rows * cols], its pixels in the cell of each token; some are above 0


def sightings(root: Path, keyframe: Item, cameras: Sequence[str], grid: tuple[int, int]) -> list[Sighting]:
    """The pedestrians that one keyframe shows, of those that came into sight in it or before.

    Raises InputError: a broken entry in ``extras.json``, or a missing or broken mask.
    """
    found = []
    for entry in keyframe.extras.get("step_outs", []):
        number, since, seen_by = _entry(root, keyframe, entry)
        if since is None or not any(camera in seen_by for camera in cameras):
            continue
        pixels = [
            _pixels(root, keyframe.name, camera, number, grid) if camera in seen_by else np.zeros(grid[0] * grid[1])
            for camera in cameras
        ]
        found.append(Sighting(keyframe.scene, number, since, np.stack(pixels).astype(np.float32)))
    return found


def _entry(root: Path, keyframe: Item, entry: Any) -> tuple[int, int | None, dict]:
    try:
        number, since, seen_by = entry["number"], entry["keyframes_since_visible"], entry["pixels"]
        sound = isinstance(number, int) and 1 <= number <= 255 and isinstance(seen_by, dict)
        if not sound or not (since is None or (isinstance(since, int) and since >= 0)):
            raise ValueError("values out of range")
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(
            f"{root / 'extras.json'}: step_outs of sample {keyframe.name}: needs number, pixels and "
            f"keyframes_since_visible ({error!r}); write the dataset again"
        ) from None
    return number, since, seen_by


def _pixels(root: Path, token: str, camera: str, number: int, grid: tuple[int, int]) -> np.ndarray:
    path = root / FOLDER / camera / f"{token}.png"
    mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if mask is None or mask.ndim != 2 or mask.dtype != np.uint8:
        raise InputError(f"{path}: is missing or no 8-bit mask; write the dataset again")
    return cell_coverage(mask == number, *grid) * mask.size / (grid[0] * grid[1])
