"""The drivable area around a keyframe, from the map masks of a dataset in the nuScenes schema.

nuScenes' own masks count sidewalks as drivable; the simulator's do not.
"""

from __future__ import annotations

from pathlib import Path

import cv2
from pyquaternion import Quaternion

from fastdrive_node.errors import InputError
from fastdrive_training.data.nuscenes.keyframes import KeyframeDataset
from fastdrive_training.evaluation.metrics.drivable import DrivableArea, EgoFrame

RESOLUTION_M = 0.1
DRIVABLE_FROM = 128  # grey value


class MapMasks:
    """The maps of a dataset, each read once."""

    def __init__(self, dataset: KeyframeDataset):
        self._dataset = dataset
        logs = {scene["name"]: scene.get("log_token") for scene in dataset.tables.scene}
        files = {log: record["filename"] for record in dataset.tables.map for log in record["log_tokens"]}
        self._files = {
            token: files.get(logs[scene]) for token, scene in zip(dataset.tokens, dataset.scenes, strict=True)
        }
        self._areas: dict[str, DrivableArea] = {}

    def around(self, token: str) -> tuple[EgoFrame, DrivableArea] | None:
        """Where a sample's ego frame lies, and the map that it lies in; None where the dataset has no map of the place.

        Raises InputError: the map is no image that can be read.
        """
        filename = self._files[token]
        if filename is None:
            return None
        pose = self._dataset.ego_pose(token)
        forward = Quaternion(pose["rotation"]).rotation_matrix[:2, 0]
        frame = EgoFrame.facing(tuple(pose["translation"][:2]), forward)
        return frame, self._area(filename)

    def _area(self, filename: str) -> DrivableArea:
        if filename not in self._areas:
            self._areas[filename] = read_map(self._dataset.root / filename)
        return self._areas[filename]


def read_map(path: Path) -> DrivableArea:
    """A map mask, 0.1 m a pixel, north up, from the map's origin. Raises InputError where it cannot be read."""
    pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if pixels is None:
        state = "is no readable image" if path.exists() else "is missing"
        raise InputError(f"map {path} {state}: fetch or write the dataset again")
    return DrivableArea.from_pixels(pixels >= DRIVABLE_FROM, resolution_m=RESOLUTION_M)
