"""From scores to the tokens that are kept."""

from __future__ import annotations

import math

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


def select_top(scores: torch.Tensor, keep: int) -> torch.Tensor:
    """The highest scores over all cameras, in raster order.

    Equal scores are taken in index order, so that the choice is the same on every run and machine.

    Args:
        scores: [C, N], finite.
        keep: K, at most C * N.

    Returns:
        int64 [K] on the CPU, ascending indices into C * N (camera after camera, raster order).

    Raises:
        ValueError: a score is not finite, or ``keep`` is out of range.
    """
    cameras, count = scores.shape
    scores = scores.detach().float().cpu()
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("scores: not finite")
    if not 0 < keep <= cameras * count:
        raise ValueError(f"keep: {keep} is not in 1..{cameras * count}")
    order = torch.sort(scores.flatten(), descending=True, stable=True).indices
    return order[:keep].sort().values
