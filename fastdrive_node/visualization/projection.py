"""Points of the ego frame in a camera's image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class CameraModel:
    """A pinhole camera on the vehicle."""

    intrinsic: np.ndarray  # [3, 3], px
    rotation: np.ndarray  # [3, 3], camera axes (x right, y down, z forward) to the ego frame
    translation: np.ndarray  # [3], camera in the ego frame, m
    size: tuple[int, int]  # width, height in px that the intrinsic belongs to

    def scaled(self, width: int, height: int) -> CameraModel:
        """The same camera for a resized image."""
        scale = np.diag([width / self.size[0], height / self.size[1], 1.0])
        return CameraModel(scale @ self.intrinsic, self.rotation, self.translation, (width, height))

    def project(self, points_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ego points [n, 3] -> pixels [n, 2] and depths [n] in metres; pixels mean nothing at depths up to 0."""
        local = (points_m - self.translation) @ self.rotation
        depth = local[:, 2]
        safe = np.where(np.abs(depth) < 1e-6, 1e-6, depth)
        pixels = local @ self.intrinsic.T
        return pixels[:, :2] / safe[:, None], depth


# The front camera of nuScenes' vehicles, as its calibration gives it, rounded.
NUSCENES_FRONT = CameraModel(
    intrinsic=np.array([[1266.0, 0.0, 816.0], [0.0, 1266.0, 491.0], [0.0, 0.0, 1.0]]),
    rotation=np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]),
    translation=np.array([1.70, 0.02, 1.51]),
    size=(1600, 900),
)
