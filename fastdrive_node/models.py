"""Where the shipped models lie, and a pipeline made from what a user gives."""

from __future__ import annotations

from pathlib import Path

import torch

from fastdrive_node.pipeline import Pipeline
from fastdrive_node.planning.spec import SPEC_FILE
from fastdrive_node.planning.vla import load_vla
from fastdrive_node.pruning.baselines import make_pruner
from fastdrive_node.share import shared_file
from fastdrive_node.types import InputError, ModelError

SHIPPED_VLA = "models/tiny"
SHIPPED_PRUNER = "reconpruner.safetensors"
DEFAULT_DROP = 0.5


def default_vla_dir() -> Path:
    """The shipped tiny VLA: ``models/tiny`` of a checkout, or ``share/fastdrive_node/models/tiny`` of an installation.

    Raises:
        ModelError: neither is there.
    """
    try:
        return shared_file(f"{SHIPPED_VLA}/{SPEC_FILE}").parent
    except InputError as error:
        raise ModelError(f"the shipped VLA is not installed ({error}); or give a VLA directory with --vla") from error


def open_pipeline(
    vla_dir: str | Path | None = None,
    pruner_file: str | Path | None = None,
    drop: float | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Pipeline:
    """A pipeline with torch as its backend.

    Args:
        vla_dir: None for the shipped tiny VLA.
        pruner_file: None for ``reconpruner.safetensors`` in the VLA directory, where it is.
        drop: pruning ratio p in [0, 1); None for 0.5 with a pruner and 0 without.

    Raises:
        ModelError: a model cannot be used, or ``drop`` is above 0 without a pruner.
        InputError: ``drop`` is out of range.
    """
    vla_dir = default_vla_dir() if vla_dir is None else Path(vla_dir)
    vla = load_vla(vla_dir, device, dtype)
    if pruner_file is None and (vla_dir / SHIPPED_PRUNER).is_file():
        pruner_file = vla_dir / SHIPPED_PRUNER
    if pruner_file is not None:
        return Pipeline(vla, make_pruner("reconpruner", vla, pruner_file), DEFAULT_DROP if drop is None else drop)
    if drop:
        raise ModelError(
            f"drop {drop:g} needs a pruner, and {vla_dir} has no {SHIPPED_PRUNER}; give --pruner FILE or --drop 0"
        )
    return Pipeline(vla)
