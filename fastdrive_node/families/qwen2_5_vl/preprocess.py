"""Pixels to the patch layout of Qwen2.5-VL."""

from __future__ import annotations

import math
from typing import Any

import torch

from fastdrive_node.families.images import CLIP

MEAN, STD = CLIP.mean, CLIP.std  # of Qwen2.5-VL's image processor


def normalise(pixels: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """uint8 [C, 3, H, W] in 0..255 -> ``dtype`` [C, 3, H, W] with the encoder's mean and deviation."""
    return CLIP.apply(pixels, dtype)


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


def differences(config: Any, stored: dict, size: tuple[int, int]) -> list[str]:
    """How a ``preprocessor_config.json`` differs from this module; see ``VlaFamily.preprocessor_problems``."""
    vision = config.vision_config
    ours = {
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "rescale_factor": 1 / 255,
    }
    found = [
        f"{name}: {stored[name]}, but {value} is used"
        for name, value in ours.items()
        if name in stored and not _equal(stored[name], value)
    ]
    limits = stored.get("size", {})
    if not isinstance(limits, dict):
        return [*found, f"size: {str(limits)[:40]!r} is not an object with the numbers of pixels"]
    most = stored.get("max_pixels", limits.get("longest_edge"))
    least = stored.get("min_pixels", limits.get("shortest_edge"))
    for name, value in (("max_pixels", most), ("min_pixels", least)):
        if value is not None and not (type(value) is int and 0 < value < 1 << 40):
            return [*found, f"{name}: {str(value)[:40]!r} is not a number of pixels"]
    if most is not None and least is not None:
        cell = vision.patch_size * vision.spatial_merge_size
        height, width = processor_size(size, cell, least, most)
        if (height, width) != tuple(size):
            found.append(
                f"max_pixels: {most} would make {width}x{height} px ({height * width // cell**2} tokens) of images of "
                f"{size[1]}x{size[0]} px ({size[0] * size[1] // cell**2} tokens); image_size of vla.json is used"
            )
    return found


def processor_size(size: tuple[int, int], multiple: int, least: int, most: int) -> tuple[int, int]:
    """The (height, width) that Qwen2-VL's image processor makes of an image, in px: sides are rounded to multiples,
    and scaled where there are fewer pixels than ``least`` or more than ``most``."""
    height, width = (max(multiple, round(side / multiple) * multiple) for side in size)
    if height * width > most:
        scale = math.sqrt(size[0] * size[1] / most)
        height, width = (max(multiple, math.floor(side / scale / multiple) * multiple) for side in size)
    elif height * width < least:
        scale = math.sqrt(least / (size[0] * size[1]))
        height, width = (math.ceil(side * scale / multiple) * multiple for side in size)
    return height, width


def _equal(stored: Any, ours: Any) -> bool:
    if isinstance(stored, list) != isinstance(ours, list):
        return False
    stored, ours = (value if isinstance(value, list) else [value] for value in (stored, ours))
    if len(stored) != len(ours) or not all(isinstance(value, int | float) for value in stored):
        return False
    return all(abs(a - b) < 1e-6 for a, b in zip(stored, ours, strict=True))
