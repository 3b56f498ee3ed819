"""Images to the size that a VLA reads, by one definition for training and vehicle.

An image that has the wanted size is not resampled. Any other is resized by torch's antialiased bicubic filter on uint8
(the filter of the usual image processors, without their aspect-preserving choice of size): 0.9 ms for 1600x900 to
224x112 on one core, where OpenCV's area filter takes 2.9 ms and Pillow 3.4 ms. It always runs on the CPU, so that a GPU
machine sees the same pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fastdrive_node.errors import ImageError


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
