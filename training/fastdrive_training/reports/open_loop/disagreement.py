"""Where pruners disagree: the distance between their plans, and how much of what they kept is the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Matrix:
    """A figure for each pair of pruners, the mean over samples; NaN where no sample tells."""

    names: tuple[str, ...]
    values: np.ndarray  # float64 [pruners, pruners]


def plan_distances(plans: np.ndarray) -> np.ndarray:
    """Mean distance of the points of two plans in metres, for each sample and pair of pruners.

    Args:
        plans: float64 [pruners, samples, points, 2]; NaN where an answer was refused.

    Returns:
        float64 [samples, pruners, pruners]; NaN where one of the two was refused.
    """
    return np.stack([np.linalg.norm(plans - one, axis=-1).mean(axis=-1).T for one in plans], axis=1)


def spread(distances: np.ndarray) -> np.ndarray:
    """Mean distance over the pairs of each sample, float64 [samples]; NaN where fewer than two pruners answered."""
    upper = np.triu_indices(distances.shape[1], 1)
    return _mean_known(distances[:, upper[0], upper[1]], axis=1)


def distance_matrix(names: Sequence[str], distances: np.ndarray) -> Matrix:
    """The mean over samples of :func:`plan_distances`."""
    return Matrix(tuple(names), _mean_known(distances, axis=0))


def overlap(kept: Sequence[np.ndarray | None], tokens: int) -> np.ndarray:
    """Jaccard index of kept sets in one sample, float64 [pruners, pruners]; NaN where a pruner tells of none.

    Args:
        kept: int [K] of each pruner; K may differ.
        tokens: N, of all cameras.
    """
    sets = np.zeros((len(kept), tokens), np.float32)
    for place, indices in enumerate(kept):
        if indices is not None:
            sets[place, indices] = 1
    shared = (sets @ sets.T).astype(np.float64)
    sizes = np.diag(shared)
    union = sizes[:, None] + sizes - shared
    told = np.array([indices is not None for indices in kept])
    return np.divide(shared, union, out=np.full_like(shared, np.nan), where=(union > 0) & told & told[:, None])


def overlap_matrix(names: Sequence[str], kept: Sequence[Sequence[np.ndarray | None]], tokens: int) -> Matrix:
    """The mean over samples of :func:`overlap`.

    Args:
        kept: for each pruner, of each sample.
    """
    sums, counts = np.zeros((len(names), len(names))), np.zeros((len(names), len(names)))
    for one in zip(*kept, strict=True):
        values = overlap(one, tokens)
        known = ~np.isnan(values)
        sums[known] += values[known]
        counts += known
    return Matrix(tuple(names), np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0))


def _mean_known(values: np.ndarray, axis: int) -> np.ndarray:
    known = ~np.isnan(values)
    sums, counts = np.where(known, values, 0).sum(axis=axis), known.sum(axis=axis)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
