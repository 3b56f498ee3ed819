"""What a vision engine is made from: the vision tower and the pruner of a VLA directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastdrive_node.families import Vla, load_vla
from fastdrive_node.families.spec import default_vla_dir
from fastdrive_node.files import SHIPPED_PRUNER
from fastdrive_node.pruning.checkpoint import load_pruner
from fastdrive_node.pruning.recon_pruner import ReconPruner


@dataclass(frozen=True)
class Source:
    """A VLA in its stored type on the CPU, the tower for its image size, and its pruner in float32."""

    vla: Vla
    vision: Any  # the family's torch VisionBackend
    pruner: ReconPruner
    pruner_file: Path


def load_source(vla_dir: str | Path | None = None, pruner_file: str | Path | None = None) -> Source:
    """Read a VLA directory and a pruner file.

    Args:
        vla_dir: None for the shipped tiny VLA.
        pruner_file: None for ``reconpruner.safetensors`` in the VLA directory.

    Raises:
        ModelError: one of them cannot be used.
    """
    vla_dir = default_vla_dir() if vla_dir is None else Path(vla_dir)
    pruner_file = vla_dir / SHIPPED_PRUNER if pruner_file is None else Path(pruner_file)
    vla = load_vla(vla_dir, "cpu", "auto")
    vla.require_one_size("an engine")
    return Source(vla, vla.torch_vision(), load_pruner(pruner_file, vla, torch.float32), pruner_file)
