"""What an engine is made from: the vision tower and the pruner of a VLA directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from fastdrive_node.families.loading import load_vla
from fastdrive_node.families.qwen2_5_vl.tower import TorchVision
from fastdrive_node.families.vla import Vla
from fastdrive_node.planning.loading import SHIPPED_PRUNER, default_vla_dir
from fastdrive_node.pruning.checkpoint import load_pruner
from fastdrive_node.pruning.recon_pruner import ReconPruner


class _Float32(Vla):
    """The same VLA as a pruner's reader sees it: the pruner's own numbers, whatever the VLA is stored in."""

    dtype = torch.float32


@dataclass(frozen=True)
class Source:
    """A VLA in its stored type on the CPU, the tower for its image size, and its pruner in float32."""

    vla: Vla
    vision: TorchVision
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
    pruner = load_pruner(pruner_file, _Float32(vla.path, vla.model, vla.tokenizer, vla.spec, vla.template))
    vision = TorchVision(vla.model.model.visual, vla.spec.image_size, len(vla.spec.cameras))
    return Source(vla, vision, pruner, pruner_file)
