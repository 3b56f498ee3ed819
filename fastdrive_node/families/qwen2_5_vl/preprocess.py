"""Images to the patch layout of Qwen2.5-VL, by one definition for training and vehicle.

An image that has the wanted size is not resampled. Any other is resized by torch's antialiased bicubic filter on uint8
(the filter of Qwen2.5-VL's own image processor, without its aspect-preserving choice of size): 0.9 ms for 1600x900 to
224x112 on one core, where OpenCV's area filter takes 2.9 ms and Pillow 3.4 ms. It always runs on the CPU, so that a GPU
machine sees the same pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fastdrive_node.errors import ImageError

# Normalisation of Qwen2.5-VL's image processor (the CLIP training set's), for RGB in [0, 1].
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def resize(images: Sequence[np.ndarray] | np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """Resize RGB images to one size.

    Args:
        images: uint8 [C, H, W, 3], or a sequence of uint8 [H, W, 3] whose sizes may differ.
        size: (height, width) in px.

    Returns:
        uint8 [C, 3, height, width].

    Raises:
        ImageError: an image is not uint8 [H, W, 3], or is empty.
    """
    return torch.stack([_resize_one(image, index, size) for index, image in enumerate(images)])


def _resize_one(image: np.ndarray, index: int, size: tuple[int, int]) -> torch.Tensor:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ImageError(f"image {index}: expected uint8 RGB [height, width, 3], got {image.dtype} {image.shape}")
    channels_last = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)
    if tuple(channels_last.shape[1:]) == tuple(size):
        return channels_last
    return torch.nn.functional.interpolate(channels_last[None], size=size, mode="bicubic", antialias=True)[0]


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
