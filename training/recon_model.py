"""The adversarial foreground/background reconstruction that trains ReconPruner (FastDriveVLA, arXiv 2507.23318).

High-scored tokens must rebuild the foreground and the others the background, through one decoder. The binary mask gets
its gradient from a surrogate (straight-through estimator). That gradient is what the decoder's linearisation says about
a token's presence, so it is only as right as the decoder is smooth around a dropped token. Zeros go straight into an
RMSNorm there, whose slope is of the order 1 / sqrt(eps): on a toy world every run collapsed or swung from one half to
the other, ready decoder or not. A learned vector under every token, dropped or not, ends that. Further measures beyond
the paper, each an option: the decoder's warm-up on random masks and their rehearsal later, a bounded surrogate, losses
weighted by the share of their region.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLDecoderLayer,
    Qwen2_5_VLRMSNorm,
    Qwen2_5_VLRotaryEmbedding,
)

from fastdrive_node.pruning.recon_pruner import layer_config, query_and_grid_positions
from fastdrive_training.ssim import ssim

PIXELS_PER_TOKEN = 28  # side of a token's cell at patch 14, merge 2


@dataclass(frozen=True)
class LossWeights:
    """``alpha`` weighs the foreground half, ``ssim_weight`` is the paper's lambda."""

    alpha: float = 0.5
    ssim_weight: float = 0.2
    ssim_stride: int = 1
    balance_regions: bool = True  # divide each half's loss by twice the share of its region in the batch
    surrogate: str = "sigmoid"  # or "raw": where the mask's gradient comes from

    def __post_init__(self) -> None:
        for name in ("alpha", "ssim_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: must be in 0..1")
        if self.ssim_stride < 1:
            raise ValueError("ssim_stride: must be at least 1")
        if self.surrogate not in ("sigmoid", "raw"):
            raise ValueError(f"surrogate: must be sigmoid or raw, is {self.surrogate!r}")


@dataclass(frozen=True)
class HalfLosses:
    """Scalars of one batch; ``total`` is the one to differentiate."""

    total: torch.Tensor
    fore: torch.Tensor
    back: torch.Tensor
    mse_fore: torch.Tensor
    mse_back: torch.Tensor
    ssim_fore: torch.Tensor
    ssim_back: torch.Tensor

    def figures(self) -> dict[str, float]:
        return {name: float(value.detach()) for name, value in vars(self).items()}


