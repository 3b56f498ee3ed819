"""The adversarial foreground/background losses that train ReconPruner (FastDriveVLA, arXiv 2507.23318, section 3).

Tokens of high score must rebuild the foreground, the others the background, through one decoder. The binary mask gets
its gradient from a surrogate (straight-through estimator). That gradient is the decoder's linearisation of a token's
presence, so it is only as good as the decoder is smooth around a dropped token. Two measures go beyond the paper, each
an option: a bounded surrogate, and losses weighted by the size of their region.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from fastdrive_training.engine.config import Count, Fraction, recipe_class
from fastdrive_training.engine.loop import Losses
from fastdrive_training.pruner.ssim import ssim

CHANNELS = {"pixels": 3, "mask": 1, "both": 4}  # of what the decoder rebuilds
Decode = Callable[[torch.Tensor, tuple[int, int]], torch.Tensor]


@recipe_class
class LossWeights:
    """``alpha`` weighs the foreground branch, ``ssim_weight`` is the paper's lambda.

    ``targets`` is what the decoder rebuilds in each branch: its pixels, its mask (the same losses on an image that is
    white all over), or both as four channels. Without ``adversary`` the foreground branch alone is trained, the paper's
    ablation: it degenerates, for all tokens together rebuild the foreground best.
    """

    alpha: Fraction = 0.5
    ssim_weight: Fraction = 0.2
    ssim_stride: Count = 1
    balance_regions: bool = True  # divide each branch's loss by twice the fraction of the batch that its region covers
    surrogate: Literal["sigmoid", "raw"] = "sigmoid"  # where the mask's gradient comes from
    targets: Literal["pixels", "mask", "both"] = "pixels"
    adversary: bool = True

    @property
    def channels(self) -> int:
        """Channels that the decoder must have."""
        return CHANNELS[self.targets]

    def branches(self, foreground: float) -> tuple[float, float]:
        """Weights of the foreground and background loss where this fraction of the pixels is foreground."""
        if not self.balance_regions:
            foreground = 0.5
        foreground = min(max(foreground, 0.02), 0.98)
        alpha = self.alpha if self.adversary else 1.0
        return alpha / (2 * foreground), (1 - alpha) / (2 * (1 - foreground))


def straight_through(scores: torch.Tensor, surrogate: str = "sigmoid") -> torch.Tensor:
    """The binary mask 1[S > 0] in the forward pass, with the gradient of the surrogate; float, shape of ``scores``.

    ``raw`` is the paper's S + stopgrad(M - S); ``sigmoid`` puts sigmoid(S) in place of S, which bounds the gradient.
    """
    soft = scores.sigmoid() if surrogate == "sigmoid" else scores
    hard = (scores > 0).to(scores.dtype)
    return soft + (hard - soft).detach()


def target_image(pixels: torch.Tensor, targets: str) -> torch.Tensor:
    """What a branch shows inside its region, [B, channels, H, W], of pixels [B, 3, H, W]."""
    if targets == "pixels":
        return pixels
    white = torch.ones_like(pixels[:, :1])
    return white if targets == "mask" else torch.cat([pixels, white], dim=1)


def split_losses(
    decode: Decode,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    pixels: torch.Tensor,
    foreground: torch.Tensor,
    grid: tuple[int, int],
    weights: LossWeights,
    covered: float | None = None,
    ignore: torch.Tensor | None = None,
) -> Losses:
    """Rebuild the image in both branches and compare with the blanked images.

    Args:
        decode: tokens [B, N, D], grid -> images [B, weights.channels, H, W].
        tokens: float [B, N, D], the frozen encoder's.
        mask: float [B, N], 1 where a token goes to the foreground branch; may carry a straight-through gradient.
        pixels: float [B, 3, H, W] in [0, 1].
        foreground: float [B, 1, H, W], 1 at foreground pixels.
        covered: fraction of foreground pixels, for the balance of the regions; None takes that of this batch. The parts
            of a batch that is split need the fraction of the whole.
        ignore: bool [B, 1, H, W], True at pixels whose label is in doubt: there any color is right.

    Returns:
        ``total`` to differentiate; ``fore``, ``back``, ``mse_*`` and ``ssim_*``, scalars of the two branches; ``each``
        [B], the sum of both branches' losses of each image, without gradient.
    """
    keep = mask.unsqueeze(-1)
    branches = torch.cat([tokens * keep, tokens * (1 - keep)])
    image = target_image(pixels, weights.targets)
    targets = torch.cat([image * foreground, image * (1 - foreground)])
    rebuilt = decode(branches, grid)
    if ignore is not None:
        rebuilt = torch.where(torch.cat([ignore, ignore]), targets, rebuilt)
    mse_fore, mse_back = ((rebuilt - targets) ** 2).flatten(1).mean(1).chunk(2)
    ssim_fore, ssim_back = ssim(rebuilt, targets, weights.ssim_stride).chunk(2)
    fore = _mix(mse_fore, ssim_fore, weights.ssim_weight)
    back = _mix(mse_back, ssim_back, weights.ssim_weight)
    weight_fore, weight_back = weights.branches(float(foreground.mean()) if covered is None else covered)
    parts = {
        "fore": fore,
        "back": back,
        "mse_fore": mse_fore,
        "mse_back": mse_back,
        "ssim_fore": ssim_fore,
        "ssim_back": ssim_back,
    }
    return {
        "total": weight_fore * fore.mean() + weight_back * back.mean(),
        **{name: values.mean() for name, values in parts.items()},
        "each": (fore + back).detach(),
    }


def _mix(mse: torch.Tensor, similarity: torch.Tensor, ssim_weight: float) -> torch.Tensor:
    return ssim_weight * (1 - similarity) + (1 - ssim_weight) * mse
