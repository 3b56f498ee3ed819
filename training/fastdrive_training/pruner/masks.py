"""Token masks of the reconstruction: drawn by chance for the decoder to practise on, or read off the foreground."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from fastdrive_training.scoring.token_metrics import POSITIVE_COVERAGE


def random_masks(count: int, grid: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Blobs of random size and share for the decoder to practise on, float [count, rows * cols] in 0..1.

    Smooth noise of a random scale is cut at a random quantile, so that single tokens, blocks and halves all occur.
    Every other mask has random levels in place of 0 and 1, so that the decoder paints a token by its level.
    """
    rows, cols = grid
    if not count:
        return torch.zeros(0, rows * cols)
    scale = int(torch.randint(1, 4, (1,), generator=generator))
    coarse = torch.rand(count, 1, max(rows // scale, 1) + 1, max(cols // scale, 1) + 1, generator=generator)
    noise = F.interpolate(coarse, size=grid, mode="bilinear", align_corners=True).flatten(1)
    share = 0.05 + 0.9 * torch.rand(count, 1, generator=generator)
    rank = noise.argsort(dim=1).argsort(dim=1)
    hard = (rank < share * rows * cols).float()
    levels = torch.rand(count, 2, generator=generator)
    levels[::2] = torch.tensor([0.0, 1.0])
    return torch.where(hard > 0, levels[:, 1:], levels[:, :1])


def cells_to_pixels(mask: torch.Tensor, grid: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """A token mask [B, N] as a pixel mask float [B, 1, H, W]: each cell's value over its pixels."""
    return F.interpolate(mask.reshape(len(mask), 1, *grid), size=size, mode="nearest")


def oracle_masks(foreground: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """1 where at least half of the token's cell is foreground, float [B, N] of a pixel mask float [B, 1, H, W]."""
    return (F.adaptive_avg_pool2d(foreground, grid).flatten(1) >= POSITIVE_COVERAGE).float()


def chance_masks(foreground: torch.Tensor, tokens: int, seeds: Sequence[tuple[int, ...]]) -> torch.Tensor:
    """As many tokens as an image has foreground, but any: float [B, tokens] of a pixel mask float [B, 1, H, W].

    ``seeds`` has one for each image, so that its mask does not depend on the other images.
    """
    draws = np.stack([np.random.default_rng(seed).random(tokens, np.float32) for seed in seeds])
    share = foreground.flatten(1).mean(1, keepdim=True)
    return (torch.from_numpy(draws).to(share) < share).float()
