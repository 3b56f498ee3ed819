"""Held-out keyframes during the training: figures, a precision-recall curve, and a few reconstructions to look at."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from sklearn.metrics import precision_recall_curve
from torch import nn

from fastdrive_node.families import Vla
from fastdrive_node.files import write_atomically
from fastdrive_training.data.adapters.base import ImageSource
from fastdrive_training.data.token_cache import pixel_encoder
from fastdrive_training.pruner.data import read_masked_image, require_masks
from fastdrive_training.scoring.score import known_tokens, score_figures, score_tokens

SAMPLES_FILE, CURVE_FILE = "samples.npz", "curve.json"
SAMPLES = 2  # keyframes in SAMPLES_FILE
CURVE_POINTS = 200


@dataclass(frozen=True)
class HeldOut:
    """K keyframes with C cameras of one image size, N = rows * cols tokens each, at the tower's image size."""

    names: tuple[str, ...]  # sample tokens
    cameras: tuple[str, ...]
    grid: tuple[int, int]
    tokens: np.ndarray  # float32 [K, C, N, D]
    coverage: np.ndarray  # float32 [K, C, N], foreground fraction of each token's cell; NaN where it is in doubt
    images: np.ndarray  # uint8 [P, C, H, W, 3] of the first P keyframes
    foreground: np.ndarray  # bool [P, C, H, W]


def read_held_out(source: ImageSource, vla: Vla, keyframes: np.ndarray, images: int = SAMPLES) -> list[HeldOut]:
    """Read and encode the items at these positions, and keep the images of the first ``images`` of them.

    Returns a part for each image size among the source's cameras, that of the first camera first.
    Raises InputError: no masks, an image or mask is unusable.
    """
    require_masks(source)
    sizes = vla.spec.sizes_of(source.cameras)
    by_size = {size: [name for name, own in zip(source.cameras, sizes, strict=True) if own == size] for size in sizes}
    return [_read_size(source, cameras, vla.of_size(size), keyframes, images) for size, cameras in by_size.items()]


def _read_size(source: ImageSource, cameras: Sequence[str], vla: Vla, keyframes: np.ndarray, images: int) -> HeldOut:
    """``read_held_out`` of cameras that have the one image size of the VLA."""
    encode, size = pixel_encoder(vla), vla.spec.image_size
    height, width = vla.covered_size
    tokens, coverage, kept = [], [], []
    for index in keyframes:
        item = source[int(index)]
        read = [read_masked_image(item, camera, size, vla.grid) for camera in cameras]
        pixels = torch.stack([image.pixels for image in read])
        tokens.append(encode(pixels).cpu().numpy())
        coverage.append(np.stack([cast(np.ndarray, image.coverage) for image in read]))  # there, with a grid
        if len(kept) < images:
            foreground = np.stack([one.regions.foreground for one in read])
            kept.append((pixels[..., :height, :width].permute(0, 2, 3, 1).numpy(), foreground[:, :height, :width]))
    names = tuple(source.names[int(index)] for index in keyframes)
    shown, masks = (np.stack(part) for part in zip(*kept, strict=True))
    return HeldOut(names, tuple(cameras), vla.grid, np.stack(tokens), np.stack(coverage), shown, masks)


def score_held_out(pruner: nn.Module, held_out: Sequence[HeldOut]) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Scores float32 [K, C * N] of each part, and the scores and the coverage of all of them, [K, tokens]."""
    parts = [score_tokens(pruner, part.tokens, part.grid) for part in held_out]
    coverage = [part.coverage.reshape(len(part.coverage), -1) for part in held_out]
    return parts, np.concatenate(parts, 1), np.concatenate(coverage, 1)


def evaluator(held_out: Sequence[HeldOut], folder: Path) -> Callable[..., dict[str, Any]]:
    """A function (pruner, decoder, step) that writes SAMPLES_FILE and CURVE_FILE and returns ``score_figures``.

    The samples are of the cameras with the image size of the first one.
    """

    def evaluate(pruner: nn.Module, decoder: nn.Module, step: int) -> dict[str, Any]:
        parts, scores, coverage = score_held_out(pruner, held_out)
        figures = score_figures(scores, coverage)
        write_curve(folder, step, scores, coverage, figures)
        write_samples(folder, step, parts[0], held_out[0], decoder)
        return figures

    return evaluate


def write_curve(folder: Path, step: int, scores: np.ndarray, coverage: np.ndarray, figures: dict[str, Any]) -> None:
    """Precision and recall of the tokens at up to CURVE_POINTS thresholds, evenly spaced over the recall.

    Both lists are empty where only one class is there. ``scores`` and ``coverage`` [K, tokens].
    """
    ranked, positive = known_tokens(scores, coverage)
    precision, recall = np.zeros(0), np.zeros(0)
    if figures["auroc"] is not None:
        precision, recall, _ = precision_recall_curve(positive, ranked)
        wanted = np.linspace(1, 0, CURVE_POINTS)
        places = np.unique(np.searchsorted(-recall, -wanted).clip(max=len(recall) - 1))
        precision, recall = precision[places], recall[places]
    curve = {
        "step": step,
        "auroc": figures["auroc"],
        "average_precision": figures["average_precision"],
        "precision": [round(float(value), 5) for value in precision],
        "recall": [round(float(value), 5) for value in recall],
        "positives": int(positive.sum()),
        "tokens": int(positive.size),
    }
    with write_atomically(folder / CURVE_FILE) as partial:
        partial.write_text(json.dumps(curve) + "\n")


def write_samples(folder: Path, step: int, scores: np.ndarray, held_out: HeldOut, decoder: nn.Module) -> None:
    """The first SAMPLES keyframes: images, masks, score maps, and both branches rebuilt with the hard mask."""
    chosen = slice(0, SAMPLES)
    maps = scores.reshape(held_out.coverage.shape)[chosen]
    fore, back = rebuild(decoder, held_out.tokens[chosen], maps > 0, held_out.grid)
    with write_atomically(folder / SAMPLES_FILE) as partial:
        np.savez_compressed(
            partial,
            step=step,
            names=np.array(held_out.names[chosen]),
            cameras=np.array(held_out.cameras),
            images=held_out.images[chosen],
            foreground=held_out.foreground[chosen],
            fore=_to_images(fore),
            back=_to_images(back),
            scores=maps.reshape(*maps.shape[:2], *held_out.grid).astype(np.float32),
        )


def rebuild(
    decoder: nn.Module, tokens: np.ndarray, mask: np.ndarray, grid: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Foreground and background branch, float32 [K, C, channels, H, W] in (0, 1) on the CPU, of hard masks.

    Args:
        tokens: float [K, C, N, D].
        mask: bool [K, C, N], True where a token goes to the foreground branch.
    """
    parameter = next(decoder.parameters())
    branches = []
    with torch.inference_mode():
        for sign in (mask, ~mask):
            kept = torch.from_numpy(np.asarray(tokens, np.float32) * sign[..., None]).to(parameter)
            branches.append(torch.stack([decoder(keyframe, grid).float().cpu() for keyframe in kept]))
    return branches[0], branches[1]


def _to_images(branch: torch.Tensor) -> np.ndarray:
    """uint8 [K, C, H, W, 3]: the pixels where the decoder paints them, else its mask in gray."""
    color = branch[:, :, :3] if branch.shape[2] >= 3 else branch[:, :, :1].expand(-1, -1, 3, -1, -1)
    return (color.permute(0, 1, 3, 4, 2) * 255).round().to(torch.uint8).numpy()
