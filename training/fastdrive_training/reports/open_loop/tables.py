"""Tables beside the main one: what a pruner costs, distances of plans, and overlap of kept tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from fastdrive_training.evaluation.intervals import known_mean
from fastdrive_training.reports.open_loop.figures import ResultRow, Tables
from fastdrive_training.reports.open_loop.labels import TIMES, amount_text, operations_text, times_text, tokens_text

HEADS = ("tokens", "FLOPs", "pruner", "prefill", "both", "decode", "peak memory")
NOTES = ("last layer", "", "ms", "ms", "ms", "ms a token", "MB")


@dataclass(frozen=True)
class CostCell:
    """A cost, and how many times less it is than without pruning (empty where that is not known)."""

    text: str
    times: str = ""


@dataclass(frozen=True)
class CostRow:
    """The costs of a pruner at a ratio, in the order of ``HEADS``."""

    pruner: str
    drop: float
    cells: tuple[CostCell, ...]


def cost_rows(tables: Tables) -> list[CostRow]:
    """Without pruning, then ratio by ratio; empty where nothing was measured."""
    lines = [line for lines in tables.lines.values() for line in lines]
    measured = [line for line in ([tables.whole, *lines] if tables.whole else lines) if line.costs]
    return [_row(line, tables.whole) for line in measured]


def _row(line: ResultRow, whole: ResultRow | None) -> CostRow:
    base = {} if whole is None or line is whole else _costs(whole)
    own = _costs(line)
    cells = [CostCell(_tokens(line), times_text(None if whole is None or line is whole else whole.tokens, line.tokens))]
    cells += [
        CostCell(
            operations_text(own.get(name)) if name == "flops" else amount_text(own.get(name)),
            times_text(base.get(name), own.get(name)),
        )
        for name in ("flops", "pruner_ms", "prefill_ms", "both_ms", "decode_ms_per_token", "peak_memory_mb")
    ]
    return CostRow(line.pruner, line.drop, tuple(cells))


def _costs(line: ResultRow) -> dict[str, float]:
    """With ``both_ms``, pruner and prefill; a pruner inside of the language model has its time in the prefill."""
    costs = dict(line.costs)
    if "prefill_ms" in costs:
        costs["both_ms"] = costs["prefill_ms"] + costs.get("pruner_ms", 0.0)
    return costs


def _tokens(line: ResultRow) -> str:
    """With those of each layer where they differ: ``48 (192 x 2, 48 x 2)``."""
    text = tokens_text(line.tokens)
    if not line.tokens_by_layer or len(set(line.tokens_by_layer)) == 1:
        return text
    runs = [f"{tokens_text(count)} {TIMES} {len(list(run))}" for count, run in groupby(line.tokens_by_layer)]
    return f"{text} ({', '.join(runs)})"


@dataclass(frozen=True)
class Matrix:
    """A figure for each pair of pruners, the mean over samples; NaN where no sample has it."""

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
    return known_mean(distances[:, upper[0], upper[1]], axis=1)


def overlap(kept: Sequence[np.ndarray | None], tokens: int) -> np.ndarray:
    """Jaccard index of kept sets in one sample, float64 [pruners, pruners]; NaN where a pruner has none.

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
    return Matrix(tuple(names), known_mean([overlap(one, tokens) for one in zip(*kept, strict=True)]))
