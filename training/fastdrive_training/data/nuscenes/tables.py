"""The tables of a dataset in the nuScenes schema, through nuscenes-devkit, and the simulator's additions to them.

The simulator writes ``extras.json`` (command, exact ego history and future of each sample) and ``splits.json``; where
they are absent, these follow from the ego poses and from the devkit's splits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from nuscenes import NuScenes
from nuscenes.utils.splits import create_splits_scenes

from fastdrive_node.errors import InputError
from fastdrive_node.types import CAMERAS
from fastdrive_node.visualization.projection import CameraModel
from fastdrive_training.data.adapters.base import read_object
from fastdrive_training.data.ego_track import EgoTrack, rotation_matrix

EXTRAS, SPLITS = "extras.json", "splits.json"


class _Devkit(NuScenes):  # type: ignore[misc]
    """The devkit's tables, also where map masks or their records are missing: the devkit itself ends there.

    The map record of such a log has an empty ``filename``; ``missing_maps`` names the images that records ask for.
    """

    def __init__(self, version: str, root: Path):
        self.missing_maps: list[str] = []
        super().__init__(version=version, dataroot=str(root), verbose=False)

    def __load_table__(self, table_name: str) -> Any:
        rows: Any = super().__load_table__(table_name)
        if table_name == "map":
            absent = [row for row in rows if not Path(self.dataroot, row["filename"]).is_file()]
            self.missing_maps = [row["filename"] for row in absent]
            for row in absent:
                row["filename"] = ""  # the devkit then checks the dataset's folder in its place
            mapped = {log for row in rows for log in row["log_tokens"]}
            others = [row["token"] for row in self.log if row["token"] not in mapped]
            if others or not rows:
                rows.append({"token": "", "filename": "", "log_tokens": others})
        return rows


class NuscenesTables:
    """All tables of one version.

    Args:
        root: the dataset's folder, which holds a ``v1.0-*`` folder of tables.
        split: tells the version where there are several.

    Raises:
        InputError: no dataset there, or a missing or broken table.
    """

    def __init__(self, root: str | Path, split: str | None = None, version: str | None = None):
        self.root = Path(root)
        self.version = version or _find_version(self.root, split)
        self.devkit = _load_tables(self.root, self.version)
        self._extras = _read_json(self.root / EXTRAS, {})
        self._tracks: dict[str, EgoTrack] = {}

    @property
    def files(self) -> list[Path]:
        """All files that items follow from, images and masks apart."""
        return [*sorted((self.root / self.version).glob("*.json")), self.root / EXTRAS]

    @property
    def cameras(self) -> tuple[str, ...]:
        """Every camera of the dataset: nuScenes' six in their usual order, then others by name."""
        present = {sensor["channel"] for sensor in self.devkit.sensor if sensor["modality"] == "camera"}
        return (*(name for name in CAMERAS if name in present), *sorted(present - set(CAMERAS)))

    def splits(self) -> tuple[dict[str, list[str]], str]:
        """Scene names by split, and where that is written. Raises InputError where ``splits.json`` is broken."""
        splits = _read_json(self.root / SPLITS, None)
        return (create_splits_scenes(), "nuscenes-devkit") if splits is None else (splits, SPLITS)

    def sample_tokens(self, scene: dict) -> Iterator[str]:
        """The samples of a scene in time order."""
        token = scene["first_sample_token"]
        while token:
            yield token
            token = self.devkit.get("sample", token)["next"]

    def ego_pose(self, token: str) -> dict:
        """The record of ``ego_pose`` of a sample: the lidar's where there is one, else the first camera's."""
        return self.devkit.get("ego_pose", self._reference(token)["ego_pose_token"])

    def extras(self, token: str) -> dict[str, Any]:
        """What ``extras.json`` says of a sample; empty where it says nothing."""
        extras = self._extras.get(token, {})
        if not isinstance(extras, dict):
            raise self.extras_error(token, "entry", f"must be an object, is {type(extras).__name__}")
        return extras

    def extras_error(self, token: str, field: str, problem: str) -> InputError:
        return InputError(f"{self.root / EXTRAS}: {field} of sample {token}: {problem}; write the dataset again")

    def track(self, scene: dict) -> EgoTrack:
        """All poses of the reference sensor in the scene, sweeps included."""
        if scene["name"] not in self._tracks:
            record = self._reference(scene["first_sample_token"])
            while record["prev"]:
                record = self.devkit.get("sample_data", record["prev"])
            poses = [self.devkit.get("ego_pose", record["ego_pose_token"])]
            while record["next"]:
                record = self.devkit.get("sample_data", record["next"])
                poses.append(self.devkit.get("ego_pose", record["ego_pose_token"]))
            poses += [self.ego_pose(token) for token in self.sample_tokens(scene)]
            self._tracks[scene["name"]] = EgoTrack.from_poses(poses)
        return self._tracks[scene["name"]]

    def camera_model(self, record: dict) -> CameraModel | None:
        """The calibration of an image by its record of ``sample_data``; None where the tables have none."""
        calibrated = self.devkit.get("calibrated_sensor", record["calibrated_sensor_token"])
        try:
            intrinsic = np.array(calibrated["camera_intrinsic"], np.float64).reshape(3, 3)
            rotation = rotation_matrix(calibrated["rotation"])
            translation = np.array(calibrated["translation"], np.float64).reshape(3)
        except (KeyError, TypeError, ValueError):
            return None
        finite = all(np.isfinite(part).all() for part in (intrinsic, rotation, translation))
        size = int(record["width"]), int(record["height"])
        return CameraModel(intrinsic, rotation, translation, size) if finite else None

    def _reference(self, token: str) -> dict:
        """The sample_data whose ego pose is the sample's."""
        data = self.devkit.get("sample", token)["data"]
        channel = next((name for name in ("LIDAR_TOP", *self.cameras) if name in data), None)
        if channel is None:
            raise InputError(f"{self.root}: sample {token} has neither lidar nor camera in sample_data.json")
        return self.devkit.get("sample_data", data[channel])


def _find_version(root: Path, split: str | None) -> str:
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the folder that holds the dataset")
    found = sorted(path.parent.name for path in root.glob("v1.0-*/sample.json"))
    if not found:
        raise InputError(f"{root}: no nuScenes-schema dataset (a v1.0-* folder with sample.json) in it")
    if len(found) == 1:
        return found[0]
    wanted = {"test": "v1.0-test", "mini_train": "v1.0-mini", "mini_val": "v1.0-mini"}.get(split or "", "v1.0-trainval")
    if split is None or wanted not in found:
        raise InputError(f"{root}: holds {', '.join(found)}; name a split of one of them")
    return wanted


def _load_tables(root: Path, version: str) -> _Devkit:
    try:
        return _Devkit(version, root)
    except FileNotFoundError as error:
        raise InputError(f"{error.filename}: table is missing; fetch or write the dataset again") from None
    except Exception as error:  # the devkit raises bare exceptions of many kinds for broken tables
        raise InputError(f"{root / version}: nuscenes-devkit cannot load the tables ({error!r})") from error


def _read_json(path: Path, default):
    return read_object(path, "write the dataset again") if path.exists() else default
