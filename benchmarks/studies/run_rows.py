"""Rows that lie in several run folders of ``fastdrive evaluate`` with the same VLA and samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.studies.paired_runs import Key, rows_of, values_of
from benchmarks.studies.wide_table import FIGURES
from fastdrive_node.pruning.catalog import reads_given_file
from fastdrive_training.evaluation.intervals import known_mean, sample_figures

BELONGS = ("samples", "vla", "dtype")  # fields of run.json in which runs of one table agree, beside the dataset's name


@dataclass(frozen=True)
class RunRow:
    """A pruner of a run folder: one training, or one that needs none."""

    run: Path
    pruner: str

    def __str__(self) -> str:
        return f"{self.run.name}:{self.pruner}"


@dataclass(frozen=True)
class NamedRow:
    """A row of the table. Several sources are the seeds of one row."""

    name: str
    sources: tuple[RunRow, ...]


class Cell:
    """A row at one pruning ratio: the lines of each seed, of the same samples."""

    def __init__(self, tables: Sequence[pa.Table]):
        self.tables = tables

    @cached_property
    def by_seed(self) -> dict[str, list[np.ndarray]]:
        """Each figure of each sample, float64 [samples], of every seed; NaN where it was refused or is not known."""
        return {figure: [sample_figures(table, figure) for table in self.tables] for figure in FIGURES}

    @cached_property
    def values(self) -> dict[str, np.ndarray]:
        """The same, float64 [samples], as the mean over the seeds that answered it."""
        return {figure: values_of(self.tables, figure) for figure in FIGURES}

    def means(self, figure: str) -> list[float]:
        """A figure of each seed: its mean over the samples that it answered; NaN where none is known."""
        return [float(known_mean(values)) for values in self.by_seed[figure]]

    def mean(self, figure: str) -> float:
        """Of the seeds' figures."""
        return float(np.mean(self.means(figure)))

    @property
    def scenes(self) -> list[str]:
        return self.tables[0].column("scene").to_pylist()

    @property
    def refused(self) -> float:
        return float(np.mean([sum(table.column("refused").to_pylist()) for table in self.tables]))


class Runs:
    """Run folders of one VLA, dataset and choice of samples.

    ``names`` and ``cells`` raise ValueError where a folder is of another evaluation, or lacks a row that is asked for.
    """

    def __init__(self) -> None:
        self._rows: dict[Path, dict[Key, list[pa.Table]]] = {}
        self._about: dict[Path, dict] = {}

    @property
    def dataset(self) -> str:
        """The name of the dataset's folder."""
        return next(map(_dataset, self._about.values()), "")

    def names(self, run: Path) -> list[str]:
        """The pruners of a folder."""
        return list(dict.fromkeys(name for name, _ in self._read(run)))

    def cells(self, row: NamedRow) -> dict[float, Cell]:
        """The row at each ratio, which all of its seeds must have."""
        found = [self._tables(source) for source in row.sources]
        files = [file for file in map(self._pruner_file, row.sources) if file is not None]
        if len(set(row.sources)) < len(row.sources) or len(set(files)) < len(files):
            raise ValueError(f"{row.name}: two of its seeds are evaluations of one pruner file; name each file once")
        drops = sorted(set().union(*found))
        for source, by_drop in zip(row.sources, found, strict=True):
            lacking = [f"{drop:g}" for drop in drops if drop not in by_drop]
            if lacking:
                raise ValueError(
                    f"{row.name}: {source} lacks the ratio {lacking[0]} of another seed; evaluate it there"
                )
        return {drop: Cell([table for by_drop in found for table in by_drop[drop]]) for drop in drops}

    def _tables(self, source: RunRow) -> dict[float, list[pa.Table]]:
        found = {drop: tables for (name, drop), tables in self._read(source.run).items() if name == source.pruner}
        if not found:
            raise ValueError(f"{source.run}: has no row {source.pruner}, only {', '.join(self.names(source.run))}")
        return found

    def _pruner_file(self, source: RunRow) -> str | None:
        """The digest of the file that a pruner was read from, as run.json has it; None without a file."""
        name = "pruner" if reads_given_file(source.pruner) else f"file of {source.pruner}"
        return self._about[source.run].get(name)

    def _read(self, run: Path) -> dict[Key, list[pa.Table]]:
        if run not in self._rows:
            rows, about = rows_of(run), json.loads((run / "run.json").read_text())
            first, known = next(iter(self._about.items()), (run, about))
            _require_alike(run, about, first, known)
            samples = next(iter(self._rows.get(first, rows).values()))[0].column("sample")
            if any(table.column("sample") != samples for tables in rows.values() for table in tables):
                raise ValueError(
                    f"{run} and {first} are evaluations of different samples, or one is not finished; evaluate both "
                    "with the same dataset, --split and --limit, to the end (the same command goes on with its --out)"
                )
            self._rows[run], self._about[run] = rows, about
        return self._rows[run]


def _require_alike(run: Path, about: dict, first: Path, known: dict) -> None:
    differing = [name for name in BELONGS if about.get(name) != known.get(name)]
    differing += ["dataset"] if _dataset(about) != _dataset(known) else []
    if differing:
        raise ValueError(f"{run}/run.json: {differing[0]} is not that of {first}; evaluate both with the same one")


def _dataset(about: dict) -> str:
    return Path(about.get("dataset", "")).name
