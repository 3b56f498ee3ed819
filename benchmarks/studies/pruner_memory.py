"""Parameters, memory and time of ReconPruner's training by size, on paper, counted without allocating anything.

    python -m benchmarks.studies.pruner_memory --json runs/pruner_memory.json

Counted on torch's meta device: parameters; the bytes that autograd keeps for one more image (foreground and background
through the decoder, under bfloat16 autocast; attention matrices included, which fused kernels do not keep: an upper
bound); the FLOPs of the frozen tower forward, and of pruner and decoder forward and backward. Assumed, and printed:
float32 weights, gradients and AdamW moments, the tower in bfloat16, and how many FLOP/s a GPU sustains. Times leave out
reading images and evaluation.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from benchmarks.perf.random_models import SIZES as MODEL_SIZES
from fastdrive_node.cli import write_json
from fastdrive_node.families.qwen2_5_vl import FAMILY
from fastdrive_node.families.qwen2_5_vl.tower import TorchVision
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_training.pruner.decoder import ReconDecoder
from fastdrive_training.pruner.losses import LossWeights, split_losses, straight_through

IMAGES = 240_942  # 40,157 nuScenes keyframes x 6 cameras: the paper's 241 K
EPOCHS = 10  # the paper's
GPUS = {"A100": 312.0, "H100": 989.0}  # peak dense bfloat16 TFLOP/s
SMALLEST_WIDTH = 1024  # smaller models do not keep a GPU busy; no times are given for them
GIB = 2**30
CELL_PX = 28  # of a token: patch 14, merge 2
_TEXT = {
    "num_hidden_layers": 1,  # of which nothing but the shape of a layer is used
    "vocab_size": 8,
    "bos_token_id": None,
    "eos_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
_VISION = MODEL_SIZES["3b"].vision  # of all sizes of Qwen2.5-VL, but for the width of the tokens


@dataclass(frozen=True)
class PrunerSize:
    """A model's shape, and the image that its tower reads."""

    text: dict[str, Any]
    vision: dict[str, Any]
    image: tuple[int, int]  # height, width in px
    decoder_layers: int

    @property
    def grid(self) -> tuple[int, int]:
        return self.image[0] // CELL_PX, self.image[1] // CELL_PX

    @property
    def tokens(self) -> int:
        return math.prod(self.grid)

    def config(self) -> Qwen2_5_VLConfig:
        width = self.text["hidden_size"]
        parts: dict[str, Any] = {
            "text_config": {**_TEXT, **self.text},
            "vision_config": {**self.vision, "out_hidden_size": width},
            "attn_implementation": "sdpa",
        }
        return Qwen2_5_VLConfig(**parts)


