"""Keyframes of a dataset in the nuScenes schema, the simulator's or the real one, as an ImageSource.

An item is a keyframe, its name the sample token. The simulator adds ``masks/<CAM>/<sample token>.png`` with their label
table ``sim.json``; masks of ``fastdrive annotate`` are read from their own folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from fastdrive_node.errors import InputError
from fastdrive_node.types import Command, EgoHistory, EgoState
from fastdrive_training.data.adapters.base import (
    FUTURE_INTERVAL_S,
    FUTURE_POINTS,
    Item,
    ReopenedSource,
    checked_names,
    chosen_cameras,
    digest,
    files_digest,
    read_image,
)
from fastdrive_training.data.ego_track import HISTORY_INTERVAL_S, command_of
from fastdrive_training.data.masks import LabelTable, MaskFolder, Regions
from fastdrive_training.data.nuscenes.can_bus import CanBus
from fastdrive_training.data.nuscenes.drivable import MapMasks
from fastdrive_training.data.nuscenes.objects import SceneObjects
from fastdrive_training.data.nuscenes.tables import NuscenesTables

NO_MASKS = "use a dataset that has a masks folder, or name a folder of fastdrive annotate"


class KeyframeDataset(ReopenedSource, Sequence[Item]):
    """The keyframes of one split (or all), scene after scene, in time order.

    Args:
        root: the dataset's folder, which holds a ``v1.0-*`` folder of tables.
        split: a name in ``splits.json``, or one of the devkit's (train, val, test, mini_train, mini_val).
        version: the table folder where there are several and the split does not tell.
        masks: a folder with masks of this split, such as ``fastdrive annotate`` writes; None for the dataset's own.
        cameras: of the dataset's; None takes all.

    Raises:
        InputError: no dataset there, a missing or broken table, an unknown or empty split, an unknown camera, broken
            extras, masks of another split or of other samples.
    """

    kind = "nuscenes"

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        version: str | None = None,
        masks: str | Path | None = None,
        cameras: Sequence[str] | None = None,
    ):
        self.root, self.split = Path(root), split
        self.tables = NuscenesTables(root, split, version)
        self.cameras = chosen_cameras(self.root, cameras, self.tables.cameras)
        wanted = self._split_scenes()
        scenes = [scene for scene in self.tables.devkit.scene if wanted is None or scene["name"] in wanted]
        self._samples = [(scene, token) for scene in scenes for token in self.tables.sample_tokens(scene)]
        if not self._samples:
            here = {scene["name"] for scene in self.tables.devkit.scene}
            filled = [name for name, scenes in self.tables.splits()[0].items() if here & set(scenes)]
            raise InputError(
                f"{self.root}: split {split or 'all'} has no keyframes; write one, or choose of {', '.join(filled)}"
            )
        self.names = checked_names((token for _, token in self._samples), self.root)
        self.scenes = [scene["name"] for scene, _ in self._samples]
        self._mask_root = self.root if masks is None else Path(masks)
        self._objects, self._maps = SceneObjects(self.tables), MapMasks(self.tables)
        self._can_bus = CanBus(self.root)
        self.missing_maps = self.tables.devkit.missing_maps
        if masks is not None:
            self.mask_folder.require(self.cameras, self.names)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Item:
        scene, token = self._samples[index]
        sample, extras = self.tables.devkit.get("sample", token), self.tables.extras(token)
        records = self._camera_records(sample)
        sizes = {camera: (int(record["height"]), int(record["width"])) for camera, record in records.items()}
        stamp_ns, pose_ns = int(sample["timestamp"]) * 1000, int(self.tables.ego_pose(token)["timestamp"]) * 1000
        written = self._written_future(extras, token)

        def future(points: int, interval_s: float) -> np.ndarray | None:
            if "future_xy" in extras and (points, interval_s) == (FUTURE_POINTS, FUTURE_INTERVAL_S):
                return written
            return self.tables.track(scene).future(pose_ns, points, interval_s)

        known = extras.get("history") is not None
        history = self._history(extras, token, stamp_ns) if known else self.tables.track(scene).history(pose_ns)
        return Item(
            name=token,
            scene=scene["name"],
            load_image=lambda camera: read_image(self.root / records[camera]["filename"]),
            load_regions=lambda camera, size: self._regions(token, camera, size, records[camera]),
            load_labels=(lambda camera: self._labels(token, camera, sizes[camera])) if self.has_masks else None,
            image_sizes=sizes,
            stamp_ns=stamp_ns,
            history=self._can_bus.measured(scene["name"], history),
            command=self._command(extras, token, future),
            find_future=future,
            find_world_state=lambda: self.tables.track(scene).history(pose_ns).now,
            find_objects=lambda: self._objects.around(token),
            find_drivable=lambda: self._maps.around(scene, token),
            find_camera=lambda camera: self.tables.camera_model(records[camera]),
            extras=extras,
        )

    @property
    def keyframe_of_image(self) -> dict[str, str]:
        """The keyframe of each of its images' file names."""
        records = self.tables.devkit.sample_data
        return {Path(each["filename"]).name: each["sample_token"] for each in records if each["is_key_frame"]}

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

    @property
    def identity(self) -> str:
        can_bus = self._can_bus.files(self.scenes)
        later = [*self.missing_maps, *([files_digest(can_bus)] if can_bus else [])]
        return digest([files_digest(self.tables.files), *later, *self.names])

    @property
    def parts(self) -> str:
        """Of missing maps, and names and sizes of CAN bus files."""
        can_bus = (f"{path.name}|{path.stat().st_size}" for path in self._can_bus.files(self.scenes))
        return digest([*self.missing_maps, *can_bus])

    @property
    def masks_identity(self) -> str:
        return files_digest(self.mask_folder.files) if self.has_masks else ""

    def _split_scenes(self) -> set[str] | None:
        if self.split is None:
            return None
        splits, source = self.tables.splits()
        if self.split not in splits:
            raise InputError(f"{self.root}: no split {self.split!r}; {source} has {', '.join(sorted(splits))}")
        return set(splits[self.split])

    def _camera_records(self, sample: dict) -> dict[str, dict]:
        absent = [camera for camera in self.cameras if camera not in sample["data"]]
        if absent:
            raise InputError(f"{self.root}: sample {sample['token']} has no {absent[0]} key frame in sample_data.json")
        return {camera: self.tables.devkit.get("sample_data", sample["data"][camera]) for camera in self.cameras}

    def _regions(self, token: str, camera: str, size: tuple[int, int], record: dict) -> Regions:
        stated = int(record["height"]), int(record["width"])
        if tuple(size) != stated:
            raise InputError(
                f"image {self.root / record['filename']} is {size[1]}x{size[0]}, sample_data.json says "
                f"{stated[1]}x{stated[0]}: fetch or write the dataset again"
            )
        labels = self._labels(token, camera, stated)
        return self.labels.regions(labels)

    def _labels(self, token: str, camera: str, size: tuple[int, int]) -> np.ndarray:
        if not self.has_masks:
            raise InputError(f"{self.root}: sample {token} has no masks: {NO_MASKS}")
        return self.mask_folder.load_labels(camera, token, size)

    def _command(self, extras: dict, token: str, future) -> Command:
        if "command" not in extras:
            return command_of(future(FUTURE_POINTS, FUTURE_INTERVAL_S))
        try:
            return Command(extras["command"])
        except ValueError:
            known = ", ".join(command.value for command in Command)
            raise self.tables.extras_error(token, "command", f"{extras['command']!r} is none of {known}") from None

    def _written_future(self, extras: dict, token: str) -> np.ndarray | None:
        if extras.get("future_xy") is None:
            return None
        try:
            points = np.array(extras["future_xy"], np.float64)
        except (ValueError, TypeError):
            points = np.zeros(0)
        if points.shape != (FUTURE_POINTS, 2) or not np.isfinite(points).all():
            problem = f"needs {FUTURE_POINTS} finite [x, y] points or null"
            raise self.tables.extras_error(token, "future_xy", problem)
        return points

    def _history(self, extras: dict, token: str, stamp_ns: int) -> EgoHistory:
        """States in the ego frame of the keyframe, from rows [t, x, y, yaw, speed, ...] before t0, newest first.

        Accelerations are differences of speed over half a second, as a vehicle's odometry gives them, not the
        simulator's instantaneous ones.
        """
        try:
            rows = np.array([[0.0, 0.0, 0.0, 0.0, extras["speed_mps"]], *(row[:5] for row in extras["history"])], float)
            yaw_rate = float(extras["yaw_rate_radps"])
            off_time_s = np.abs(rows[:, 0] + HISTORY_INTERVAL_S * np.arange(len(rows))).max()
        except (KeyError, IndexError, TypeError, ValueError) as error:
            problem = f"needs speed_mps, yaw_rate_radps and rows [t, x, y, yaw, speed, accel] ({error!r})"
            raise self.tables.extras_error(token, "history", problem) from None
        if rows.shape[1] != 5 or not np.isfinite(rows).all() or off_time_s > 1e-3:
            problem = f"needs finite rows, one every {HISTORY_INTERVAL_S} s back from the keyframe"
            raise self.tables.extras_error(token, "history", problem)
        accels = [*((rows[:-1, 4] - rows[1:, 4]) / HISTORY_INTERVAL_S), 0.0]  # of the oldest state nothing is known
        rates = [yaw_rate, *((rows[:-1, 3] - rows[1:, 3]) / HISTORY_INTERVAL_S), 0.0]
        del rates[1]  # the measured rate of t0 takes the place of the difference
        states = (
            EgoState(stamp_ns + round(t * 1e9), x, y, yaw, speed, float(accel), float(rate))
            for (t, x, y, yaw, speed), accel, rate in zip(rows.tolist(), accels, rates, strict=True)
        )
        return EgoHistory(tuple(states), HISTORY_INTERVAL_S)
