"""Confidence intervals of figures over runs, and of differences between rows, by the bootstrap.

Seeds are drawn with replacement within each family (a stratified bootstrap; Davison and Hinkley, Bootstrap Methods and
their Application, 1997, 3.2): the families are chosen, their scenarios are not. Two rows are compared scenario by
scenario, so that what a scenario adds to both cancels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
TAIL = 0.05  # the worst runs that are listed

Interval = tuple[float, float]


@dataclass(frozen=True)
class PairedDifference:
    """How much larger a figure of one row is than of another, over the scenarios of both."""

    difference: float
    ci95: Interval | None
    runs: int


def interval(values: np.ndarray, families: Sequence[str], seed: int = 0) -> Interval | None:
    """95 % interval of the mean of [runs], NaNs left out; None for fewer than two.

    Where all values are 0, or all 1, resampling shows no spread: then it is the exact one of a binomial rate.
    """
    known = ~np.isnan(values)
    found = values[known]
    if len(found) < 2:
        return None
    if (found == 0).all() or (found == 1).all():
        reach = (0.5 * (1 - LEVEL)) ** (1 / len(found))
        return (0.0, 1 - reach) if found[0] == 0 else (reach, 1.0)
    return _percentiles(_resampled_means(found, np.asarray(families)[known], seed))


def paired_difference(
    first: np.ndarray, second: np.ndarray, families: Sequence[str], seed: int = 0
) -> PairedDifference | None:
    """The mean of ``first`` - ``second`` over the scenarios that both know; None where they share none."""
    difference = first - second
    known = ~np.isnan(difference)
    if not known.any():
        return None
    found = difference[known]
    means = _resampled_means(found, np.asarray(families)[known], seed) if len(found) > 1 else None
    return PairedDifference(float(found.mean()), None if means is None else _percentiles(means), len(found))


def known_mean(values: np.ndarray) -> float | None:
    """Mean of the values that are no NaN; None without one."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def worst(values: np.ndarray) -> np.ndarray:
    """Indices of the lowest 5 % of [runs], at least one, lowest first."""
    count = max(int(np.ceil(TAIL * len(values) - 1e-9)), 1)
    return np.argsort(values, kind="stable")[:count]


def _resampled_means(values: np.ndarray, families: np.ndarray, seed: int) -> np.ndarray:
    """Means [RESAMPLES] with values drawn within their families; over all of them where a family has only one."""
    names, strata = np.unique(families, return_inverse=True)
    if np.bincount(strata, minlength=len(names)).min() < 2:
        strata = np.zeros(len(values), int)
    rng, sums = np.random.default_rng(seed), np.zeros(RESAMPLES)
    for stratum in range(strata.max() + 1):
        own = values[strata == stratum]
        sums += rng.multinomial(len(own), np.full(len(own), 1 / len(own)), RESAMPLES) @ own
    return sums / len(values)


def _percentiles(means: np.ndarray) -> Interval:
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)
