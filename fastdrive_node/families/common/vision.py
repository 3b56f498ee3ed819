"""Torch vision backends: what those of one image size share, and one for cameras of different image sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from fastdrive_node.errors import ModelError
from fastdrive_node.families.base import CameraGroup
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

    def groups(self, inputs: torch.Tensor) -> list[CameraGroup]:
        """See ``SeparableVision``."""
        return [CameraGroup(self, range(self.cameras), inputs)]

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


class MixedVision(nn.Module):
    """Cameras of different image sizes: those of one size are encoded together, by a backend of their own.

    All backends hold the same modules. ``grid`` is that of all tokens as one row; ``grids`` are those of the cameras.
    """

    def __init__(self, vla: Vla):
        super().__init__()
        spec, cameras = vla.spec, range(len(vla.spec.cameras))
        self.grids, self.grid, self.cameras = vla.grids, (1, vla.set_tokens), 1
        self._groups: list[list[int]] = []  # cameras of one size
        backends = []
        for size in dict.fromkeys(spec.sizes):
            self._groups.append([camera for camera in cameras if spec.sizes[camera] == size])
            names = tuple(spec.cameras[camera] for camera in self._groups[-1])
            part = replace(spec, cameras=names, image_size=size, image_sizes={})
            backends.append(vla.family.vision(replace(vla, spec=part)))
        self._backends: Any = nn.ModuleList(backends)

    @property
    def max_keep(self) -> int:
        """All tokens of all cameras."""
        return self.grid[1]

    @property
    def device(self) -> torch.device:
        return self._backends[0].device

    def preprocess(self, images: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """uint8 RGB images [H, W, 3] of any size, one of each camera -> the inputs of each backend."""
        parts = zip(self._backends, self._groups, strict=True)
        return [backend.preprocess([images[camera] for camera in group]) for backend, group in parts]

    def encode(self, inputs: list[torch.Tensor], attention: bool = False) -> VisualTokens:
        """See ``VisionBackend``."""
        images: dict[int, tuple[VisualTokens, int]] = {}
        for backend, cameras, part in self.groups(inputs):
            visual = backend.encode(part, attention=attention)
            images |= {camera: (visual, place) for place, camera in enumerate(cameras)}
        return VisualTokens.of_images([images[camera] for camera in sorted(images)])

    def groups(self, inputs: list[torch.Tensor]) -> list[CameraGroup]:
        """See ``SeparableVision``."""
        parts = zip(self._backends, self._groups, inputs, strict=True)
        return [CameraGroup(backend, cameras, part) for backend, cameras, part in parts]
