"""Images to the size and values that a VLA reads, by one definition for training and vehicle.

An image that has the wanted size is not resampled. Any other is resized by torch's antialiased bicubic filter on uint8
(the filter of the usual image processors, without their aspect-preserving choice of size): 0.9 ms for 1600x900 to
224x112 on one core, where OpenCV's area filter takes 2.9 ms and Pillow 3.4 ms. It always runs on the CPU, so that a GPU
machine sees the same pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fastdrive_node.errors import ImageError, ModelError
from fastdrive_node.validation import read_json

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")  # of Hugging Face, old and new


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of each color, for RGB in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def apply(self, pixels: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """uint8 [C, 3, H, W] in 0..255 -> ``dtype`` [C, 3, H, W]."""
        mean = torch.tensor(self.mean, device=pixels.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(1, 3, 1, 1)
        return ((pixels.float() / 255 - mean) / std).to(dtype)


CLIP = Normalisation((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def read_normalisation(vla_dir: Path, default: Normalisation) -> Normalisation:
    """What a VLA directory's image processor file says; ``default`` where it has none, or says nothing.

    Raises:
        ModelError: the file is no JSON, or its mean or deviation is no three numbers.
    """
    file = next((vla_dir / name for name in PROCESSOR_FILES if (vla_dir / name).is_file()), None)
    if file is None:
        return default
    try:
        content = read_json(file)
        content = content.get("image_processor", content)
        mean, std = content.get("image_mean", default.mean), content.get("image_std", default.std)
        red, green, blue = map(float, mean)
        stds = r, g, b = [float(value) for value in std]
        if min(stds) <= 0:
            raise ValueError("a deviation is not above zero")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{file}: image_mean, image_std: not three numbers each ({error})") from error
    return Normalisation((red, green, blue), (r, g, b))


def require_multiple(size: tuple[int, int], pixels: int) -> None:
    """Raises ValueError, naming the field of vla.json, where a side (height, width) is no multiple of ``pixels``."""
    for name, side in zip(("height", "width"), size, strict=True):
        if side % pixels:
            raise ValueError(f"image_size.{name}: {side} is not a multiple of {pixels} px")


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