class ReconDecoder(nn.Module):
    """Qwen2.5-VL decoder layers with bidirectional attention, and a feed-forward head for the pixels of each token.

    A learned vector is added to every token, dropped or not: without it the gradient at a dropped token (zeros into an
    RMSNorm) is hundreds of times too steep, and the adversary collapses.

    Args:
        text_config: of the VLA; gives width, heads and the rotary embedding.
        layers: 6 in the paper.
        pixels: side of a token's cell in px.
    """

    def __init__(self, text_config: Qwen2_5_VLTextConfig, layers: int = 6, pixels: int = PIXELS_PER_TOKEN):
        super().__init__()
        config = layer_config(text_config)
        config.num_hidden_layers, config.layer_types = layers, config.layer_types * layers
        width = config.hidden_size
        self.pixels = pixels
        self.rotary = Qwen2_5_VLRotaryEmbedding(config)
        self.place = nn.Parameter(torch.randn(1, width))
        self.layers = nn.ModuleList(Qwen2_5_VLDecoderLayer(config, index) for index in range(layers))
        for layer in self.layers:
            layer.self_attn.is_causal = False
        self.norm = Qwen2_5_VLRMSNorm(width, eps=config.rms_norm_eps)
        self.head = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, 3 * pixels**2))

    def forward(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Tokens [B, rows * cols, D] (dropped ones zero) -> images in (0, 1), [B, 3, rows * pixels, cols * pixels]."""
        angles = self.rotary(tokens, query_and_grid_positions(grid, tokens.device)[..., 1:])
        hidden = tokens + self.place
        for layer in self.layers:
            hidden = layer(hidden, attention_mask=None, position_embeddings=angles)
        return fold_cells(self.head(self.norm(hidden)).sigmoid(), grid, self.pixels)


def fold_cells(cells: torch.Tensor, grid: tuple[int, int], pixels: int) -> torch.Tensor:
    """[B, rows * cols, 3 * pixels * pixels] -> images [B, 3, rows * pixels, cols * pixels]."""
    rows, cols = grid
    parts = cells.reshape(len(cells), rows, cols, 3, pixels, pixels)
    return parts.permute(0, 3, 1, 4, 2, 5).reshape(len(cells), 3, rows * pixels, cols * pixels)


def straight_through(scores: torch.Tensor, surrogate: str = "sigmoid") -> torch.Tensor:
    """The binary mask 1[S > 0] in the forward pass, with the gradient of the surrogate; float, shape of ``scores``.

    ``raw`` is the paper's S + stopgrad(M - S); ``sigmoid`` puts sigmoid(S) in place of S, which bounds the gradient.
    """
    soft = scores.sigmoid() if surrogate == "sigmoid" else scores
    hard = (scores > 0).to(scores.dtype)
    return soft + (hard - soft).detach()


def split_losses(
    decoder: nn.Module,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    pixels: torch.Tensor,
    foreground: torch.Tensor,
    grid: tuple[int, int],
    weights: LossWeights,
) -> HalfLosses:
    """Rebuild both halves and compare them with the blanked images.

    Args:
        tokens: float [B, N, D], the frozen encoder's.
        mask: float [B, N], 1 where a token goes to the foreground half; may carry a straight-through gradient.
        pixels: float [B, 3, H, W] in [0, 1].
        foreground: float [B, 1, H, W], 1 at foreground pixels.
    """
    keep = mask.unsqueeze(-1)
    halves = torch.cat([tokens * keep, tokens * (1 - keep)])
    targets = torch.cat([pixels * foreground, pixels * (1 - foreground)])
    rebuilt = decoder(halves, grid)
    mse_fore, mse_back = ((rebuilt - targets) ** 2).flatten(1).mean(1).chunk(2)
    ssim_fore, ssim_back = ssim(rebuilt, targets, weights.ssim_stride).chunk(2)
    fore = _mix(mse_fore, ssim_fore, weights.ssim_weight).mean()
    back = _mix(mse_back, ssim_back, weights.ssim_weight).mean()
    share = foreground.mean().clamp(0.02, 0.98) if weights.balance_regions else foreground.new_tensor(0.5)
    total = weights.alpha * fore / (2 * share) + (1 - weights.alpha) * back / (2 * (1 - share))
    return HalfLosses(total, fore, back, mse_fore.mean(), mse_back.mean(), ssim_fore.mean(), ssim_back.mean())


def _mix(mse: torch.Tensor, similarity: torch.Tensor, ssim_weight: float) -> torch.Tensor:
    return ssim_weight * (1 - similarity) + (1 - ssim_weight) * mse


def random_masks(count: int, grid: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Blobs of random size and share for the decoder to practise on, float [count, rows * cols] in 0..1.

    Smooth noise of a random scale is cut at a random quantile, so that single tokens, blocks and halves all occur.
    Every other mask has random levels in place of 0 and 1, so that the decoder paints a token by its level.
    """
    rows, cols = grid
    scale = int(torch.randint(1, 4, (1,), generator=generator))
    coarse = torch.rand(count, 1, max(rows // scale, 1) + 1, max(cols // scale, 1) + 1, generator=generator)
    noise = F.interpolate(coarse, size=grid, mode="bilinear", align_corners=True).flatten(1)
    share = 0.05 + 0.9 * torch.rand(count, 1, generator=generator)
    rank = noise.argsort(dim=1).argsort(dim=1)
    hard = (rank < share * rows * cols).float()
    levels = torch.rand(count, 2, generator=generator)
    levels[::2] = torch.tensor([0.0, 1.0])
    return torch.where(hard > 0, levels[:, 1:], levels[:, :1])


def cells_to_pixels(mask: torch.Tensor, grid: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """A token mask [B, N] as a pixel mask float [B, 1, H, W]: each cell's value over its pixels."""
    return F.interpolate(mask.reshape(len(mask), 1, *grid), size=size, mode="nearest")
