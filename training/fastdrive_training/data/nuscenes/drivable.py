"""The drivable area around a keyframe, from the map masks of a dataset in the nuScenes schema.

nuScenes' own masks count sidewalks as drivable; the simulator's do not.
"""

from __future__ import annotations

from pathlib import Path

import cv2

from fastdrive_node.errors import InputError
from fastdrive_training.data.drivable import DrivableArea, EgoFrame
from fastdrive_training.data.ego_track import rotation_matrix
from fastdrive_training.data.nuscenes.tables import NuscenesTables

RESOLUTION_M = 0.1
DRIVABLE_FROM = 128  # grey value


class MapMasks:
    """The maps of a dataset, each read once."""

    def __init__(self, tables: NuscenesTables):
        self._tables = tables
        self._files = {log: record["filename"] for record in tables.devkit.map for log in record["log_tokens"]}
        self._areas: dict[str, DrivableArea] = {}

    def around(self, scene: dict, token: str) -> tuple[EgoFrame, DrivableArea] | None:
        """A sample's ego frame in its map, and the map's drivable area; None where the dataset has no map of its log.

        Raises InputError: the map is no image that can be read.
        """
        filename = self._files.get(scene.get("log_token"))
        if not filename:  # no record, or no image of it
            return None
        pose = self._tables.ego_pose(token)
        forward = rotation_matrix(pose["rotation"])[:2, 0]
        frame = EgoFrame.facing(tuple(pose["translation"][:2]), forward)
        return frame, self._area(filename)

    def _area(self, filename: str) -> DrivableArea:
        if filename not in self._areas:
            self._areas[filename] = read_map(self._tables.root / filename)
        return self._areas[filename]


def read_map(path: Path) -> DrivableArea:
    """A map mask, 0.1 m a pixel, north up, from the map's origin. Raises InputError where it cannot be read."""
    pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if pixels is None:
        state = "is no readable image" if path.exists() else "is missing"
        raise InputError(f"map {path} {state}: fetch or write the dataset again")
    return DrivableArea.from_pixels(pixels >= DRIVABLE_FROM, resolution_m=RESOLUTION_M)
