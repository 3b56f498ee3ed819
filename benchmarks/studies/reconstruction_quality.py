"""Quality of rebuilt foregrounds and backgrounds of held-out images: PSNR and SSIM against the blanked images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from fastdrive_training.pruner.data import matched_random_masks
from fastdrive_training.pruner.ssim import ssim
from fastdrive_training.pruner.validate import HeldOut, rebuild
from fastdrive_training.scoring.token_metrics import POSITIVE_COVERAGE

BEST_PSNR_DB = 100.0  # of a perfect image, in place of infinity


def quality(decoder: nn.Module, held_out: HeldOut, mask: np.ndarray) -> dict[str, float] | None:
    """Figures of the held-out keyframes that have their images; None where the decoder paints no pixels.

    Args:
        mask: bool [P, C, N], True where a token goes to the foreground branch.

    Returns:
        ``psnr_fore``, ``psnr_back`` in dB and ``ssim_fore``, ``ssim_back``: means over the images, each branch against
        the image with everything outside (inside) the foreground blanked; ``psnr_fore_region``, ``psnr_back_region``:
        over the pixels of the region alone, pooled, for blank pixels are easily right.
    """
    channels: Any = decoder.channels
    if channels < 3:
        return None
    errors = {"fore": [0.0, 0.0], "back": [0.0, 0.0]}  # sum of squares and values, inside the region
    rows: dict[str, list[torch.Tensor]] = {}
    for keyframe in range(len(held_out.images)):
        chosen = slice(keyframe, keyframe + 1)
        pixels = torch.from_numpy(held_out.images[keyframe]).permute(0, 3, 1, 2).float() / 255
        foreground = torch.from_numpy(held_out.foreground[keyframe]).unsqueeze(1).float()
        branches = rebuild(decoder, held_out.tokens[chosen], mask[chosen], held_out.grid)
        for name, branch, region in zip(errors, branches, (foreground, 1 - foreground), strict=True):
            painted, target = branch[0, :, :3], pixels * region
            square = (painted - target) ** 2
            rows.setdefault(f"psnr_{name}", []).append(_psnr(square.flatten(1).mean(1)))
            rows.setdefault(f"ssim_{name}", []).append(ssim(painted, target))
            errors[name][0] += float((square * region).sum())
            errors[name][1] += 3 * float(region.sum())
    figures = {name: float(torch.cat(values).mean()) for name, values in rows.items()}
    for name, (total, count) in errors.items():
        figures[f"psnr_{name}_region"] = float(_psnr(torch.tensor(total / max(count, 1))))
    return figures


def oracle_cells(held_out: HeldOut) -> np.ndarray:
    """bool [P, C, N], True where at least half of the token's cell is foreground."""
    return held_out.coverage[: len(held_out.images)] >= POSITIVE_COVERAGE


def random_cells(held_out: HeldOut, seed: int) -> np.ndarray:
    """bool [P, C, N]: as many random tokens of each image as it has foreground."""
    foreground = torch.from_numpy(held_out.foreground).float()
    flat = foreground.flatten(0, 1).unsqueeze(1)
    tokens = held_out.coverage.shape[2]
    masks = matched_random_masks(flat, tokens, [(seed, index) for index in range(len(flat))])
    return masks.reshape(*foreground.shape[:2], tokens).numpy() > 0


def _psnr(square: torch.Tensor) -> torch.Tensor:
    """dB, of mean squared errors of images in [0, 1]."""
    return (-10 * square.log10()).clamp(max=BEST_PSNR_DB)
