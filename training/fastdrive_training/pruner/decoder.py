"""The decoder that rebuilds foreground and background from the tokens; training only (FastDriveVLA, arXiv 2507.23318).

In the paper's decoder the zeros of dropped tokens enter an RMSNorm, whose slope there is of the order 1 / sqrt(eps): on
a toy world every run collapsed or swung from one branch to the other. A learned vector added to every token, dropped or
not, prevents that.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fastdrive_node.families import VlaFamily
from fastdrive_node.pruning.recon_pruner import ReconPruner


class ReconDecoder(nn.Module):
    """The VLA's decoder layers with bidirectional attention, and a feed-forward head for the pixels of each token.

    A learned vector is added to every token, dropped or not: without it the gradient at a dropped token (zeros into an
    RMSNorm) is hundreds of times too steep, and the adversary collapses.

    Args:
        family, text_config: of the VLA; they give the layers' class and sizes.
        layers: 6 in the paper.
        pixels: width of a token's cell in px.
        channels: of the images that it paints, 3 in the paper.
        offset: whether there is that vector; without it this is the paper's decoder.
    """

    def __init__(
        self, family: VlaFamily, text_config: Any, layers: int, pixels: int, channels: int = 3, offset: bool = True
    ):
        super().__init__()
        width = text_config.hidden_size
        self.pixels, self.channels = pixels, channels
        self.offset = nn.Parameter(torch.randn(1, width)) if offset else None
        self.layers = nn.ModuleList(family.pruner_layer(text_config) for _ in range(layers))
        norm = self.layers[0].get_submodule("input_layernorm")  # the family's norm, new: its weight is 1
        self.norm = copy.deepcopy(norm)
        values = channels * pixels**2
        self.head = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, values))

    def forward(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Tokens [B, rows * cols, D] (dropped ones zero) -> images in (0, 1), [B, channels, rows * px, cols * px]."""
        hidden = tokens if self.offset is None else tokens + self.offset
        for layer in self.layers:
            hidden = layer(hidden, grid, query=False)
        return fold_cells(self.head(self.norm(hidden)).sigmoid(), grid, self.pixels)


def fold_cells(cells: torch.Tensor, grid: tuple[int, int], pixels: int) -> torch.Tensor:
    """[B, rows * cols, channels * pixels * pixels] -> images [B, channels, rows * pixels, cols * pixels]."""
    rows, cols = grid
    parts = cells.reshape(len(cells), rows, cols, -1, pixels, pixels)
    return parts.permute(0, 3, 1, 4, 2, 5).reshape(len(cells), -1, rows * pixels, cols * pixels)


def start_from_layers(
    pruner: ReconPruner,
    decoder: ReconDecoder,
    read_layer: Callable[[int], dict[str, torch.Tensor]],
    there: int,
    pruner_layer: int | None,
    decoder_layer: int | None,
) -> None:
    """Copy weights of a language model's decoder layers in place; the copies are trained, the source is left alone.

    Args:
        read_layer: weights of a decoder layer of the language model by its index, of the width that pruner and
            decoder have.
        there: how many such layers there are.
        pruner_layer: index of the layer that PrunerLayer starts as; None leaves it at its random weights.
        decoder_layer: index of the first of as many layers in a row as the decoder has; None leaves it.

    Raises:
        ValueError: there is no such layer; the text starts with ``pruner_init`` or ``decoder_init``.
    """
    if pruner_layer is not None:
        _require_layers("pruner_init", pruner_layer, 1, there)
        pruner.layer.load_state_dict(read_layer(pruner_layer))
    if decoder_layer is not None:
        _require_layers("decoder_init", decoder_layer, len(decoder.layers), there)
        for index, layer in enumerate(decoder.layers):
            layer.load_state_dict(read_layer(decoder_layer + index))


def _require_layers(key: str, first: int, wanted: int, there: int) -> None:
    if first < 0 or first + wanted > there:
        raise ValueError(
            f"{key}: {wanted} layer(s) from {first} on are wanted, but the VLA has {there}; use 0 to {there - wanted}"
            if wanted <= there
            else f"{key}: {wanted} layers are wanted, but the VLA has {there}; lower decoder_layers or use null"
        )
