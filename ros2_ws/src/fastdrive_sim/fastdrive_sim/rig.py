"""The surround rig: six pinhole cameras with nuScenes' geometry (1600x900, roof height 1.5 m, rear camera wide)."""

from __future__ import annotations

import math

import numpy as np

from fastdrive_sim.types import Camera

# name: (x, y, z of the camera in the ego frame [m], yaw [deg], focal length [px], principal point [px])
_GEOMETRY = {
    "CAM_FRONT": ((1.70, 0.02, 1.51), 0.0, 1266.0, (816.0, 491.0)),
    "CAM_FRONT_RIGHT": ((1.55, -0.49, 1.50), -56.0, 1260.0, (808.0, 495.0)),
    "CAM_BACK_RIGHT": ((1.01, -0.48, 1.56), -110.0, 1259.0, (807.0, 501.0)),
    "CAM_BACK": ((0.03, 0.00, 1.58), 180.0, 809.0, (829.0, 482.0)),
    "CAM_BACK_LEFT": ((1.04, 0.48, 1.59), 109.0, 1257.0, (792.0, 493.0)),
    "CAM_FRONT_LEFT": ((1.52, 0.49, 1.51), 55.0, 1272.0, (826.0, 480.0)),
}


def _camera(name: str) -> Camera:
    translation, yaw_deg, focal, (cx, cy) = _GEOMETRY[name]
    yaw = math.radians(yaw_deg)
    forward = np.array([math.cos(yaw), math.sin(yaw), 0.0])
    right = np.array([math.sin(yaw), -math.cos(yaw), 0.0])
    down = np.array([0.0, 0.0, -1.0])
    intrinsic = np.array([[focal, 0, cx], [0, focal, cy], [0, 0, 1.0]])
    return Camera(name, intrinsic, np.stack([right, down, forward], axis=1), np.array(translation))


RIG: tuple[Camera, ...] = tuple(_camera(name) for name in _GEOMETRY)
