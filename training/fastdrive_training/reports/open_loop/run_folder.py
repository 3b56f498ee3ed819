"""The files of a finished evaluation, read and checked. They are data from outside: nothing in them is trusted."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fastdrive_node.errors import InputError
from fastdrive_node.types import PruningRatio
from fastdrive_training.data.adapters.base import FUTURE_POINTS, read_object
from fastdrive_training.evaluation.records import LEAN, SCHEMA
from fastdrive_training.evaluation.run import BASELINE
from fastdrive_training.evaluation.settings import RowKey
from fastdrive_training.reports.pruner_run.run_folder import ReportError, number

SAMPLES, EFFICIENCY, RUN, PARTS = "samples.parquet", "efficiency.json", "run.json", "parts"
SUBJECT = "reconpruner"
AGAIN = "call `fastdrive evaluate ... --out` with this folder again"
_MAX_JSON_BYTES = 1 << 24
_STEPS = ("errors_m", "collision", "off_drivable", "intersection", "raster_collision")


@dataclass(frozen=True)
class OpenLoopRun:
    """A finished evaluation. The lines of every row stand in the order of ``samples``."""

    path: Path
    identity: dict[str, Any]  # of run.json
    efficiency: dict[str, dict[str, Any]]  # by RowKey.kind; empty where nothing was measured
    tables: dict[RowKey, pa.Table]  # the columns that figures need, in the order of the rows
    samples: tuple[str, ...]  # sample tokens
    scenes: tuple[str, ...]  # of each sample

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def groups(self) -> dict[tuple[str, float], list[RowKey]]:
        """The rows of each pruner and ratio, a seed each."""
        groups: dict[tuple[str, float], list[RowKey]] = {}
        for key in self.tables:
            groups.setdefault((key.pruner, key.drop), []).append(key)
        return groups

    @property
    def drops(self) -> tuple[float, ...]:
        """The ratios at which something was pruned, ascending."""
        whole = ("none", BASELINE.pruner)
        return tuple(sorted({key.drop for key in self.tables if key.pruner not in whole}))

    def pruners(self, drop: float) -> list[RowKey]:
        """A row for each pruner at a ratio, the first seed of those that have several; then ``none``."""
        found = {key.pruner: key for key in reversed(self.tables) if key.drop == drop and key != BASELINE}
        rows = list(reversed([key for name, key in found.items() if name != "none"]))
        return rows + [key for key in self.tables if key.pruner == "none"][:1]

    @cached_property
    def _plans(self) -> dict[RowKey, pa.Table]:
        return _by_row(self.path / SAMPLES, ["plan_m"])

    def plans(self, key: RowKey) -> np.ndarray:
        """float64 [samples, points, 2] of a row; NaN where the answer was refused."""
        return _points(self._plans[key].column("plan_m"))

    def kept(self, drop: float) -> dict[RowKey, list[np.ndarray | None]]:
        """The kept tokens of each sample, int32 [K], for the rows of a ratio; None for a row without a model."""
        rows = _by_row(self.path / SAMPLES, ["kept"], [("drop", "==", drop)])
        return {
            key: [np.asarray(line.values) if line.is_valid else None for line in table.column("kept").combine_chunks()]
            for key, table in rows.items()
        }

    def reasons(self) -> dict[RowKey, list[str]]:
        """Why answers were refused, row by row; rows that refused nothing are left out."""
        tables = _by_row(self.path / SAMPLES, ["reason"], [("refused", "==", True)])
        return {
            key: [text or "no reason given" for text in table["reason"].to_pylist()] for key, table in tables.items()
        }


def read_run(path: str | Path) -> OpenLoopRun:
    """Read the folder of a finished evaluation.

    Raises:
        ReportError: no such folder, an evaluation that has not finished, or a file that is damaged; the text names the
            file and the fix.
    """
    path = Path(path)
    if not path.is_dir():
        raise ReportError(f"{path}: no such folder; give the folder that `fastdrive evaluate --out` names")
    if not (path / SAMPLES).exists():
        going = (path / PARTS).is_dir()
        state = f"the evaluation has not finished; {AGAIN}, and it goes on" if going else "no folder of an evaluation"
        raise ReportError(f"{path / SAMPLES}: missing; {state}")
    identity = _read_object(path / RUN, "make the evaluation again with another --out")
    fix = f"remove it and {AGAIN}, which measures what it lacks"
    efficiency = _read_object(path / EFFICIENCY, fix) if (path / EFFICIENCY).exists() else {}
    if not all(isinstance(figures, dict) for figures in efficiency.values()):
        raise ReportError(f"{path / EFFICIENCY}: no object of figures for each row; {fix}")
    tables = _by_row(path / SAMPLES, [name for name in LEAN if name not in ("pruner", "drop", "seed")])
    _check_rows(path / SAMPLES, tables)
    first = next(iter(tables.values()))
    samples, scenes = (tuple(first.column(name).to_pylist()) for name in ("sample", "scene"))
    run = OpenLoopRun(
        path, identity, {kind: _numbers(one) for kind, one in efficiency.items()}, tables, samples, scenes
    )
    _check_plans(run)
    return run


def damaged(path: Path, problem: str) -> ReportError:
    """The error for a file of lines that cannot be used."""
    return ReportError(f"{path}: {problem}; remove it and {AGAIN}, which writes it from its parts")


def _read_object(path: Path, fix: str) -> dict[str, Any]:
    if not path.exists():
        raise ReportError(f"{path}: missing; {fix}")
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise ReportError(f"{path}: more than {_MAX_JSON_BYTES} bytes; this is no file of an evaluation; {fix}")
    try:
        return read_object(path, fix)
    except InputError as error:
        raise ReportError(str(error)) from error


def _numbers(figures: dict[str, Any]) -> dict[str, Any]:
    """Only the values that are numbers or lists of numbers."""
    kept: dict[str, Any] = {}
    for name, value in figures.items():
        if number(value) is not None or (isinstance(value, list) and all(number(one) is not None for one in value)):
            kept[name] = value
    return kept


def _by_row(path: Path, columns: list[str], filters: list | None = None) -> dict[RowKey, pa.Table]:
    """The lines of each row, in the order of the file. Raises ReportError: damaged, or of another form."""
    try:
        if pq.read_schema(path) != SCHEMA:
            raise damaged(path, "its columns are not those that `fastdrive evaluate` writes")
        table = pq.read_table(path, columns=["pruner", "drop", "seed", *columns], filters=filters)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise damaged(path, f"damaged ({type(error).__name__})") from error
    keys = [table.column(name) for name in ("pruner", "drop", "seed")]
    if any(column.null_count for column in keys):
        raise damaged(path, "a line belongs to no row")
    rows: dict[RowKey, list[int]] = {}
    for place, key in enumerate(zip(*(column.to_pylist() for column in keys), strict=True)):
        rows.setdefault(RowKey(*key), []).append(place)
    return {key: table.take(places).select(columns) for key, places in rows.items()}


def _check_rows(path: Path, tables: dict[RowKey, pa.Table]) -> None:
    if not tables:
        raise damaged(path, "holds no line")
    first = next(iter(tables.values()))
    for key, table in tables.items():
        row = f"row {key.slug}"
        try:
            PruningRatio(key.drop)
        except ValueError as error:
            raise damaged(path, f"{row}: {error}") from error
        if any(table.column(name).null_count for name in ("sample", "scene", "refused")):
            raise damaged(path, f"{row}: a line without sample, scene or refused")
        if table.column("sample") != first.column("sample") or table.column("scene") != first.column("scene"):
            raise damaged(path, f"{row}: has other samples than the first row")
        for name in _STEPS:
            _check_steps(path, row, name, table.column(name))


def _check_steps(path: Path, row: str, name: str, column: pa.ChunkedArray) -> None:
    lengths = pc.unique(pc.list_value_length(column).drop_null()).to_pylist()
    values = pc.list_flatten(column)
    finite = name != "errors_m" or np.isfinite(np.asarray(values, np.float64)).all()
    if lengths not in ([], [FUTURE_POINTS]) or values.null_count or not finite:
        raise damaged(path, f"{row}: {name} is not {FUTURE_POINTS} values a sample")


def _check_plans(run: OpenLoopRun) -> None:
    for key, table in run._plans.items():
        column = table.column("plan_m")
        try:
            plans = _points(column)
        except ValueError:
            plans = np.full((len(table), FUTURE_POINTS, 2), np.inf)
        answered = ~np.isnan(plans).all(axis=(1, 2))
        refused = np.asarray(run.tables[key].column("refused"))
        judged = ~np.asarray(pc.is_null(run.tables[key].column("errors_m")))
        if not np.isfinite(plans[answered]).all() or (answered == refused).any() or (judged == refused).any():
            message = f"row {key.slug}: an answer that was not refused needs {FUTURE_POINTS} points and their errors"
            raise damaged(run.path / SAMPLES, message)


def _points(column: pa.ChunkedArray) -> np.ndarray:
    """float64 [lines, points, 2] of lists of points; NaN where there is none. Raises ValueError: of another form."""
    points = np.full((len(column), FUTURE_POINTS, 2), np.nan)
    known = ~np.asarray(pc.is_null(column))
    outer = pc.list_flatten(column)
    sizes = pc.list_value_length(column).drop_null().to_pylist(), pc.list_value_length(outer).to_pylist()
    if any(size != FUTURE_POINTS for size in sizes[0]) or any(size != 2 for size in sizes[1]):
        raise ValueError("not the metrics' points")
    points[known] = np.asarray(pc.list_flatten(outer), np.float64).reshape(-1, FUTURE_POINTS, 2)
    return points
