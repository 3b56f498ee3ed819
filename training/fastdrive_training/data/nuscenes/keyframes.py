"""Keyframes of a dataset in the nuScenes schema, the simulator's or the real one, through nuscenes-devkit.

The simulator adds ``masks/<CAM>/<sample token>.png``, ``splits.json``, ``sim.json`` (label table) and ``extras.json``
(command, exact ego history and future of each sample); where they are absent, command, history and future follow from
the ego poses. Masks of ``fastdrive annotate`` are read from their own folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from nuscenes import NuScenes
from nuscenes.utils.splits import create_splits_scenes

from fastdrive_node.errors import InputError
from fastdrive_node.types import CAMERAS, Command, EgoHistory, EgoState
from fastdrive_training.data.nuscenes.ego_track import FUTURE_POINTS, INTERVAL_S, EgoTrack, command_of
from fastdrive_training.data.masks import LabelTable, MaskFolder, Regions, cell_coverage, read_labels

__all__ = ["Keyframe", "KeyframeDataset", "cell_coverage", "read_image"]

NO_MASKS = "use a dataset that has a masks folder, or name a folder of fastdrive annotate"
TABLES = (
    "attribute",
    "calibrated_sensor",
    "category",
    "ego_pose",
    "instance",
    "log",
    "map",
    "sample",
    "sample_annotation",
    "sample_data",
    "scene",
    "sensor",
    "visibility",
)


@dataclass(frozen=True)
class Keyframe:
    """One sample: six images, what the vehicle knows of itself, and what it did next."""

    token: str
    scene: str  # name, such as "scene-0103"
    stamp_ns: int
    images: tuple[Path, ...]  # in the order of CAMERAS
    image_sizes: tuple[tuple[int, int], ...]  # (height, width) of each, as the tables state it
    masks: tuple[Path, ...] | None  # label ids as PNG, same order; None where the dataset has no masks
    history: EgoHistory
    command: Command
    future_m: np.ndarray | None  # float64 [6, 2] at 0.5 s, ego frame of t0; None where the scene ends sooner

    def load_images(self) -> list[np.ndarray]:
        """uint8 RGB [H, W, 3] of each camera. Raises InputError where a file is missing or unreadable."""
        return [read_image(path) for path in self.images]

    def load_labels(self, camera: int) -> np.ndarray:
        """uint8 [H, W] label ids of one camera (index in CAMERAS). Raises InputError: no mask, or of another size."""
        if self.masks is None:
            raise InputError(f"sample {self.token} of {self.scene} has no masks: {NO_MASKS}")
        return read_labels(self.masks[camera], self.image_sizes[camera])


def read_image(path: Path) -> np.ndarray:
    """An image file as uint8 RGB [H, W, 3]. Raises InputError where it is missing or unreadable."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        state = "is no readable image" if path.exists() else "is missing"
        raise InputError(f"image {path} {state}: fetch or write the dataset again")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


