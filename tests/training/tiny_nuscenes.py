"""A small dataset in the nuScenes schema, written by hand: the tables that nuscenes-devkit wants, images, masks."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from fastdrive_node.types import CAMERAS

EPOCH_US = 1_600_000_000_000_000
LABELS = {"sky": 0, "ground": 1, "road": 2, "vehicle": 8}
GROUPS = {"road": [2], "vehicle": [8]}


def write_dataset(
    root: Path,
    scenes: int = 2,
    keyframes: int = 8,
    size: tuple[int, int] = (112, 224),
    speed: float = 4.0,
    turn: float = 0.0,
    masks: bool = True,
    lidar: bool = False,
    extras: dict | None = None,
    version: str = "v1.0-tiny",
    cameras: Sequence[str] = CAMERAS,
) -> Path:
    """Scene s drives at ``speed`` m/s + s with ``turn`` rad/s from another start; every image of it has its own color.

    ``size`` is (height, width). The right third of every mask is road. The last scene is the val split, where there
    are two or more. ``lidar`` puts the ego pose of a sample on a LIDAR_TOP record that is 0.05 s before the cameras.
    """
    tables = _Tables(size, cameras)
    for scene in range(scenes):
        tables.add_scene(root, scene, keyframes, speed + scene, turn, masks, lidar)
    folder = root / version
    folder.mkdir(parents=True)
    for name, rows in tables.rows.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    names = [row["name"] for row in tables.rows["scene"]]
    held_out = names[-1:] if scenes > 1 else []
    splits = {"train": names[: scenes - len(held_out)], "val": held_out, "test": []}
    (root / "splits.json").write_text(json.dumps(splits))
    if masks:
        (root / "sim.json").write_text(json.dumps({"labels": LABELS, "foreground_groups": GROUPS}))
    if extras is not None:
        (root / "extras.json").write_text(json.dumps(extras))
    return root


class _Tables:
    def __init__(self, size: tuple[int, int], cameras: Sequence[str]):
        self.size, self.cameras = size, cameras
        sensors = [*cameras, "LIDAR_TOP"]
        self.rows = {
            "category": [],
            "attribute": [],
            "visibility": [],
            "instance": [],
            "sample_annotation": [],
            "log": [],
            "map": [],
            "scene": [],
            "sample": [],
            "sample_data": [],
            "ego_pose": [],
            "sensor": [
                {"token": name, "channel": name, "modality": "lidar" if name == "LIDAR_TOP" else "camera"}
                for name in sensors
            ],
            "calibrated_sensor": [
                {"token": f"cs-{name}", "sensor_token": name, "translation": [0, 0, 0], "rotation": [1, 0, 0, 0]}
                for name in sensors
            ],
        }

    def add_scene(self, root, scene, keyframes, speed, turn, masks, lidar) -> None:
        name = f"scene-{scene}"
        (root / "maps").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / "maps" / f"{name}.png"), np.zeros((4, 4), np.uint8))
        self.rows["log"].append({"token": f"log-{scene}", "location": name})
        self.rows["map"].append(
            {"token": f"map-{scene}", "log_tokens": [f"log-{scene}"], "filename": f"maps/{name}.png"}
        )
        tokens = [f"s{scene}k{index}" for index in range(keyframes)]
        self.rows["scene"].append(
            {"token": name, "name": name, "log_token": f"log-{scene}", "first_sample_token": tokens[0]}
        )
        for index, token in enumerate(tokens):
            stamp = EPOCH_US + scene * 10**9 + index * 500_000
            self.rows["sample"].append({"token": token, "timestamp": stamp, **_links(tokens, index, "")})
            pose = f"pose-{token}"
            self._add_pose(pose, stamp, scene, index * 0.5, speed, turn)
            for number, camera in enumerate(self.cameras):
                self._add_image(root, camera, tokens, index, stamp, pose, 40 * scene + 5 * index + 7 * number)
                if masks:
                    _write_mask(root / "masks" / camera / f"{token}.png", self.size)
            if lidar:
                self._add_pose(f"lidar-{pose}", stamp - 50_000, scene, index * 0.5 - 0.05, speed, turn)
                row = self._data("LIDAR_TOP", tokens, index, stamp - 50_000, f"lidar-{pose}")
                self.rows["sample_data"].append({**row, "filename": "none.bin", "height": 0, "width": 0})

    def _add_pose(self, token, stamp, scene, seconds, speed, turn) -> None:
        yaw = 0.3 * scene + turn * seconds
        along = speed * seconds
        if turn:
            radius = speed / turn
            x = radius * (math.sin(yaw) - math.sin(0.3 * scene))
            y = radius * (math.cos(0.3 * scene) - math.cos(yaw))
        else:
            x, y = along * math.cos(yaw), along * math.sin(yaw)
        rotation = [math.cos(yaw / 2), 0, 0, math.sin(yaw / 2)]
        self.rows["ego_pose"].append(
            {"token": token, "timestamp": stamp, "translation": [100 + x, 50 + y, 0], "rotation": rotation}
        )

    def _add_image(self, root, camera, tokens, index, stamp, pose, shade) -> None:
        filename = f"samples/{camera}/{tokens[index]}.jpg"
        (root / filename).parent.mkdir(parents=True, exist_ok=True)
        image = np.full((*self.size, 3), shade % 200, np.uint8)
        image[:, 2 * self.size[1] // 3 :] = 230
        cv2.imwrite(str(root / filename), image)
        row = self._data(camera, tokens, index, stamp, pose)
        self.rows["sample_data"].append({**row, "filename": filename, "height": self.size[0], "width": self.size[1]})

    def _data(self, channel, tokens, index, stamp, pose) -> dict:
        return {
            "token": f"{tokens[index]}-{channel}",
            "sample_token": tokens[index],
            "ego_pose_token": pose,
            "calibrated_sensor_token": f"cs-{channel}",
            "timestamp": stamp,
            "is_key_frame": True,
            **_links(tokens, index, f"-{channel}"),
        }


def _links(tokens: list[str], index: int, suffix: str) -> dict:
    padded = ["", *(token + suffix for token in tokens), ""]
    return {"prev": padded[index], "next": padded[index + 2]}


def _write_mask(path: Path, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.full(size, LABELS["sky"], np.uint8)
    mask[:, 2 * size[1] // 3 :] = LABELS["road"]
    cv2.imwrite(str(path), mask)
