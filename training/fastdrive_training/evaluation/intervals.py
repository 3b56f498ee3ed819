"""Confidence intervals of the table's figures, and of differences between rows, by the bootstrap.

Keyframes half a second apart have most of their future in common, so whole scenes are drawn with replacement, as long
as there are enough of them (a cluster bootstrap; Davison and Hinkley, Bootstrap Methods and their Application, 1997,
3.8); else single samples. Own code, because scipy.stats.bootstrap has no clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from fastdrive_training.evaluation.metrics.horizons import at_horizons, running_any, running_mean

RESAMPLES = 2000
LEAST_SCENES = 10
LEVEL = 0.95
FIGURES = {
    "l2_avg_to_t": ("errors_m", running_mean),
    "collision_polygon": ("collision", running_mean),
    "collision_any": ("raster_collision", running_any),
    "off_drivable": ("off_drivable", running_any),
    "intersection": ("intersection", running_any),
}


@dataclass(frozen=True)
class Difference:
    """How much larger a figure of one row is than of another, over the samples that both answered."""

    difference: float
    interval: tuple[float, float]
    samples: int

    @property
    def swapped(self) -> Difference:
        """How much larger the other row's figure is."""
        return Difference(-self.difference, (-self.interval[1], -self.interval[0]), self.samples)


def steps_of(table: pa.Table, column: str) -> np.ndarray | None:
    """float64 [samples, points] of a column, NaN in the rows of samples without it; None where no sample has it."""
    lines = table.column(column).to_pylist()
    width = next((len(line) for line in lines if line is not None), None)
    if width is None:
        return None
    return np.array([[np.nan] * width if line is None else line for line in lines], np.float64)


def sample_figures(table: pa.Table, figure: str) -> np.ndarray:
    """A figure's "avg" for each sample of a row, float64 [samples]; NaN where it was refused or is not known."""
    column, running = FIGURES[figure]
    steps = steps_of(table, column)
    values = np.full(len(table), np.nan)
    if steps is not None:
        known = ~np.isnan(steps).any(axis=1)
        values[known] = at_horizons(running(steps[known])).mean(axis=1)
    return values


def known_mean(values: Sequence[np.ndarray] | np.ndarray, axis: int = 0) -> np.ndarray:
    """Mean over an axis (seeds, samples) of the values that are known; NaN where none is."""
    values = np.asarray(values)
    known = ~np.isnan(values)
    sums, counts = np.where(known, values, 0).sum(axis=axis), known.sum(axis=axis)
    return np.divide(sums, counts, out=np.full(np.shape(counts), np.nan), where=counts > 0)


def interval(values: np.ndarray, scenes: Sequence[str], seed: int = 0) -> tuple[float, float] | None:
    """95 % interval of the mean of [samples], NaNs left out; None where fewer than two units are known."""
    means = _resampled_means(values, scenes, seed)
    return None if means is None else _percentiles(means)


def paired_difference(first: np.ndarray, second: np.ndarray, scenes: Sequence[str], seed: int = 0) -> Difference | None:
    """The mean of ``first`` - ``second`` over the samples that both know; None where these are fewer than two units."""
    difference = first - second
    means = _resampled_means(difference, scenes, seed)
    if means is None:
        return None
    known = ~np.isnan(difference)
    return Difference(float(difference[known].mean()), _percentiles(means), int(known.sum()))


def relative_performance(whole: np.ndarray, pruned: np.ndarray) -> float | None:
    """The figure on all tokens over that on the kept ones: 1 is as on all, less is worse.

    Means [samples] over those that both know. None where no sample is known to both, or where the pruned figure is 0.
    """
    known = ~np.isnan(whole) & ~np.isnan(pruned)
    below = pruned[known].sum()
    return float(whole[known].sum() / below) if below else None


def _resampled_means(values: np.ndarray, scenes: Sequence[str], seed: int) -> np.ndarray | None:
    known = ~np.isnan(values)
    names = np.asarray(scenes)[known]
    units = np.unique(names, return_inverse=True)[1] if len(set(names)) >= LEAST_SCENES else np.arange(known.sum())
    count = int(units.max()) + 1 if len(units) else 0
    if count < 2:
        return None
    sums = np.bincount(units, values[known], count)
    sizes = np.bincount(units, minlength=count)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    return (drawn @ sums) / (drawn @ sizes)


def _percentiles(means: np.ndarray) -> tuple[float, float]:
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)
