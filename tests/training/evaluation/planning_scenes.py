"""Objects and a map for the datasets of ``tiny_nuscenes``, whose tables have none."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

VERSION = "v1.0-tiny"


def edit_table(root: Path, name: str, change: Callable[[list[dict]], None]) -> None:
    """Change the rows of a table in place."""
    path = root / VERSION / f"{name}.json"
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))


def add_object(
    root: Path,
    name: str,
    places: dict[str, tuple[float, float, float]],
    size: tuple[float, float] = (4.0, 2.0),
    points: int = 5,
) -> None:
    """An object with a world position and yaw at some samples; ``size`` is (length, width), ``points`` of the lidar."""
    rows = [
        {
            "token": f"{name}-{sample}",
            "sample_token": sample,
            "instance_token": name,
            "visibility_token": "4",
            "attribute_tokens": [],
            "translation": [x, y, 0.8],
            "size": [size[1], size[0], 1.6],
            "rotation": [math.cos(yaw / 2), 0, 0, math.sin(yaw / 2)],
            "num_lidar_pts": points,
            "num_radar_pts": 0,
            "prev": "",
            "next": "",
        }
        for sample, (x, y, yaw) in places.items()
    ]  # fmt: skip
    edit_table(root, "sample_annotation", lambda table: table.extend(rows))
    edit_table(root, "category", lambda table: table or table.append({"token": "car", "name": "vehicle.car"}))
    edit_table(
        root,
        "instance",
        lambda table: table.append(
            {
                "token": name,
                "category_token": "car",
                "nbr_annotations": len(rows),
                "first_annotation_token": rows[0]["token"],
                "last_annotation_token": rows[-1]["token"],
            }
        ),
    )


def draw_road(root: Path, scene: str, low_y: float, high_y: float, size_m: float = 200.0) -> None:
    """A road along x between two y, over the whole map of a scene."""
    cells = round(size_m * 10)
    pixels = np.zeros((cells, cells), np.uint8)
    pixels[cells - round(high_y * 10) : cells - round(low_y * 10) + 1] = 255
    cv2.imwrite(str(root / "maps" / f"{scene}.png"), pixels)
