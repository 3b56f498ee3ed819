"""From scores to the tokens that are kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fastdrive_node.types import PruningRatio


def keep_count(total: int, drop: float) -> int:
    """K = floor(N (1 - p)): tokens kept of ``total`` at the pruning ratio ``drop``.

    Raises:
        ValueError: ``drop`` is out of range, or nothing would be kept.
    """
    return PruningRatio(drop).keep_count(total)


def keep_above(logits: torch.Tensor, threshold: float, k_min: int, k_max: int) -> int:
    """K read off calibrated scores: the tokens whose probability of being foreground is at least ``threshold``.

    Args:
        logits: of calibrated scores, any shape.
        threshold: probability in (0, 1).
        k_min, k_max: bounds of K; where they contradict each other ``k_max`` holds, for it is the budget.

    Raises:
        ValueError: a logit is not finite, or an argument is out of range.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"keep_threshold: {threshold} is not between 0 and 1")
    if k_min < 1 or k_max < 1:
        raise ValueError(f"k_min and k_max: {k_min} and {k_max} must be at least 1")
    logits = logits.detach().float().cpu()
    if not bool(torch.isfinite(logits).all()):
        raise ValueError("scores: not finite")
    above = int((logits >= math.log(threshold / (1 - threshold))).sum())
    return min(max(above, k_min), k_max)


@dataclass(frozen=True)
class CameraFloors:
    """How many tokens are kept of each camera that is there, whatever the others' scores are."""

    least: int
    cameras: torch.Tensor  # int64 [N] on the CPU: the number of each token's camera; below 0: of a missing one

    def first(self, order: torch.Tensor, keep: int) -> torch.Tensor:
        """``order``, int64 [N] by falling score, with the ``least`` best tokens of each camera in front.

        Raises:
            ValueError: these are more than ``keep``.
        """
        cameras, front = self.cameras[order], torch.zeros(len(order), dtype=torch.bool)
        for camera in cameras[cameras >= 0].unique():
            front[(cameras == camera).nonzero()[: self.least, 0]] = True
        if (count := int(front.sum())) > keep:
            raise ValueError(f"keep: {keep} tokens, but camera_floor keeps {count}")
        return torch.cat([order[front], order[~front]])


def select_top(scores: torch.Tensor, keep: int, floors: CameraFloors | None = None) -> torch.Tensor:
    """The highest scores over all cameras, in raster order.

    Equal scores are taken in index order, so that the choice is the same on every run and machine.

    Args:
        scores: [C, N], finite.
        keep: K, at most C * N.
        floors: the best tokens of each camera that are kept first; the other ones are the best of what is left.

    Returns:
        int64 [K] on the CPU, ascending indices into C * N (camera after camera, raster order).

    Raises:
        ValueError: a score is not finite, or ``keep`` is out of range or less than the floors.
    """
    cameras, count = scores.shape
    scores = scores.detach().float().cpu()
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("scores: not finite")
    if not 0 < keep <= cameras * count:
        raise ValueError(f"keep: {keep} is not in 1..{cameras * count}")
    order = torch.sort(scores.flatten(), descending=True, stable=True).indices
    if floors is not None:
        order = floors.first(order, keep)
    return order[:keep].sort().values
