"""The tables of a page as data: one line for each pruner and ratio, from the rows of the evaluation itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pyarrow as pa

from fastdrive_training.evaluation.intervals import (
    FIGURES,
    Difference,
    interval,
    known_mean,
    relative_performance,
    sample_figures,
)
from fastdrive_training.evaluation.run import BASELINE, comparisons, row_figures
from fastdrive_training.evaluation.settings import RowKey
from fastdrive_training.evaluation.tails import FIGURES as TAILS
from fastdrive_training.evaluation.tails import tail_figures
from fastdrive_training.reports.open_loop.run_folder import SUBJECT, OpenLoopRun

GROUND_TRUTH = frozenset({"oracle"})  # pruners that see the ground truth: never best, never first
VARIANT = f"{SUBJECT}-"  # how the names of its variants start
COSTS = ("flops", "pruner_ms", "prefill_ms", "decode_ms_per_token", "peak_memory_mb")


@dataclass(frozen=True)
class Figure:
    """The mean of a figure over 1, 2 and 3 s, metres for L2 and a fraction in 0..1 for the others."""

    value: float
    interval: tuple[float, float] | None  # 95 %
    relative: float | None  # performance: that of ``none`` over this one; None where that is not known
    best: bool = False  # lowest at its ratio among the lines that are ranked


@dataclass(frozen=True)
class ResultRow:
    """A pruner at a ratio; seeds are averaged."""

    pruner: str
    drop: float
    seeds: int
    samples: int
    refused: float  # samples, mean over seeds
    tokens: float | None  # that the last layer sees, mean over samples; None without a model
    figures: dict[str, Figure]  # those of FIGURES that the dataset tells
    tail: dict[str, float]  # those of ``evaluation.tails.FIGURES`` that are known, means over seeds
    costs: dict[str, float] = field(default_factory=dict)  # those of COSTS that were measured
    tokens_by_layer: tuple[float, ...] | None = None

    @property
    def sees_truth(self) -> bool:
        return self.pruner in GROUND_TRUTH

    @property
    def is_variant(self) -> bool:
        return self.pruner.startswith(VARIANT)

    @property
    def is_ranked(self) -> bool:
        """Whether it can be first: neither with the ground truth nor as a variant of ReconPruner."""
        return not self.sees_truth and not self.is_variant


@dataclass(frozen=True)
class Tables:
    """All lines of a run, and its paired differences."""

    whole: ResultRow | None  # ``none``
    straight_on: ResultRow | None  # ``constant-velocity``
    lines: dict[float, tuple[ResultRow, ...]]  # at each ratio, in the order of the rows
    paired: dict[tuple[float, str, str], Difference]  # by drop, pruner and figure; against ``subject``
    subject: str  # what the differences are against: ReconPruner, or none where it was not run

    @cached_property
    def figures(self) -> tuple[str, ...]:
        """The figures that some row has."""
        rows = [self.whole, self.straight_on, *(line for lines in self.lines.values() for line in lines)]
        return tuple(name for name in FIGURES if any(row is not None and name in row.figures for row in rows))

    def at(self, drop: float, pruner: str) -> ResultRow | None:
        return next((line for line in self.lines.get(drop, ()) if line.pruner == pruner), None)

    def variants(self, drop: float) -> list[ResultRow]:
        """The oracle, ReconPruner and its variants at a ratio."""
        wanted = [line for line in self.lines[drop] if line.sees_truth or line.pruner == SUBJECT or line.is_variant]
        return sorted(wanted, key=lambda line: (not line.sees_truth, line.is_variant))


def make_tables(run: OpenLoopRun) -> Tables:
    """The figures of every row and the paired differences, computed by the evaluation's own functions."""
    found = {group: _line(run, keys) for group, keys in run.groups.items()}
    whole = next((line for line in found.values() if line.pruner == "none"), None)
    lines = {
        drop: _ranked([line for (name, at), line in found.items() if at == drop and _pruned(name)])
        for drop in run.drops
    }
    paired = comparisons({key: table for key, table in run.tables.items() if key != BASELINE})
    straight_on = found.get((BASELINE.pruner, BASELINE.drop))
    return Tables(
        whole=whole,
        straight_on=straight_on,
        lines=lines,
        paired={
            (one["drop"], one["pruner"], one["figure"]): Difference(
                one["difference"], tuple(one["interval_95"]), one["samples"]
            )
            for one in paired
        },
        subject=SUBJECT if any(name == SUBJECT for name, _ in found) else "none",
    )


def _pruned(name: str) -> bool:
    return name not in ("none", BASELINE.pruner)


def _line(run: OpenLoopRun, keys: Sequence[RowKey]) -> ResultRow:
    """The rows of one pruner and ratio. The interval of several seeds is that of each sample's mean over them."""
    efficiency = run.efficiency.get(keys[0].kind, {})
    rows = [row_figures(key, run.tables[key], efficiency) for key in keys]
    whole = next((table for key, table in run.tables.items() if key.pruner == "none"), None)
    figures = {}
    for name in FIGURES:
        values = [row[name]["avg"] for row in rows if row[name] is not None and row[name]["avg"] is not None]
        if values:
            ends = rows[0]["interval_95"][name]
            of_samples = known_mean([sample_figures(run.tables[key], name) for key in keys])
            if len(keys) > 1:
                ends = interval(of_samples, run.scenes)
            relative = None
            if whole is not None and keys[0].pruner != "none":
                relative = relative_performance(sample_figures(whole, name), of_samples)
            figures[name] = Figure(float(np.mean(values)), None if ends is None else (ends[0], ends[1]), relative)
    tokens = [row["tokens"] for row in rows if row["tokens"] is not None]
    layers = efficiency.get("tokens_by_layer")
    return ResultRow(
        pruner=keys[0].pruner,
        drop=keys[0].drop,
        seeds=len(keys),
        samples=len(run.samples),
        refused=float(np.mean([row["refused"] for row in rows])),
        tokens=float(np.mean(tokens)) if tokens else None,
        figures=figures,
        tail=_tail(run, keys, whole),
        costs={name: float(rows[0][name]) for name in COSTS if isinstance(rows[0][name], int | float)},
        tokens_by_layer=tuple(layers) if isinstance(layers, list) else None,
    )


def _tail(run: OpenLoopRun, keys: Sequence[RowKey], whole: pa.Table | None) -> dict[str, float]:
    if whole is None or keys[0].pruner == "none":
        return {}
    found = [tail_figures(whole, run.tables[key]) for key in keys]
    known = {name: [value for one in found if (value := one[name]) is not None] for name in TAILS}
    return {name: float(np.mean(values)) for name, values in known.items() if values}


def _ranked(lines: Sequence[ResultRow]) -> tuple[ResultRow, ...]:
    """With the best of each figure marked; equal ones are all best."""
    blind = [line for line in lines if line.is_ranked]
    lowest = {
        name: min(line.figures[name].value for line in blind if name in line.figures)
        for name in FIGURES
        if any(name in line.figures for line in blind)
    }
    return tuple(
        replace(
            line,
            figures={
                name: replace(figure, best=line.is_ranked and figure.value == lowest.get(name))
                for name, figure in line.figures.items()
            },
        )
        for line in lines
    )
