"""ReconPruner (FastDriveVLA, arXiv 2507.23318): a saliency score for each visual token.

``[Q*, V*] = layer([Q, V])`` with one Qwen2.5-VL decoder layer whose attention is bidirectional, then
``S = linear(V* . Q*)`` on the Hadamard product; the sign of a score is the foreground decision.

What the paper leaves open is set here: positions are M-RoPE over the token grid as the language model itself would
number it, the query as the text token at the origin and the image behind it, so that token (row, column) has ids
(1, 1 + row, 1 + column). One deviation, ``normalise``, is on by default: V* and Q* pass an RMSNorm without weights
before the product, for the straight-through mask of the training does not see a score's size and without it scores
run away.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.functional import rms_norm
from transformers import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLDecoderLayer, Qwen2_5_VLRotaryEmbedding


def layer_config(text_config: Qwen2_5_VLTextConfig) -> Qwen2_5_VLTextConfig:
    """The configuration of one plain decoder layer of a language model."""
    config = copy.deepcopy(text_config)
    config.num_hidden_layers = 1
    config.layer_types = ["full_attention"]
    config.use_sliding_window, config.sliding_window = False, None
    config.attention_dropout = 0.0
    config._attn_implementation = "sdpa"
    return config


class ReconPruner(nn.Module):
    """Scores the tokens of each camera by itself; one set of weights for all cameras.

    Args:
        config: of the language model whose tokens it scores; gives width, heads and feed-forward size.
        normalise: RMSNorm of V* and Q* before their product (see the module's text).
    """

    def __init__(self, config: Qwen2_5_VLTextConfig, normalise: bool = True):
        super().__init__()
        self.config = layer_config(config)
        self.normalise = normalise
        width = self.config.hidden_size
        self.query = nn.Parameter(torch.randn(1, width) * self.config.initializer_range)
        self.layer = Qwen2_5_VLDecoderLayer(self.config, layer_idx=0)
        self.layer.self_attn.is_causal = False  # bidirectional: read by transformers' attention where no mask is given
        self.rotary = Qwen2_5_VLRotaryEmbedding(self.config)
        self.scorer = nn.Linear(width, 1)

    @classmethod
    def from_config(cls, text_config: Qwen2_5_VLTextConfig, normalise: bool = True) -> ReconPruner:
        """An untrained pruner for a language model's configuration."""
        return cls(text_config, normalise)

    @property
    def width(self) -> int:
        """D, the width of the tokens that it scores."""
        return self.config.hidden_size

    def forward(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Scores of visual tokens.

        Args:
            tokens: [B, N, D], an image a row (B = cameras, or cameras of several sets), N = rows * columns.
            grid: (rows, columns) of the tokens of one image.

        Returns:
            float32 [B, N], unbounded; above zero means foreground.
        """
        hidden = torch.cat([self.query.expand(len(tokens), 1, -1), tokens], dim=1)
        positions = query_and_grid_positions(grid, tokens.device)
        hidden = self.layer(hidden, position_embeddings=self.rotary(hidden, positions))
        if self.normalise:
            hidden = rms_norm(hidden, hidden.shape[-1:], eps=self.config.rms_norm_eps)
        return self.scorer(hidden[:, 1:] * hidden[:, :1]).squeeze(-1).float()


def query_and_grid_positions(grid: tuple[int, int], device: torch.device | None = None) -> torch.Tensor:
    """M-RoPE ids int64 [3, 1, 1 + rows * columns]: the query at the origin, then the token grid."""
    rows, columns = torch.meshgrid(*(torch.arange(side, device=device) for side in grid), indexing="ij")
    ids = torch.stack([torch.ones_like(rows), 1 + rows, 1 + columns]).flatten(1)
    return torch.cat([torch.zeros_like(ids[:, :1]), ids], dim=1)[:, None]