SIZES = {
    "toy": PrunerSize(  # models/tiny
        {
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
        },
        {**_VISION, "depth": 4, "hidden_size": 128, "intermediate_size": 256, "num_heads": 4,
         "fullatt_block_indexes": [1, 3]},
        (112, 224),
        decoder_layers=2,
    ),
    "3B": PrunerSize(  # Qwen2.5-VL-3B at Impromptu-VLA's 262,144 px an image
        {"hidden_size": 2048, "intermediate_size": 11008, "num_attention_heads": 16, "num_key_value_heads": 2},
        _VISION,
        (392, 672),
        decoder_layers=6,
    ),
    "7B": PrunerSize(
        {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4},
        _VISION,
        (392, 672),
        decoder_layers=6,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class StepCost:
    """What a forward and backward pass over some images needs."""

    saved_bytes: int  # kept by autograd for the backward pass, parameters excluded
    flops: int


def modules(size: PrunerSize) -> tuple[nn.Module, ReconPruner, ReconDecoder]:
    """Tower, pruner and decoder without storage."""
    config = size.config()
    with torch.device("meta"):
        # cast: pyright would read all of transformers
        tower = cast(Any, Qwen2_5_VisionTransformerPretrainedModel)._from_config(config.vision_config)
        pruner = ReconPruner(FAMILY, config.text_config)
        decoder = ReconDecoder(FAMILY, config.text_config, size.decoder_layers, CELL_PX)
    return tower.to(torch.bfloat16).requires_grad_(False), pruner, decoder


def training_step(
    size: PrunerSize, pruner: nn.Module, decoder: nn.Module, images: int, device: str = "meta"
) -> StepCost:
    """One step of pruner and decoder on ``images``; on ``meta`` nothing is computed."""
    height, width = size.image
    tokens = torch.zeros(images, size.tokens, size.text["hidden_size"], device=device)
    pixels = torch.zeros(images, 3, height, width, device=device)
    foreground = torch.zeros(images, 1, height, width, device=device)
    own = {tensor.untyped_storage()._cdata for module in (pruner, decoder) for tensor in module.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    def decode(images: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return decoder(images, grid).float()

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
        with torch.autocast("cpu", torch.bfloat16):
            scores = pruner(tokens, size.grid)
        mask = straight_through(scores)
        losses = split_losses(decode, tokens, mask, pixels, foreground, size.grid, LossWeights(), covered=0.5)
        bytes_saved = sum(storage.nbytes() for storage in saved.values())
        losses["total"].backward()
    return StepCost(bytes_saved, counter.get_total_flops())


def tower_flops(size: PrunerSize, tower: nn.Module) -> int:
    """Of the frozen tower's forward pass on one image."""
    vision = TorchVision(tower, size.image, 1)
    rows = torch.zeros(1, size.tokens * 4, 3 * 2 * 14 * 14, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vision.encode_patches(rows)
    return counter.get_total_flops()


def count(size: PrunerSize) -> dict[str, Any]:
    """Parameters, memory and FLOPs of one size."""
    tower, pruner, decoder = modules(size)
    one, two = (training_step(size, pruner, decoder, images) for images in (1, 2))
    parameters = {
        name: _parameters(part) for name, part in (("tower", tower), ("pruner", pruner), ("decoder", decoder))
    }
    trained = parameters["pruner"] + parameters["decoder"]
    each = two.saved_bytes - one.saved_bytes
    return {
        "image_px": list(size.image),
        "tokens": size.tokens,
        "width": size.text["hidden_size"],
        "parameters": parameters,
        "state_gib": trained * 16 / GIB,  # weights, gradients, two moments
        "bfloat16_copies_gib": (one.saved_bytes - each) / GIB,  # autocast's, of the weights
        "tower_gib": parameters["tower"] * 2 / GIB,
        "activations_gib_an_image": each / GIB,
        "train_tflop_an_image": (two.flops - one.flops) / 1e12,
        "tower_tflop_an_image": tower_flops(size, tower) / 1e12,
        "pruner_file_mib": parameters["pruner"] * 4 / 2**20,
        "cached_mib_an_image": size.tokens * size.text["hidden_size"] * 2 / 2**20,
    }


def estimate(counted: dict[str, Any], batch: int, efficiency: float) -> dict[str, Any]:
    """Memory of a step, and GPU hours and disk for the paper's number of images and epochs."""
    fixed = counted["state_gib"] + counted["bfloat16_copies_gib"] + counted["tower_gib"]
    train, tower = counted["train_tflop_an_image"], counted["tower_tflop_an_image"]
    gpus = {
        name: {
            "images_per_s": peak * efficiency / (train + tower),
            "gpu_hours_live": IMAGES * EPOCHS * (train + tower) / (peak * efficiency) / 3600,
            "gpu_hours_cached": IMAGES * (EPOCHS * train + tower) / (peak * efficiency) / 3600,
        }
        for name, peak in GPUS.items()
    }
    return {
        "images_a_part": batch,
        "memory_gib": fixed + batch * counted["activations_gib_an_image"],
        "disk_gb_cached_features": IMAGES * counted["cached_mib_an_image"] * 2**20 / 1e9,
        "gpus": gpus if counted["width"] >= SMALLEST_WIDTH else {},
    }


def table(report: dict[str, Any]) -> str:
    """In Markdown."""
    head = ["size", "image, tokens, D", "pruner / decoder / tower (M)", "fixed memory (GiB)", "an image (GiB)"]
    head += ["a part of images, GiB", "TFLOP an image: train + tower"]
    head += ["241 K x 10 epochs, tower each time (GPU h)", "tower once (GPU h)", "disk of cached features (GB)"]
    lines = [head, ["---"] * len(head)]
    for name, row in report["sizes"].items():
        sizes = row["parameters"]
        fixed = row["state_gib"] + row["bfloat16_copies_gib"] + row["tower_gib"]
        gpus = row["estimate"]["gpus"]
        lines.append(
            [
                name,
                f"{row['image_px'][1]}x{row['image_px'][0]}, {row['tokens']}, {row['width']}",
                " / ".join(f"{sizes[part] / 1e6:.1f}" for part in ("pruner", "decoder", "tower")),
                f"{fixed:.2f}",
                f"{row['activations_gib_an_image']:.3f}",
                f"{row['estimate']['images_a_part']}: {row['estimate']['memory_gib']:.1f}",
                f"{row['train_tflop_an_image']:.3g} + {row['tower_tflop_an_image']:.3g}",
                _hours(gpus, "gpu_hours_live"),
                _hours(gpus, "gpu_hours_cached"),
                f"{row['estimate']['disk_gb_cached_features']:.3g}",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _hours(gpus: dict[str, dict[str, float]], key: str) -> str:
    return ", ".join(f"{gpu} {hours[key]:.0f}" for gpu, hours in gpus.items()) or "-"


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(SIZES), help="(%(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="images that a GPU works on at a time (%(default)s)")
    parser.add_argument(
        "--efficiency", type=float, default=0.4, help="fraction of a GPU's peak FLOP/s that is sustained (%(default)s)"
    )
    parser.add_argument("--json", metavar="FILE", help="figures; the table goes beside them as .md")
    args = parser.parse_args(argv)
    unknown = sorted(set(args.sizes.split(",")) - set(SIZES))
    if unknown:
        parser.error(f"--sizes: {unknown[0]!r} is none of {', '.join(SIZES)}")
    report: dict[str, Any] = {
        "assumptions": {
            "images": IMAGES,
            "epochs": EPOCHS,
            "peak_tflops": GPUS,
            "efficiency": args.efficiency,
            "state": "float32 weights, gradients and AdamW moments; bfloat16 autocast and tower",
            "activations": "upper bound: attention matrices are counted, which fused kernels do not keep",
            "left_out": "reading and decoding images, evaluation; communication between GPUs and its buffers",
        },
        "sizes": {},
    }
    for name in args.sizes.split(","):
        counted = count(SIZES[name])
        report["sizes"][name] = {**counted, "estimate": estimate(counted, args.batch, args.efficiency)}
    write_json(report, args.json)
    if args.json and args.json != "-":
        Path(args.json).with_suffix(".md").write_text(table(report))
    if args.json != "-":
        print(table(report))


if __name__ == "__main__":
    main()
