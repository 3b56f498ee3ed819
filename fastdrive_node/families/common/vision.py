"""What the torch vision backends over transformers' own towers share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from fastdrive_node.errors import ModelError
from fastdrive_node.families.images import Normalisation, resize
from fastdrive_node.families.tokens import VisualTokens
from fastdrive_node.families.vla import Vla


class OneSizeVision(nn.Module):
    """Images of one size to tokens by transformers' own modules (no copy), with the cameras as the batch.

    A subclass gives ``encode_patches``, and ``encode`` where tokens have more than their rows.

    Args:
        tower: gives dtype and device.
    """

    def __init__(self, vla: Vla, tower: nn.Module, normalisation: Normalisation):
        super().__init__()
        self.tower = tower
        self.image_size, self.cameras, self.grid = vla.spec.image_size, len(vla.spec.cameras), vla.grid
        self._model_type, self._normalisation = vla.family.model_type, normalisation

    @property
    def max_keep(self) -> int:
        """All tokens of all cameras."""
        return self.cameras * self.grid[0] * self.grid[1]

    @property
    def dtype(self) -> torch.dtype:
        return next(self.tower.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.tower.parameters()).device

    def preprocess(self, images: Sequence[np.ndarray] | np.ndarray) -> torch.Tensor:
        """uint8 RGB images [H, W, 3] of any size -> what ``patches`` gives, on the tower's device."""
        return self.patches(resize(images, self.image_size).to(self.device))

    def patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [C, 3, height, width] at the tower's image size -> normalised pixels of the same shape."""
        return self._normalisation.apply(pixels, self.dtype)

    def encode(self, inputs: torch.Tensor, attention: bool = False) -> VisualTokens:
        """See ``VisionBackend``. Raises ModelError: ``attention`` is asked for, which these towers do not give."""
        if attention:
            self.encode_with_attention(inputs)
        return VisualTokens.from_raster(self.encode_patches(inputs), self.grid)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return self.encode_patches(patches)

    def encode_patches(self, patches: torch.Tensor) -> torch.Tensor:
        """What ``patches`` gave -> tokens [C, rows * columns, D], raster order."""
        raise NotImplementedError

    def encode_with_attention(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Raises ModelError: these families do not give the attention of their towers."""
        raise ModelError(
            f"vision encoder of {self._model_type}: gives no attention of its tower, which the pruner reads; "
            "use another pruner"
        )
