"""Where the images of an evaluation come from: its dataset and its VLA, checked against what the run belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastdrive_node.errors import InputError, ModelError
from fastdrive_node.families import read_config
from fastdrive_node.families.spec import load_spec
from fastdrive_node.planning.loading import default_vla_dir
from fastdrive_node.visualization.projection import CameraModel
from fastdrive_training.data.adapters import Item, open_source
from fastdrive_training.evaluation.metrics.judge import Surroundings
from fastdrive_training.evaluation.records import samples_digest, vla_digest
from fastdrive_training.evaluation.run import SEGMENT
from fastdrive_training.evaluation.samples import SampleChoice, other_scenes, surroundings
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


def shown_samples(run: OpenLoopRun, vla: Path) -> tuple[int, ...]:
    """Whose images each sample saw, as positions among the samples: its own, or with ``--images shuffled`` another's.

    Raises:
        ReportError: the lines are not those that run.json belongs to, or the VLA is another one.
    """
    own = tuple(range(len(run.samples)))
    if not vla.is_dir():
        raise ModelError(f"{vla}: no such VLA directory; give the one that the run was made with (--vla)")
    if run.identity.get("vla") != vla_digest(vla):
        raise ReportError(
            f"{run.path / RUN}: the run was made with another VLA than {vla}; give the run's own with --vla DIR"
        )
    if run.identity.get("samples") == samples_digest(run.samples, SampleChoice(own, own, 0), SEGMENT):
        return own
    if len(set(run.scenes)) > 1:
        other = tuple(other_scenes(run.path, run.scenes, own))
        if run.identity.get("samples") == samples_digest(run.samples, SampleChoice(own, other, 0), SEGMENT):
            return other
    raise damaged(run.path / "samples.parquet", f"its samples are not those of {RUN}")


def vla_folder(vla: str | Path | None) -> Path:
    """The VLA directory that was given, or the shipped one. Raises ModelError where there is none."""
    return default_vla_dir() if vla is None else Path(vla)


def read_rig(vla: Path) -> Rig:
    """Cameras and grid of a VLA directory, without its weights. Raises ModelError: a file of it is unusable."""
    spec = load_spec(vla)
    family, config = read_config(vla)
    cell = family.pixels_per_token(config)
    return Rig(tuple(spec.cameras), (spec.image_size[0] // cell, spec.image_size[1] // cell))


class DatasetSource:
    """Items of the run's samples, with their images and what is known around them.

    Args:
        shown: as :func:`shown_samples` gives it.

    Raises:
        InputError: no dataset there, or one without the run's samples.
    """

    def __init__(self, root: Path, split: str | None, samples: Sequence[str], shown: Sequence[int]):
        self._source = open_source(root, split, all_splits=True)
        positions = {name: position for position, name in enumerate(self._source.names)}
        lacking = [name for name in samples if name not in positions]
        if lacking:
            where = "the dataset" if split is None else f"split {split}"
            raise InputError(f"{root}: {where} lacks {len(lacking)} of the run's samples, such as {lacking[0]}")
        self._positions = [positions[name] for name in samples]
        self._shown = tuple(shown)

    def item(self, sample: int) -> Item:
        """The sample itself. Raises InputError: a file of the dataset is broken."""
        return self._source[self._positions[sample]]

    def around(self, sample: int) -> Surroundings:
        """Ground truth, objects and drivable area. Raises InputError for a broken annotation or map."""
        return surroundings(self.item(sample))

    def image(self, sample: int, camera: str) -> tuple[np.ndarray, CameraModel | None]:
        """What the model saw, uint8 RGB [H, W, 3], and the camera; None where its calibration is not known.

        Raises InputError: the image is not readable, or the dataset does not have the camera.
        """
        item = self.item(self._shown[sample])
        if camera not in self._source.cameras:
            raise InputError(f"{self._source.root}: no camera {camera!r}; it has {', '.join(self._source.cameras)}")
        return item.load_image(camera), item.find_camera(camera)
