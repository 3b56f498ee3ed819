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

    def preprocess(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """One uint8 RGB image [H, W, 3] a camera, of any size -> patches [C, patches, patch values]."""

    def encode_patches(self, patches: torch.Tensor) -> torch.Tensor:
        """Patches [C, patches, patch values] -> tokens [C, rows * columns, D], raster order."""

    def encode(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Both steps: uint8 RGB images -> tokens [C, rows * columns, D]."""
