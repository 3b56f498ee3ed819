"""The tail of a row: how few samples hold what pruning costs, how bad the worst are, and which they are.

Everything is compared with the row ``none`` sample by sample, over the samples that both answered.
"""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa

from fastdrive_training.evaluation.intervals import sample_figures, steps_of

PART_OF_LOSS = 0.9
WORST = 0.05  # of the samples
FIGURES = ("loss_90_samples", "worst5_loss", "new_collisions", "gone_collisions")


def worst5_l2(table: pa.Table) -> float | None:
    """The mean L2 in m of the 5 % of the samples whose L2 is largest; None where nothing was answered."""
    values = sample_figures(table, "l2_avg_to_t")
    return _mean(values[largest(values)])


def sample_losses(whole: pa.Table, pruned: pa.Table) -> np.ndarray:
    """How much larger the L2 of each sample is than on all tokens, float64 [samples] in m; NaN where one refused."""
    return sample_figures(pruned, "l2_avg_to_t") - sample_figures(whole, "l2_avg_to_t")


def tail_figures(whole: pa.Table, pruned: pa.Table) -> dict[str, float | None]:
    """What a row loses against ``none``, and where; None where it is not known.

    ``loss_90_samples``: the smallest fraction of the samples that holds 90 % of the L2 that is lost, gains left out.
    ``worst5_loss``: the mean loss in m of the 5 % that lose most. ``new_collisions`` and ``gone_collisions``: fractions
    of samples that hit a vehicle up to 3 s on the kept tokens alone, and on all tokens alone (as ``collision_any``).
    """
    losses = sample_losses(whole, pruned)
    change = collides(pruned) - collides(whole)
    known = ~np.isnan(change)
    return {
        "loss_90_samples": _samples_with(losses, PART_OF_LOSS),
        "worst5_loss": _mean(losses[largest(losses)]),
        "new_collisions": _mean(change[known] > 0),
        "gone_collisions": _mean(change[known] < 0),
    }


def collides(table: pa.Table) -> np.ndarray:
    """Whether each sample hits a vehicle at any step up to 3 s, float64 [samples] of 0 and 1; NaN where unknown."""
    steps = steps_of(table, "raster_collision")
    return np.full(len(table), np.nan) if steps is None else steps.max(axis=1)


def largest(values: np.ndarray) -> np.ndarray:
    """Positions of the 5 % of the known values that are largest, rounded up, largest first."""
    known = int((~np.isnan(values)).sum())
    order = np.argsort(-np.where(np.isnan(values), -np.inf, values), kind="stable")
    return order[: math.ceil(WORST * known)]


def worst_losses(whole: pa.Table, pruned: pa.Table) -> np.ndarray:
    """Positions of the 5 % of the samples that lose most L2, the most first; those that lose nothing are left out."""
    losses = sample_losses(whole, pruned)
    return np.array([place for place in largest(losses) if losses[place] > 0], int)


def worst_collisions(whole: pa.Table, pruned: pa.Table) -> np.ndarray:
    """Positions of the samples that collide more than on all tokens, at most 5 % of them.

    In the order of how much ``collision_any`` rises, which is how early the first hit is; then by the loss in L2.
    """
    rise = sample_figures(pruned, "collision_any") - sample_figures(whole, "collision_any")
    losses = sample_losses(whole, pruned)
    order = np.lexsort((-losses, -np.nan_to_num(rise)))
    most = math.ceil(WORST * int((~np.isnan(rise)).sum()))
    return np.array([place for place in order[:most] if rise[place] > 0], int)


def _samples_with(losses: np.ndarray, part: float) -> float | None:
    known = losses[~np.isnan(losses)]
    lost = np.sort(known[known > 0])[::-1]
    if not len(lost):
        return None
    needed = int(np.searchsorted(np.cumsum(lost), part * lost.sum() * (1 - 1e-12))) + 1
    return needed / len(known)


def _mean(values: np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) else None
