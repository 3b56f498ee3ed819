"""What an engine is made from, with random weights and no VLA directory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from benchmarks.perf.random_models import SIZES
from fastdrive_export.source import Source
from fastdrive_node.families.qwen2_5_vl import FAMILY
from fastdrive_node.families.qwen2_5_vl.tower import TorchVision
from fastdrive_node.pruning.checkpoint import save_pruner
from fastdrive_node.pruning.recon_pruner import ReconPruner

ENCODER = "0" * 64  # stands for a fingerprint: the tower is in no file


def random_source(size: str, cameras: int, image_size: tuple[int, int], folder: Path, seed: int) -> Source:
    """A float32 tower and pruner with random weights, on the CPU.

    Args:
        size: key of ``random_models.SIZES``.
        image_size: (height, width) in px.
        folder: where the pruner's file is put.
    """
    sizes = SIZES[size]
    config: Any = Qwen2_5_VLConfig(vision_config=sizes.vision, text_config=sizes.text)
    config.vision_config._attn_implementation = "sdpa"
    torch.manual_seed(seed)
    tower = Qwen2_5_VisionTransformerPretrainedModel(config.vision_config).requires_grad_(False).eval()
    pruner = ReconPruner(FAMILY, config.text_config).requires_grad_(False).eval()
    vision = TorchVision(tower, image_size, cameras)
    spec = SimpleNamespace(cameras=tuple(f"CAM_{index}" for index in range(cameras)), image_size=image_size)
    vla: Any = SimpleNamespace(
        path=folder,
        spec=spec,
        grid=vision.grid,
        tokens=vision.max_keep,
        width=pruner.width,
        encoder_fingerprint=ENCODER,
        family=FAMILY,
    )
    pruner_file = folder / "reconpruner.safetensors"
    save_pruner(pruner_file, pruner, ENCODER)
    return Source(vla, vision, pruner, pruner_file)