class KeyframeDataset(Sequence[Keyframe]):
    """The keyframes of one split (or all), scene after scene, in time order.

    Args:
        root: the dataset's folder, which holds a ``v1.0-*`` folder of tables.
        split: a name in ``splits.json``, or one of the devkit's (train, val, test, mini_train, mini_val).
        version: the table folder where there are several and the split does not tell.
        masks: a folder with masks of this split, such as ``fastdrive annotate`` writes; None for the dataset's own.

    Raises:
        InputError: no dataset there, a missing or broken table, an unknown or empty split, broken extras, masks of
            another split or of other samples.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        version: str | None = None,
        masks: str | Path | None = None,
    ):
        self.root = Path(root)
        self.split = split
        self.version = version or _find_version(self.root, split)
        self._tables = _load_tables(self.root, self.version)
        self._extras = _read_json(self.root / "extras.json", {})
        self._tracks: dict[str, EgoTrack] = {}
        names = self._split_scenes()
        scenes = [scene for scene in self._tables.scene if names is None or scene["name"] in names]
        self._samples = [(scene, token) for scene in scenes for token in self._sample_tokens(scene)]
        if not self._samples:
            here = {scene["name"] for scene in self._tables.scene}
            filled = [name for name, scenes in self.splits()[0].items() if here & set(scenes)]
            raise InputError(
                f"{self.root}: split {split or 'all'} has no keyframes; write one, or choose of {', '.join(filled)}"
            )
        self._mask_root = self.root if masks is None else Path(masks)
        if masks is not None:
            self.mask_folder.require(CAMERAS, self.tokens)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Keyframe:
        scene, token = self._samples[index]
        return self._keyframe(scene, self._tables.get("sample", token))

    def __iter__(self) -> Iterator[Keyframe]:
        return (self[index] for index in range(len(self)))

    @property
    def scenes(self) -> list[str]:
        """Scene name of each keyframe, without reading anything else of it."""
        return [scene["name"] for scene, _ in self._samples]

    @property
    def tokens(self) -> list[str]:
        """Sample token of each keyframe."""
        return [token for _, token in self._samples]

    @property
    def tables(self) -> NuScenes:
        """The devkit's tables, for what a keyframe does not hold."""
        return self._tables

    def ego_pose(self, token: str) -> dict:
        """The record of ``ego_pose`` of a sample: that of the lidar where there is one, else of the front camera."""
        reference = self._reference(self._tables.get("sample", token))
        return self._tables.get("ego_pose", reference["ego_pose_token"])

    def extras(self, token: str) -> dict:
        """What ``extras.json`` says of a sample; empty where it says nothing."""
        extras = self._extras.get(token, {})
        if not isinstance(extras, dict):
            raise self._extras_error(token, "entry", f"must be an object, is {type(extras).__name__}")
        return extras

    def world_state(self, index: int) -> EgoState:
        """The ego state at a keyframe in the frame of the data set's poses, which all keyframes of a scene share."""
        scene, token = self._samples[index]
        reference = self._reference(self._tables.get("sample", token))
        pose_stamp_ns = int(self._tables.get("ego_pose", reference["ego_pose_token"])["timestamp"]) * 1000
        return self._track(scene).history(pose_stamp_ns).now

    @property
    def has_masks(self) -> bool:
        return (self._mask_root / "masks").is_dir()

    @cached_property
    def mask_folder(self) -> MaskFolder:
        """The masks and their label table. Raises InputError where the table is missing or unusable."""
        return MaskFolder(self._mask_root, self.split)

    @property
    def labels(self) -> LabelTable:
        """The label table of the masks. Raises InputError as :attr:`mask_folder`."""
        return self.mask_folder.labels

    def load_regions(self, keyframe: Keyframe, camera: int) -> Regions:
        """Foreground and doubtful pixels of one camera (index in CAMERAS).

        Raises InputError: no masks, or one that is missing, damaged or of another size.
        """
        if keyframe.masks is None:
            raise InputError(f"sample {keyframe.token} of {keyframe.scene} has no masks: {NO_MASKS}")
        return self.mask_folder.load(CAMERAS[camera], keyframe.token, keyframe.image_sizes[camera])

    def load_foreground(self, keyframe: Keyframe, camera: int) -> np.ndarray:
        """bool [H, W] of one camera, True at foreground pixels. Raises InputError as :meth:`load_regions`."""
        return self.load_regions(keyframe, camera).foreground

    def coverage(self, keyframe: Keyframe, grid: tuple[int, int]) -> np.ndarray:
        """float32 [cameras, rows * cols]: share of foreground in the cell of each token; NaN where it is in doubt."""
        regions = [self.load_regions(keyframe, camera) for camera in range(len(CAMERAS))]
        return np.stack([cell_coverage(one.foreground, *grid, one.ignore) for one in regions])

    def splits(self) -> tuple[dict[str, list[str]], str]:
        """Scene names by split, and where that is written. Raises InputError where ``splits.json`` is broken."""
        splits = _read_json(self.root / "splits.json", None)
        return (create_splits_scenes(), "nuscenes-devkit") if splits is None else (splits, "splits.json")

    def _split_scenes(self) -> set[str] | None:
        if self.split is None:
            return None
        splits, source = self.splits()
        if self.split not in splits:
            raise InputError(f"{self.root}: no split {self.split!r}; {source} has {', '.join(sorted(splits))}")
        return set(splits[self.split])

    def _sample_tokens(self, scene: dict) -> Iterator[str]:
        token = scene["first_sample_token"]
        while token:
            yield token
            token = self._tables.get("sample", token)["next"]

    def _keyframe(self, scene: dict, sample: dict) -> Keyframe:
        token, extras = sample["token"], self._extras.get(sample["token"], {})
        records = self._camera_records(sample)
        stamp_ns = int(sample["timestamp"]) * 1000
        pose_stamp_ns = int(self._tables.get("ego_pose", self._reference(sample)["ego_pose_token"])["timestamp"]) * 1000
        future = self._future(extras, token) if "future_xy" in extras else self._track(scene).future(pose_stamp_ns)
        known = extras.get("history") is not None
        history = self._history(extras, token, stamp_ns) if known else self._track(scene).history(pose_stamp_ns)
        folder = self._mask_root / "masks"
        masks = tuple(folder / camera / f"{token}.png" for camera in CAMERAS) if self.has_masks else None
        return Keyframe(
            token=token,
            scene=scene["name"],
            stamp_ns=stamp_ns,
            images=tuple(self.root / record["filename"] for record in records),
            image_sizes=tuple((int(record["height"]), int(record["width"])) for record in records),
            masks=masks,
            history=history,
            command=self._command(extras, token, future),
            future_m=future,
        )

    def _camera_records(self, sample: dict) -> list[dict]:
        absent = [camera for camera in CAMERAS if camera not in sample["data"]]
        if absent:
            raise InputError(f"{self.root}: sample {sample['token']} has no {absent[0]} key frame in sample_data.json")
        return [self._tables.get("sample_data", sample["data"][camera]) for camera in CAMERAS]

    def _reference(self, sample: dict) -> dict:
        """The sample_data whose ego pose is the sample's: the lidar's where there is one, else the front camera's."""
        channel = "LIDAR_TOP" if "LIDAR_TOP" in sample["data"] else "CAM_FRONT"
        return self._tables.get("sample_data", sample["data"][channel])

    def _track(self, scene: dict) -> EgoTrack:
        """All poses of the reference sensor in the scene, sweeps included."""
        if scene["name"] not in self._tracks:
            first = self._reference(self._tables.get("sample", scene["first_sample_token"]))
            poses, record = [], first
            while record["prev"]:
                record = self._tables.get("sample_data", record["prev"])
            while True:
                poses.append(self._tables.get("ego_pose", record["ego_pose_token"]))
                if not record["next"]:
                    break
                record = self._tables.get("sample_data", record["next"])
            poses += [
                self._tables.get("ego_pose", self._reference(self._tables.get("sample", token))["ego_pose_token"])
                for token in self._sample_tokens(scene)
            ]
            self._tracks[scene["name"]] = EgoTrack.from_poses(poses)
        return self._tracks[scene["name"]]

    def _command(self, extras: dict, token: str, future: np.ndarray | None) -> Command:
        if "command" not in extras:
            return command_of(future)
        try:
            return Command(extras["command"])
        except ValueError:
            known = ", ".join(command.value for command in Command)
            raise self._extras_error(token, "command", f"{extras['command']!r} is none of {known}") from None

    def _future(self, extras: dict, token: str) -> np.ndarray | None:
        if extras["future_xy"] is None:
            return None
        try:
            points = np.array(extras["future_xy"], np.float64)
        except (ValueError, TypeError):
            points = np.zeros(0)
        if points.shape != (FUTURE_POINTS, 2) or not np.isfinite(points).all():
            raise self._extras_error(token, "future_xy", f"needs {FUTURE_POINTS} finite [x, y] points or null")
        return points

    def _history(self, extras: dict, token: str, stamp_ns: int) -> EgoHistory:
        """States in the ego frame of the keyframe, from rows [t, x, y, yaw, speed, ...] before t0, newest first.

        Accelerations are differences of speed over half a second, as a vehicle's odometry gives them, not the
        simulator's instantaneous ones.
        """
        try:
            rows = np.array([[0.0, 0.0, 0.0, 0.0, extras["speed_mps"]], *(row[:5] for row in extras["history"])], float)
            yaw_rate = float(extras["yaw_rate_radps"])
            off_time_s = np.abs(rows[:, 0] + INTERVAL_S * np.arange(len(rows))).max()
        except (KeyError, IndexError, TypeError, ValueError) as error:
            problem = f"needs speed_mps, yaw_rate_radps and rows [t, x, y, yaw, speed, accel] ({error!r})"
            raise self._extras_error(token, "history", problem) from None
        if rows.shape[1] != 5 or not np.isfinite(rows).all() or off_time_s > 1e-3:
            problem = f"needs finite rows, one every {INTERVAL_S} s back from the keyframe"
            raise self._extras_error(token, "history", problem)
        accels = [*((rows[:-1, 4] - rows[1:, 4]) / INTERVAL_S), 0.0]  # of the oldest state nothing is known
        rates = [yaw_rate, *((rows[:-1, 3] - rows[1:, 3]) / INTERVAL_S), 0.0]
        del rates[1]  # the measured rate of t0 takes the place of the difference
        states = (
            EgoState(stamp_ns + round(t * 1e9), x, y, yaw, speed, float(accel), float(rate))
            for (t, x, y, yaw, speed), accel, rate in zip(rows.tolist(), accels, rates, strict=True)
        )
        return EgoHistory(tuple(states), INTERVAL_S)

    def _extras_error(self, token: str, field: str, problem: str) -> InputError:
        return InputError(f"{self.root / 'extras.json'}: {field} of sample {token}: {problem}")


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


def _load_tables(root: Path, version: str) -> NuScenes:
    for table in TABLES:
        path = root / version / f"{table}.json"
        if not path.exists():
            raise InputError(f"{path}: table is missing; fetch or write the dataset again")
    try:
        return NuScenes(version=version, dataroot=str(root), verbose=False)
    except Exception as error:  # the devkit raises bare exceptions of many kinds for broken tables
        raise InputError(f"{root / version}: nuscenes-devkit cannot load the tables ({error!r})") from error


def _read_json(path: Path, default):
    if not path.exists():
        return default
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: no valid JSON ({error}); write the dataset again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: must be a JSON object, is {type(content).__name__}")
    return content
