"""The adversarial foreground/background losses that train ReconPruner (FastDriveVLA, arXiv 2507.23318, section 3).

High-scored tokens must rebuild the foreground and the others the background, through one decoder. The binary mask gets
its gradient from a surrogate (straight-through estimator). That gradient is what the decoder's linearisation says about
a token's presence, so it is only as right as the decoder is smooth around a dropped token. Measures beyond the paper,
each an option: a bounded surrogate, and losses weighted by the share of their region.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fastdrive_training.pruner.ssim import ssim

TARGETS = {"pixels": 3, "mask": 1, "both": 4}  # what the decoder rebuilds -> channels
Decode = Callable[[torch.Tensor, tuple[int, int]], torch.Tensor]


@dataclass(frozen=True)
class LossWeights:
    """``alpha`` weighs the foreground half, ``ssim_weight`` is the paper's lambda.

    ``targets`` is what the decoder rebuilds of each half: its pixels, its mask (the same losses on an image that is
    white all over), or both as four channels. Without ``adversary`` the foreground half alone is trained, the paper's
    ablation: it degenerates, for all tokens together rebuild the foreground best.
    """

    alpha: float = 0.5
    ssim_weight: float = 0.2
    ssim_stride: int = 1
    balance_regions: bool = True  # divide each half's loss by twice the share of its region in the batch
    surrogate: str = "sigmoid"  # or "raw": where the mask's gradient comes from
    targets: str = "pixels"  # or "mask", "both"
    adversary: bool = True

    def __post_init__(self) -> None:
        for name in ("alpha", "ssim_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: must be in 0..1")
        if self.ssim_stride < 1:
            raise ValueError("ssim_stride: must be at least 1")
        if self.surrogate not in ("sigmoid", "raw"):
            raise ValueError(f"surrogate: must be sigmoid or raw, is {self.surrogate!r}")
        if self.targets not in TARGETS:
            raise ValueError(f"targets: must be one of {', '.join(TARGETS)}, is {self.targets!r}")

    @property
    def channels(self) -> int:
        """Channels that the decoder must have."""
        return TARGETS[self.targets]

    def halves(self, share: float) -> tuple[float, float]:
        """Weights of the foreground and background loss where ``share`` of the pixels are foreground."""
        if not self.balance_regions:
            share = 0.5
        share = min(max(share, 0.02), 0.98)
        alpha = self.alpha if self.adversary else 1.0
        return alpha / (2 * share), (1 - alpha) / (2 * (1 - share))


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
    each: torch.Tensor  # [B], sum of both halves' losses of each image, without gradient

    NAMES = ("total", "fore", "back", "mse_fore", "mse_back", "ssim_fore", "ssim_back")

    def scalars(self) -> torch.Tensor:
        """The scalars in the order of ``NAMES``, float64, without gradient."""
        return torch.stack([getattr(self, name).detach().double() for name in self.NAMES])

    def figures(self) -> dict[str, float]:
        return dict(zip(self.NAMES, self.scalars().tolist(), strict=True))


def straight_through(scores: torch.Tensor, surrogate: str = "sigmoid") -> torch.Tensor:
    """The binary mask 1[S > 0] in the forward pass, with the gradient of the surrogate; float, shape of ``scores``.

    ``raw`` is the paper's S + stopgrad(M - S); ``sigmoid`` puts sigmoid(S) in place of S, which bounds the gradient.
    """
    soft = scores.sigmoid() if surrogate == "sigmoid" else scores
    hard = (scores > 0).to(scores.dtype)
    return soft + (hard - soft).detach()


def target_image(pixels: torch.Tensor, targets: str) -> torch.Tensor:
    """What a half shows inside its region, [B, channels, H, W], of pixels [B, 3, H, W]."""
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
    share: float | None = None,
    ignore: torch.Tensor | None = None,
) -> HalfLosses:
    """Rebuild both halves and compare them with the blanked images.

    Args:
        decode: tokens [B, N, D], grid -> images [B, weights.channels, H, W].
        tokens: float [B, N, D], the frozen encoder's.
        mask: float [B, N], 1 where a token goes to the foreground half; may carry a straight-through gradient.
        pixels: float [B, 3, H, W] in [0, 1].
        foreground: float [B, 1, H, W], 1 at foreground pixels.
        share: of foreground pixels, for the balance of the regions; None takes that of this batch. The parts of a
            batch that is split need the share of the whole.
        ignore: bool [B, 1, H, W], True at pixels whose label is in doubt: there any colour is right.
    """
    keep = mask.unsqueeze(-1)
    halves = torch.cat([tokens * keep, tokens * (1 - keep)])
    image = target_image(pixels, weights.targets)
    targets = torch.cat([image * foreground, image * (1 - foreground)])
    rebuilt = decode(halves, grid)
    if ignore is not None:
        rebuilt = torch.where(torch.cat([ignore, ignore]), targets, rebuilt)
    mse_fore, mse_back = ((rebuilt - targets) ** 2).flatten(1).mean(1).chunk(2)
    ssim_fore, ssim_back = ssim(rebuilt, targets, weights.ssim_stride).chunk(2)
    fore = _mix(mse_fore, ssim_fore, weights.ssim_weight)
    back = _mix(mse_back, ssim_back, weights.ssim_weight)
    weight_fore, weight_back = weights.halves(float(foreground.mean()) if share is None else share)
    total = weight_fore * fore.mean() + weight_back * back.mean()
    scalars = (part.mean() for part in (fore, back, mse_fore, mse_back, ssim_fore, ssim_back))
    return HalfLosses(total, *scalars, each=(fore + back).detach())


def _mix(mse: torch.Tensor, similarity: torch.Tensor, ssim_weight: float) -> torch.Tensor:
    return ssim_weight * (1 - similarity) + (1 - ssim_weight) * mse
