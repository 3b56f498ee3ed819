"""Reading a written dataset as nuscenes-devkit shows it."""

from __future__ import annotations

import json
import math
from pathlib import Path


def read(toy: Path, name: str):
    return json.loads((toy / name).read_text())


def chain(devkit, scene: dict) -> list[dict]:
    samples, token = [], scene["first_sample_token"]
    while token:
        samples.append(devkit.get("sample", token))
        assert len(samples) <= len(devkit.sample), "the links run in a circle"
        token = samples[-1]["next"]
    return samples


def ego_pose(devkit, sample: dict) -> tuple[float, float, float]:
    pose = devkit.get("ego_pose", devkit.get("sample_data", sample["data"]["CAM_FRONT"])["ego_pose_token"])
    w, _, _, z = pose["rotation"]
    return (*pose["translation"][:2], 2 * math.atan2(z, w))


def in_frame(pose: tuple[float, float, float], x: float, y: float) -> tuple[float, float]:
    dx, dy = x - pose[0], y - pose[1]
    cos, sin = math.cos(pose[2]), math.sin(pose[2])
    return cos * dx + sin * dy, cos * dy - sin * dx
