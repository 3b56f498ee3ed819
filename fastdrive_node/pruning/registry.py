"""The pruners of the names in ``catalog``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from fastdrive_node.errors import ModelError
from fastdrive_node.families import Vla
from fastdrive_node.pruning.baselines.cdpruner import CdPruner
from fastdrive_node.pruning.baselines.coverage import CoveragePruner
from fastdrive_node.pruning.baselines.dart import Dart
from fastdrive_node.pruning.baselines.diversity import DivPrune
from fastdrive_node.pruning.baselines.fastv import FastV
from fastdrive_node.pruning.baselines.merging import Matryoshka, PackedTokens, PruMerge
from fastdrive_node.pruning.baselines.prune2drive import Prune2Drive, Prune2DriveInput, load_weights
from fastdrive_node.pruning.baselines.ring_view import RingView, load_ring_view
from fastdrive_node.pruning.baselines.simple import NoPruner, OraclePruner, RandomPruner, UniformPruner
from fastdrive_node.pruning.baselines.sparsevlm import SparseVlm
from fastdrive_node.pruning.baselines.vispruner import VisPruner
from fastdrive_node.pruning.calibration import Calibration
from fastdrive_node.pruning.catalog import FILES, NAMES, VARIANT_FILES, VARIANTS, ScoreOptions, reads_given_file
from fastdrive_node.pruning.checkpoint import load_calibration, load_pruner
from fastdrive_node.pruning.pruner import Pruner
from fastdrive_node.pruning.score_pruner import RefinedPruner, ScorePruner
from fastdrive_node.pruning.token_packer import load_packer

_log = logging.getLogger(__name__)
_BY_NAME: dict[str, Callable[[], Pruner]] = {
    "none": NoPruner,
    "random": RandomPruner,
    "uniform": UniformPruner,
    "coverage": CoveragePruner,
    "ring-view": RingView,
    "fastv": FastV,
    "sparsevlm": SparseVlm,
    "sparsevlm-unmerged": lambda: SparseVlm(merge=False, name="sparsevlm-unmerged"),
    "vispruner": VisPruner,
    "divprune": DivPrune,
    "cdpruner": CdPruner,
    "prune2drive": Prune2Drive,
    "prune2drive-input": Prune2DriveInput,
    "dart": Dart,
    "prumerge": PruMerge,
    "matryoshka": Matryoshka,
    "tokenpacker": PackedTokens,
    "reconpruner": lambda: ScorePruner(None),
    "oracle": OraclePruner,
}
BY_VIEW = {"prune2drive": Prune2Drive, "prune2drive-input": Prune2DriveInput}


def make_pruner(
    name: str,
    vla: Vla | None = None,
    path: str | Path | None = None,
    seed: int | None = None,
    options: ScoreOptions | None = None,
) -> Pruner:
    """A pruner by its name; docs/pruners.md has their rules.

    Args:
        name: one of ``catalog.NAMES``.
        vla: for ``reconpruner`` and its variants; for ``prune2drive`` and ``prune2drive-input`` the one whose directory
            may hold the views' weights, for ``ring-view`` that which holds the cameras' geometry, and for
            ``tokenpacker`` and those of ``FILES`` that which holds their file.
        path: for ``reconpruner`` and its variants, the pruner file.
        seed: for ``random``; see ``RandomPruner``.
        options: for ``reconpruner``: what is done with its scores.

    Raises:
        ModelError: an unknown name, a file that cannot serve this VLA, or one without the calibration that an option
            needs.
    """
    if name == "random":
        return RandomPruner(seed)
    if name in BY_VIEW:
        return BY_VIEW[name](load_weights(vla) if vla is not None else None)
    if name == "ring-view" and vla is not None:
        return load_ring_view(vla)
    if name == "tokenpacker" and vla is not None:
        return PackedTokens(load_packer(vla))
    if name == "reconpruner" or name in VARIANTS:
        if vla is not None and not reads_given_file(name):
            path = vla.path / VARIANT_FILES[name]
        if vla is None or path is None:
            raise ModelError(f"{name}: a VLA and a pruner file are needed")
        options = VARIANTS.get(name, options)
        return with_options(ScorePruner(load_pruner(path, vla)), options, vla, path, name)
    if name in FILES:
        if vla is None:
            raise ModelError(f"{name}: a VLA is needed")
        return ScorePruner(load_pruner(vla.path / FILES[name], vla), name)
    if name in _BY_NAME:
        return _BY_NAME[name]()
    raise ModelError(f"pruner {name!r} is not known; known are {', '.join(NAMES)}")


def least_keep(name: str, vla: Vla) -> int:
    """``Pruner.least_keep`` of a name of ``catalog.PRUNERS``, for a VLA's images; the pruner's files are not read."""
    return _BY_NAME[name]().least_keep(vla.image_grids())


def _calibration(path: str | Path, needed: bool) -> Calibration | None:
    """None where no option needs it; a damaged one is then only logged."""
    try:
        calibration = load_calibration(path)
    except ModelError as error:
        if needed:
            raise
        _log.warning("%s; it is not used", error)
        return None
    return calibration if needed else None


def with_options(
    pruner: ScorePruner, options: ScoreOptions | None, vla: Vla, path: str | Path | None, name: str = "reconpruner"
) -> Pruner:
    """The pruner with options for its scores; itself where none is on.

    Args:
        path: the pruner file, for its calibration.

    Raises:
        ModelError: the file lacks a calibration that an option needs, or the cameras have different image sizes.
    """
    needed = options is not None and options.needs_calibration
    calibration = None if path is None else _calibration(path, needed)
    if options is None or not options.active:
        return pruner
    if options.changes_scores:
        vla.require_one_size("calibrated_scores, keep_threshold, temporal_change, temporal_memory")
    try:
        return RefinedPruner(pruner, options, calibration, vla.spec.cameras, name)
    except ModelError as error:
        raise ModelError(f"{path}: pruner {name}: {error}") from error
