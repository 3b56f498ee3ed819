"""The torch backend: transformers' own vision tower weights, run for one fixed grid with the cameras as the batch.

transformers' forward packs all images into one sequence and runs attention window by window in a Python loop. Here the
grid is fixed, so the window order, the rotary angles and the inverse order are computed once, windows of equal size
are neighbours and run as one batch, and no mask is needed. The result equals ``model.get_image_features`` up to
floating-point rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionAttention
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from fastdrive_node.errors import ModelError
from fastdrive_node.families.base import CameraGroup
from fastdrive_node.families.images import resize
from fastdrive_node.families.qwen2_5_vl.language import fold_rotation_sign
from fastdrive_node.families.qwen2_5_vl.preprocess import normalise, patchify
from fastdrive_node.families.tokens import VisualTokens

ATTENTION_ROWS = 512  # rows of an attention matrix that are held at a time, where it is asked for


@dataclass(frozen=True)
class WindowOrder:
    """The order of the merged cells in which windows of equal size are neighbours."""

    cells: torch.Tensor  # int64 [cells], raster index of the cell at each place
    inverse: torch.Tensor  # int64 [cells], place of each raster cell
    runs: tuple[tuple[int, int], ...]  # (number of windows, patches a window), in order


def window_order(grid: tuple[int, int], config) -> WindowOrder:
    """Windows of a patch grid (rows, columns of patches), sorted by size so that equal ones run as one batch."""
    thw = torch.tensor([[1, *grid]])
    order, boundaries = get_vision_window_index(thw, config.spatial_merge_size, config.window_size, config.patch_size)
    unit = config.spatial_merge_size**2
    windows = list(order.split((boundaries.diff() // unit).tolist()))
    windows.sort(key=len, reverse=True)
    cells = torch.cat(windows)
    sizes = [len(window) * unit for window in windows]
    runs = tuple((sizes.count(size), size) for size in dict.fromkeys(sizes))
    return WindowOrder(cells, torch.argsort(cells), runs)


class TorchVision(nn.Module):
    """Images to tokens for a fixed number of cameras and image size.

    It holds the tower that it is given (no copy), so training the one trains the other; gradients flow unless the
    caller turns them off.

    Args:
        visual: transformers' ``Qwen2_5_VisionTransformerPretrainedModel``.
        image_size: (height, width) in px that every image is resized to, multiples of patch * merge.
        cameras: images in a set; ``encode_patches`` takes any number.
    """

    _cells: torch.Tensor
    _inverse: torch.Tensor
    _cos: torch.Tensor
    _sin: torch.Tensor

    def __init__(self, visual: Any, image_size: tuple[int, int], cameras: int = 6):
        super().__init__()
        self.visual = visual
        self.config = visual.config
        self.image_size = image_size
        self.cameras = cameras
        patch, merge = self.config.patch_size, self.config.spatial_merge_size
        patches = (image_size[0] // patch, image_size[1] // patch)
        self.grid = (patches[0] // merge, patches[1] // merge)
        order = window_order(patches, self.config)
        self.runs = order.runs
        device = next(visual.parameters()).device
        self.register_buffer("_cells", order.cells.to(device), persistent=False)
        self.register_buffer("_inverse", order.inverse.to(device), persistent=False)
        cos, sin = self._angles(patches, order.cells)
        self.register_buffer("_cos", cos.to(device), persistent=False)
        self.register_buffer("_sin", sin.to(device), persistent=False)

    @property
    def max_keep(self) -> int:
        """All tokens of all cameras."""
        return self.cameras * self.grid[0] * self.grid[1]

    @property
    def dtype(self) -> torch.dtype:
        return next(self.visual.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.visual.parameters()).device

    def _angles(self, patches: tuple[int, int], cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin, float32 [patches, 1, head dim], in window order; the sign of rotate-half is folded into sin."""
        positions = get_vision_position_ids(torch.tensor([[1, *patches]]), self.config.spatial_merge_size)
        rotary = self.visual.rotary_pos_emb
        cos, sin = rotary(torch.zeros(1, device=rotary.inv_freq.device), positions.to(rotary.inv_freq.device))
        unit = self.config.spatial_merge_size**2
        cos, sin = (
            angle.float().reshape(len(cells), unit, -1)[cells.to(angle.device)].flatten(0, 1).unsqueeze(1)
            for angle in (cos, sin)
        )
        return fold_rotation_sign(cos, sin)

    def preprocess(self, images: Sequence[np.ndarray] | np.ndarray) -> torch.Tensor:
        """uint8 RGB images [H, W, 3] of any size -> patches [C, patches, patch values] on the tower's device.

        Raises:
            InputError: an image is not uint8 [H, W, 3].
        """
        pixels = resize(images, self.image_size).to(self._cells.device)
        return self.patches(pixels)

    def patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [C, 3, height, width] at the tower's image size -> patches [C, patches, patch values]."""
        config = self.config
        return patchify(
            normalise(pixels, self.dtype), config.patch_size, config.spatial_merge_size, config.temporal_patch_size
        )

    def encode(self, inputs: torch.Tensor, attention: bool = False) -> VisualTokens:
        """Patches [C, patches, patch values] -> every token; see ``VisionBackend``."""
        if attention:
            tokens, received = self.encode_with_attention(inputs)
            return VisualTokens.from_raster(tokens, self.grid, received)
        return VisualTokens.from_raster(self.encode_patches(inputs), self.grid)

    def groups(self, inputs: torch.Tensor) -> list[CameraGroup]:
        """See ``SeparableVision``."""
        return [CameraGroup(self, range(self.cameras), inputs)]

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return self.encode_patches(patches)

    def encode_patches(self, patches: torch.Tensor) -> torch.Tensor:
        """Patches [C, patches, patch values] -> tokens [C, rows * columns, D], raster order."""
        return self._encode(patches)[0]

    def encode_with_attention(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens as ``encode_patches``, and the attention that each one's patches receive.

        Returns:
            Tokens [C, rows * columns, D]; attention float32 [C, rows * columns], raster order: in the last block of
            full attention the sum over the attending patches, mean over heads and the cell's patches. Its mean over an
            image is 1.

        Raises:
            ModelError: no block of the tower attends over whole images.
        """
        full = [index for index in self.config.fullatt_block_indexes if index < len(self.visual.blocks)]
        if not full:
            raise ModelError("vision_config.fullatt_block_indexes: no block attends over whole images")
        tokens, received = self._encode(patches, max(full))
        assert received is not None
        return tokens, received

    def _encode(self, patches: torch.Tensor, watched: int | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens, and the attention received in the block ``watched``."""
        visual, count, received = self.visual, len(patches), None
        unit = self.config.spatial_merge_size**2
        weight = visual.patch_embed.proj.weight
        cells = patches.to(weight.dtype).reshape(count, -1, unit, patches.shape[-1])[:, self._cells]
        hidden = linear(cells.flatten(1, 2), weight.flatten(1))
        for index, block in enumerate(visual.blocks):
            runs = ((1, hidden.shape[1]),) if index in self.config.fullatt_block_indexes else self.runs
            if index == watched:
                received = self._received(block.attn, block.norm1(hidden))
                received = received.reshape(count, -1, unit).mean(dim=-1)[:, self._inverse]
            hidden = hidden + self._attend(block.attn, block.norm1(hidden), runs)
            hidden = hidden + block.mlp(block.norm2(hidden))
        merged = visual.merger(hidden).reshape(count, -1, self.config.out_hidden_size)
        return merged[:, self._inverse], received

    def _received(self, attention: Qwen2_5_VLVisionAttention, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [C, patches]: column sums of the attention over the whole image, mean over heads."""
        qkv = attention.qkv(hidden).unflatten(2, (3, attention.num_heads, attention.head_dim))
        query = self._rotate(qkv[:, :, 0]).transpose(1, 2)
        key = self._rotate(qkv[:, :, 1]).permute(0, 2, 3, 1)
        sums = torch.zeros(hidden.shape[:2], device=hidden.device)
        for rows in query.split(ATTENTION_ROWS, dim=2):  # the whole matrix of a large image would not fit
            weights = ((rows @ key).float() * attention.scaling).softmax(dim=-1)
            sums += weights.sum(dim=2).mean(dim=1)
        return sums

    def _attend(
        self, attention: Qwen2_5_VLVisionAttention, hidden: torch.Tensor, runs: tuple[tuple[int, int], ...]
    ) -> torch.Tensor:
        """Attention inside each window; hidden [C, patches, width]."""
        count, length, width = hidden.shape
        qkv = attention.qkv(hidden).view(count, length, 3, attention.num_heads, attention.head_dim)
        query, key = self._rotate(qkv[:, :, 0]), self._rotate(qkv[:, :, 1])
        outputs, start = [], 0
        for windows, size in runs:
            span = slice(start, start + windows * size)
            query_part, key_part, value_part = (
                part[:, span].reshape(count * windows, size, attention.num_heads, attention.head_dim).transpose(1, 2)
                for part in (query, key, qkv[:, :, 2])
            )
            mixed = scaled_dot_product_attention(query_part, key_part, value_part, scale=attention.scaling)
            outputs.append(mixed.transpose(1, 2).reshape(count, windows * size, width))
            start = span.stop
        return attention.proj(outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1))

    def _rotate(self, states: torch.Tensor) -> torch.Tensor:
        """Rotary embedding in float32, as the tower does; states [C, patches, heads, head dim]."""
        values = states.float()
        half = values.shape[-1] // 2
        swapped = torch.cat([values[..., half:], values[..., :half]], dim=-1)
        return (values * self._cos + swapped * self._sin).to(states.dtype)
