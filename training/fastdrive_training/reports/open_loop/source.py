"""Where the pictures of an evaluation come from: its data set and its VLA, checked against what the run belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from pyquaternion import Quaternion
from transformers import Qwen2_5_VLConfig

from fastdrive_node.errors import InputError, ModelError
from fastdrive_node.families.spec import load_spec
from fastdrive_node.planning.loading import default_vla_dir
from fastdrive_node.types import CAMERAS
from fastdrive_node.visualization.projection import CameraModel
from fastdrive_training.data.nuscenes.keyframes import Keyframe, KeyframeDataset, read_image
from fastdrive_training.evaluation.metrics import Surroundings
from fastdrive_training.evaluation.records import identity_of
from fastdrive_training.evaluation.run import SEGMENT
from fastdrive_training.evaluation.samples import Samples, World, other_scenes
from fastdrive_training.evaluation.settings import OpenLoopSettings
from fastdrive_training.reports.open_loop.run_folder import RUN, OpenLoopRun, damaged
from fastdrive_training.reports.pruner_run.run_folder import ReportError


@dataclass(frozen=True)
class Rig:
    """The cameras of a VLA, and the grid of their tokens."""

    cameras: tuple[str, ...]
    grid: tuple[int, int]  # rows, columns of the tokens of one camera

    @property
    def tokens(self) -> int:
        return len(self.cameras) * self.grid[0] * self.grid[1]

    def mask(self, kept: np.ndarray | None) -> np.ndarray:
        """bool [cameras, rows, columns], True where a token was kept; all are where ``kept`` is None."""
        flat = np.full(self.tokens, kept is None)
        if kept is not None:
            flat[kept] = True
        return flat.reshape(len(self.cameras), *self.grid)


@dataclass(frozen=True)
class _Named:
    """As much of a data set as its identity needs; keyframes are the run's samples."""

    root: Path
    tokens: tuple[str, ...]
    scenes: tuple[str, ...]


@dataclass(frozen=True)
class _Folder:
    """As much of a VLA as its identity needs."""

    path: Path
    dtype: str = ""


def shown_samples(run: OpenLoopRun, vla: Path) -> tuple[int, ...]:
    """Whose pictures each sample saw, as places among the samples: its own, or with ``--images shuffled`` another's.

    Raises:
        ReportError: the lines are not those that run.json belongs to, or the VLA is another one.
    """
    named, own = _Named(Path("."), run.samples, run.scenes), tuple(range(len(run.samples)))
    settings = OpenLoopSettings(pruners=("none",))
    if not vla.is_dir():
        raise ModelError(f"{vla}: no such VLA directory; give the one that the run was made with (--vla)")
    identity = identity_of(named, _Folder(vla), Samples(own, own, 0), settings, SEGMENT)
    if run.identity.get("vla") != identity["vla"]:
        raise ReportError(
            f"{run.path / RUN}: the run was made with another VLA than {vla}; give the run's own with --vla DIR"
        )
    if run.identity.get("samples") == identity["samples"]:
        return own
    if len(set(run.scenes)) > 1:
        other = tuple(other_scenes(named, own))
        if (
            run.identity.get("samples")
            == identity_of(named, _Folder(vla), Samples(own, other, 0), settings, SEGMENT)["samples"]
        ):
            return other
    raise damaged(run.path / "samples.parquet", f"its samples are not those of {RUN}")


def vla_folder(vla: str | Path | None) -> Path:
    """The VLA directory that was given, or the shipped one. Raises ModelError where there is none."""
    return default_vla_dir() if vla is None else Path(vla)


def read_rig(vla: Path) -> Rig:
    """Cameras and grid of a VLA directory, without its weights. Raises ModelError: a file of it is unusable."""
    spec = load_spec(vla)
    try:
        vision = Qwen2_5_VLConfig.from_pretrained(vla, local_files_only=True).vision_config
        cell = vision.patch_size * vision.spatial_merge_size
    except Exception as error:  # transformers raises many kinds for a bad configuration
        raise ModelError(f"{vla / 'config.json'}: not a usable configuration ({type(error).__name__})") from error
    return Rig(tuple(spec.cameras), (spec.image_size[0] // cell, spec.image_size[1] // cell))


class Source:
    """Keyframes of the run's samples, with their pictures and what is known around them.

    Args:
        shown: as :func:`shown_samples` gives it.

    Raises:
        InputError: no data set there, or one without the run's samples.
    """

    def __init__(self, root: Path, split: str | None, samples: Sequence[str], shown: Sequence[int]):
        self._dataset = KeyframeDataset(root, split)
        places = {token: place for place, token in enumerate(self._dataset.tokens)}
        lacking = [token for token in samples if token not in places]
        if lacking:
            where = "the data set" if split is None else f"split {split}"
            raise InputError(f"{root}: {where} lacks {len(lacking)} of the run's samples, such as {lacking[0]}")
        self._places = [places[token] for token in samples]
        self._shown = tuple(shown)

    @cached_property
    def _world(self) -> World:
        return World(self._dataset)

    def keyframe(self, sample: int) -> Keyframe:
        """The sample itself. Raises InputError: a file of the data set is broken."""
        return self._dataset[self._places[sample]]

    def around(self, sample: int) -> Surroundings:
        """Ground truth, objects and drivable area. Raises InputError for a broken annotation or map."""
        return self._world.around(self.keyframe(sample))

    def picture(self, sample: int, camera: str) -> tuple[np.ndarray, CameraModel | None]:
        """What the model saw, uint8 RGB [H, W, 3], and the camera; None where its calibration is not known.

        Raises InputError: the picture is not readable.
        """
        keyframe = self._dataset[self._places[self._shown[sample]]]
        place = CAMERAS.index(camera)
        height, width = keyframe.image_sizes[place]
        return read_image(keyframe.images[place]), self._camera(keyframe.token, camera, (width, height))

    def _camera(self, token: str, camera: str, size: tuple[int, int]) -> CameraModel | None:
        tables = self._dataset.tables
        record = tables.get("sample_data", tables.get("sample", token)["data"][camera])
        calibrated = tables.get("calibrated_sensor", record["calibrated_sensor_token"])
        try:
            intrinsic = np.array(calibrated["camera_intrinsic"], np.float64).reshape(3, 3)
            rotation = Quaternion(calibrated["rotation"]).rotation_matrix
            translation = np.array(calibrated["translation"], np.float64).reshape(3)
        except (KeyError, TypeError, ValueError):
            return None
        finite = all(np.isfinite(part).all() for part in (intrinsic, rotation, translation))
        return CameraModel(intrinsic, rotation, translation, size) if finite else None
