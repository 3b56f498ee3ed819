"""Camera rigs by name: pinhole cameras, in the order of a dataset's and a bag's images. A new rig is an entry here."""

from __future__ import annotations

import math

import numpy as np

from fastdrive_sim.types import Camera


def camera(
    name: str, xyz_m: tuple[float, float, float], yaw_deg: float, focal_px: float, center_px: tuple[float, float]
) -> Camera:
    """A level camera at ``xyz_m`` in the ego frame, turned by ``yaw_deg`` to the left; pixels of 1600 x 900 images."""
    yaw = math.radians(yaw_deg)
    forward = np.array([math.cos(yaw), math.sin(yaw), 0.0])
    right = np.array([math.sin(yaw), -math.cos(yaw), 0.0])
    down = np.array([0.0, 0.0, -1.0])
    cx, cy = center_px
    intrinsic = np.array([[focal_px, 0, cx], [0, focal_px, cy], [0, 0, 1.0]])
    return Camera(name, intrinsic, np.stack([right, down, forward], axis=1), np.array(xyz_m))


DEFAULT_RIG = "nuscenes"  # nuScenes' geometry: six cameras around the roof, 1.5 m high, the rear one wide
_NUSCENES = (
    camera("CAM_FRONT", (1.70, 0.02, 1.51), 0.0, 1266.0, (816.0, 491.0)),
    camera("CAM_FRONT_RIGHT", (1.55, -0.49, 1.50), -56.0, 1260.0, (808.0, 495.0)),
    camera("CAM_BACK_RIGHT", (1.01, -0.48, 1.56), -110.0, 1259.0, (807.0, 501.0)),
    camera("CAM_BACK", (0.03, 0.00, 1.58), 180.0, 809.0, (829.0, 482.0)),
    camera("CAM_BACK_LEFT", (1.04, 0.48, 1.59), 109.0, 1257.0, (792.0, 493.0)),
    camera("CAM_FRONT_LEFT", (1.52, 0.49, 1.51), 55.0, 1272.0, (826.0, 480.0)),
)
RIGS: dict[str, tuple[Camera, ...]] = {
    DEFAULT_RIG: _NUSCENES,
    "nuscenes-tele": (*_NUSCENES, camera("CAM_FRONT_TELE", (1.70, 0.00, 1.51), 0.0, 3800.0, (800.0, 450.0))),
}
