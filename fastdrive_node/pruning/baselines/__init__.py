"""The pruners by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastdrive_node.errors import ModelError
from fastdrive_node.families.vla import Vla
from fastdrive_node.pruning.baselines.cdpruner import CdPruner
from fastdrive_node.pruning.baselines.diversity import DivPrune
from fastdrive_node.pruning.baselines.fastv import FastV
from fastdrive_node.pruning.baselines.oracle import OraclePruner
from fastdrive_node.pruning.baselines.prune2drive import Prune2Drive, load_weights
from fastdrive_node.pruning.baselines.scores import ScorePruner
from fastdrive_node.pruning.baselines.simple import NoPruner, RandomPruner, UniformPruner
from fastdrive_node.pruning.baselines.sparsevlm import SparseVlm
from fastdrive_node.pruning.baselines.variants import VARIANTS, RefinedPruner
from fastdrive_node.pruning.baselines.vispruner import VisPruner
from fastdrive_node.pruning.checkpoint import load_calibration, load_pruner
from fastdrive_node.pruning.layer_pruning import LayerPruner
from fastdrive_node.pruning.pruner import Need, Pruner, PruningContext, choose
from fastdrive_node.pruning.score_options import check_options

__all__ = [
    "PRUNERS",
    "VARIANTS",
    "LayerPruner",
    "Need",
    "NoPruner",
    "Pruner",
    "PruningContext",
    "RandomPruner",
    "RefinedPruner",
    "ScorePruner",
    "choose",
    "make_pruner",
]

_PLAIN: dict[str, Callable[[], Pruner | LayerPruner]] = {
    "none": NoPruner,
    "uniform": UniformPruner,
    "fastv": FastV,
    "sparsevlm": SparseVlm,
    "sparsevlm-v2": lambda: SparseVlm(merge=False, name="sparsevlm-v2"),
    "vispruner": VisPruner,
    "divprune": DivPrune,
    "cdpruner": CdPruner,
    "oracle": OraclePruner,
}
PRUNERS = (
    "none",
    "random",
    "uniform",
    "fastv",
    "sparsevlm",
    "sparsevlm-v2",
    "vispruner",
    "divprune",
    "cdpruner",
    "prune2drive",
    "reconpruner",
    "oracle",
)


def make_pruner(
    name: str, vla: Vla | None = None, path: str | Path | None = None, seed: int = 0, camera_floor: int = 0
) -> Pruner | LayerPruner:
    """A pruner by its name; docs/pruners.md has their rules.

    Args:
        name: one of ``PRUNERS`` or ``VARIANTS``.
        vla: for ``reconpruner`` and its variants; for ``prune2drive`` the one whose directory may hold the views'
            weights.
        path: for ``reconpruner`` and its variants, the pruner file.
        seed: for ``random``.
        camera_floor: for ``reconpruner`` and its variants, tokens that each camera keeps at least.

    Raises:
        ModelError: an unknown name, a file that cannot serve this VLA, or one without the calibration that a variant
            needs.
    """
    if name in _PLAIN:
        return _PLAIN[name]()
    if name == "random":
        return RandomPruner(seed)
    if name == "prune2drive":
        return Prune2Drive(load_weights(vla) if vla is not None else None)
    if name == "reconpruner" or name in VARIANTS:
        if vla is None or path is None:
            raise ModelError(f"{name}: a VLA and a pruner file are needed")
        pruner = ScorePruner(load_pruner(path, vla), camera_floor)
        return pruner if name == "reconpruner" else _variant(name, pruner, vla, path)
    raise ModelError(f"pruner {name!r} is not known; known are {', '.join((*PRUNERS, *VARIANTS))}")


def _variant(name: str, pruner: ScorePruner, vla: Vla, path: str | Path) -> RefinedPruner:
    options = VARIANTS[name]
    calibration = load_calibration(path) if options.needs_calibration else None
    try:
        check_options(options, calibration, vla.spec.cameras)
    except ModelError as error:
        raise ModelError(f"{path}: pruner {name}: {error}") from error
    return RefinedPruner(pruner, options, calibration, name)
