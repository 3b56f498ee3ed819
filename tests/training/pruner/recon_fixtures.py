"""Small stand-ins for the reconstruction's tests: a toy configuration, and batches of made-up images."""

from __future__ import annotations

import torch
from transformers import Qwen2_5_VLTextConfig

from fastdrive_training.engine.loop import StepBatches
from fastdrive_training.pruner.data import ReconBatch

GRID = (2, 4)
CELL = 8


def text_config(width: int = 32) -> Qwen2_5_VLTextConfig:
    return Qwen2_5_VLTextConfig(
        vocab_size=8,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
    )


class PaintedBatches(StepBatches):
    """Cells that are foreground or background at random; the token of a cell holds its color and which it is."""

    def __init__(self, batch: int = 4, width: int = 32, poison: int | None = None, parts: int = 1, own=None):
        super().__init__(10**6, batch, 0, "painted", parts, range(parts) if own is None else own)
        self._width, self._poison = width, poison
        self._project = torch.randn(4, width, generator=torch.Generator().manual_seed(9))

    def read(self, step: int) -> list[ReconBatch]:
        return [self.at(step, part) for part in self.own]

    def names(self, step: int) -> list[str]:
        return [f"sample{step}/{image}" for image in range(self.batch)]

    def at(self, step: int, part: int = 0) -> ReconBatch:
        generator = torch.Generator().manual_seed(step)
        cells = GRID[0] * GRID[1]
        fore = torch.rand(self.batch, cells, generator=generator) < 0.4
        color = torch.randint(60, 256, (self.batch, cells, 3), generator=generator)
        tokens = torch.cat([color / 255, fore.unsqueeze(-1).float()], dim=-1) @ self._project
        if step == self._poison:
            tokens[1, 2] = float("nan")
        pixels, foreground = _grow(color.float()).to(torch.uint8), _grow(fore.unsqueeze(-1).float()) > 0.5
        places = tuple(range(self.batch))[part :: self.parts]
        own = [part[list(places)] for part in (tokens, pixels, foreground)]
        return ReconBatch(*own, torch.zeros_like(own[2]), places, GRID)


def _grow(cells: torch.Tensor) -> torch.Tensor:
    """[B, cells, C] -> [B, C, H, W]."""
    image = cells.transpose(1, 2).reshape(len(cells), -1, *GRID)
    return image.repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)
