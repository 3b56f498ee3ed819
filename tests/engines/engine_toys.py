"""Toy VLAs with weights away from their neutral start, and what torch gives for them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from fastdrive_node.families import Vla, load_vla
from fastdrive_node.pruning.checkpoint import load_pruner, save_pruner
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_training.vla.tiny_model import TinySize, build_tiny_vla
from tests.generation import SHALLOW, encode

# windows are 4 x 4 token cells: 5 x 6 cells have windows of four sizes, 4 x 8 cells two full ones
NARROW = replace(SHALLOW, tower_width=64, tower_intermediate=96, width=64)
SIZES = {
    "ragged": replace(NARROW, image_height=140, image_width=168),
    "full": replace(NARROW, image_height=112, image_width=224),
}


@dataclass(frozen=True)
class Toy:
    """A VLA, its pruner, and what torch gives for a set of pictures."""

    vla: Vla
    pruner_file: Path
    images: np.ndarray  # uint8 [6, H, W, 3]
    tokens: torch.Tensor  # [6, n, D]
    scores: torch.Tensor  # [6, n]


def make_toy(folder: Path, size: TinySize, seed: int = 0) -> Toy:
    path = build_tiny_vla(folder / "vla", seed, size)
    model = load_vla(path).model
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():  # biases and norms away from zero and one, answers that vary
        parameter.data += (0.05 if ".visual." in name else 0.2) * torch.randn_like(parameter)
    model.save_pretrained(path)
    vla = load_vla(path)
    pruner = ReconPruner(vla.family, vla.config.text_config)
    for parameter in pruner.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    pruner_file = folder / "reconpruner.safetensors"
    save_pruner(pruner_file, pruner, vla.encoder_fingerprint)
    images = np.random.default_rng(seed).integers(0, 256, (6, *vla.spec.image_size, 3), dtype=np.uint8)
    with torch.inference_mode():
        tokens = encode(vla, images)
        scores = load_pruner(pruner_file, vla)(tokens, vla.grid)
    return Toy(vla, pruner_file, images, tokens, scores)
