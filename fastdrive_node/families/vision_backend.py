"""What every vision backend gives, whatever runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch


class VisionBackend(Protocol):
    """Images to the tokens that the language model reads."""

    cameras: int
    grid: tuple[int, int]  # token rows and columns of one image
    max_keep: int  # tokens of all cameras that it gives at most; less than all where an engine was built so

    def preprocess(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """One uint8 RGB image [H, W, 3] a camera, of any size -> what the backend encodes.

        With torch that is patches [C, patches, patch values], with an engine uint8 pixels [C, 3, height, width].
        """

    def encode_patches(self, patches: torch.Tensor) -> torch.Tensor:
        """What ``preprocess`` gave -> tokens [C, rows * columns, D], raster order."""

    def encode(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Both steps: uint8 RGB images -> tokens [C, rows * columns, D]."""
