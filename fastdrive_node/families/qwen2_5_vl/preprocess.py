"""Pixels to the patch layout of Qwen2.5-VL."""

from __future__ import annotations

import torch

# Normalisation of Qwen2.5-VL's image processor (the CLIP training set's), for RGB in [0, 1].
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def normalise(pixels: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """uint8 [C, 3, H, W] in 0..255 -> ``dtype`` [C, 3, H, W] with the encoder's mean and deviation."""
    mean = torch.tensor(MEAN, device=pixels.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=pixels.device).view(1, 3, 1, 1)
    return ((pixels.float() / 255 - mean) / std).to(dtype)


def patchify(pixels: torch.Tensor, patch: int = 14, merge: int = 2, temporal: int = 2) -> torch.Tensor:
    """Cut images into the patch rows that Qwen2.5-VL's patch embedding reads.

    The patches of one ``merge`` x ``merge`` cell are neighbours, cells in raster order; a still image is repeated
    over the ``temporal`` frames of a patch.

    Args:
        pixels: [C, 3, H, W], H and W multiples of ``patch * merge``.

    Returns:
        [C, (H / patch) * (W / patch), 3 * temporal * patch * patch].
    """
    count, channels, height, width = pixels.shape
    cell = patch * merge
    cells = pixels.reshape(count, channels, height // cell, merge, patch, width // cell, merge, patch)
    cells = cells.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)
    cells = cells.expand(-1, -1, -1, -1, -1, -1, temporal, -1, -1)
    return cells.reshape(count, (height // patch) * (width // patch), channels * temporal * patch * patch)
