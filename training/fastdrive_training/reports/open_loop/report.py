"""The content of a page, gathered from the run's folder, its dataset and its VLA."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastdrive_node.errors import FastDriveError, UsageError
from fastdrive_node.families.spec import load_spec
from fastdrive_training.evaluation.run import table_figures
from fastdrive_training.reports.open_loop.figures import SUBJECT, ResultRow, Tables, make_tables
from fastdrive_training.reports.open_loop.labels import percent_text
from fastdrive_training.reports.open_loop.ranking import Statement, statements
from fastdrive_training.reports.open_loop.run_folder import RUN, OpenLoopRun, read_run
from fastdrive_training.reports.open_loop.scenes import Disagreement, Scenes, WorstSample
from fastdrive_training.reports.open_loop.source import DatasetSource, read_rig, shown_samples, vla_folder
from fastdrive_training.reports.open_loop.tables import Matrix
from fastdrive_training.reports.open_loop.tails import Tails, find_tails
from fastdrive_training.reports.open_loop.tails import as_json as tails_json

USUAL_DROP = 0.75
MAX_REASONS, MAX_REASON_TEXT = 12, 160


@dataclass(frozen=True)
class ReportSettings:
    """What to show of a run."""

    dataset: Path | None = None  # None for the one that run.json names
    vla: Path | None = None  # None for the shipped one
    split: str | None = None  # of a dataset with several table folders
    drop: float | None = None  # ratio of the samples; None for 0.75, or the largest of the run
    worst: int = 10  # samples

    def __post_init__(self) -> None:
        if self.worst < 0:
            raise UsageError(f"--worst {self.worst}: must be 0 or more")


@dataclass(frozen=True)
class Reason:
    """Why a row refused answers: one of its reasons, and how often."""

    pruner: str
    drop: float
    count: int
    text: str


@dataclass(frozen=True)
class OpenLoopReport:
    """The content of a page."""

    run: OpenLoopRun
    tables: Tables
    statements: tuple[Statement, ...]
    reasons: tuple[Reason, ...]
    drop: float | None  # of the samples; None where nothing was pruned
    subject: str  # whose worst samples they are
    worst: tuple[WorstSample, ...]
    tails: Tails | None  # of the same pruner at the same ratio; None without ``none``
    disagreement: Disagreement | None
    no_images: str  # why there are none; empty where there are
    shuffled: bool  # each sample saw the images of another scene


def build_report(folder: str | Path, settings: ReportSettings) -> OpenLoopReport:
    """Read a run and gather its page.

    Raises:
        ReportError: the run has not finished, is damaged, or belongs to another VLA.
        UsageError: the run lacks the ratio.
        InputError: the dataset that was named cannot be used.
        ModelError: the VLA directory cannot be read.
    """
    run = read_run(folder)
    vla = vla_folder(settings.vla)
    shown = shown_samples(run, vla)
    own = shown == tuple(range(len(shown)))
    drop = _drop(run, settings.drop)
    source, no_images = _source(run, settings, shown)
    spec = load_spec(vla)
    if spec.frames or spec.image_sizes:
        drop, no_images = None, "tokens of VLAs with frames or image_sizes in vla.json are not drawn"
    scenes = Scenes(run, drop, read_rig(vla), source, own) if drop is not None else None
    tables = make_tables(run)
    return OpenLoopReport(
        run=run,
        tables=tables,
        statements=tuple(statements(tables)),
        reasons=_reasons(run),
        drop=drop,
        subject=SUBJECT if scenes is None else scenes.subject.pruner,
        worst=() if scenes is None else tuple(scenes.worst(settings.worst)),
        tails=_tails(run, scenes, settings.worst),
        disagreement=None if scenes is None else scenes.disagreement(),
        no_images=no_images,
        shuffled=not own,
    )


def _tails(run: OpenLoopRun, scenes: Scenes | None, count: int) -> Tails | None:
    if scenes is None or scenes.whole is None:
        return None
    return find_tails(run, scenes.subject, scenes.whole, scenes, count)


def _drop(run: OpenLoopRun, wanted: float | None) -> float | None:
    if wanted is None:
        return USUAL_DROP if USUAL_DROP in run.drops else max(run.drops, default=None)
    if wanted not in run.drops:
        known = ", ".join(f"{drop:g}" for drop in run.drops) or "no ratio at all"
        raise UsageError(f"--drop {wanted:g}: {run.path} has {known}; name one of them, or evaluate this one as well")
    return wanted


def _source(run: OpenLoopRun, settings: ReportSettings, shown: tuple[int, ...]) -> tuple[DatasetSource | None, str]:
    """The dataset, or why there is none: only one that was named must be there."""
    if settings.dataset is not None:
        return DatasetSource(settings.dataset, settings.split, run.samples, shown), ""
    named = run.identity.get("dataset")
    if not isinstance(named, str) or not named:
        return None, f"{RUN} names no dataset; name it with --dataset"
    try:
        return DatasetSource(Path(named), settings.split, run.samples, shown), ""
    except FastDriveError as error:
        return None, f"{error} (another place of the dataset can be named with --dataset)"
    except (OSError, ValueError) as error:  # a name that is no path
        return None, f"{RUN}: dataset is no folder's name ({type(error).__name__}); name it with --dataset"


def _reasons(run: OpenLoopRun) -> tuple[Reason, ...]:
    """The most frequent reasons of refusals."""
    counts = Counter(
        (key.pruner, key.drop, text[:MAX_REASON_TEXT]) for key, texts in run.reasons().items() for text in texts
    )
    return tuple(Reason(name, drop, count, text) for (name, drop, text), count in counts.most_common(MAX_REASONS))


def drop_text(report: OpenLoopReport) -> str:
    return "" if report.drop is None else percent_text(report.drop)


def as_json(report: OpenLoopReport) -> dict[str, Any]:
    """``lines``, ``statements``, ``worst``, ``tails`` and ``disagreement``; m, fractions in 0..1, None where not known.

    ``rows`` and ``comparisons`` are those of ``fastdrive evaluate``.
    """
    tables = report.tables
    lines = [line for line in (tables.straight_on, tables.whole) if line is not None]
    lines += [line for at in tables.lines.values() for line in at]
    found = report.disagreement
    return {
        "samples": len(report.run.samples),
        "drop": report.drop,
        "subject": report.subject,
        "pictures": not report.no_images,
        "images": "shuffled" if report.shuffled else "own",
        **table_figures(report.run.tables, report.run.efficiency),
        "lines": [_row_json(line) for line in lines],
        "statements": [
            {
                "drop": one.drop,
                "figure": one.figure,
                "first": list(one.first),
                "reconpruner_first": one.is_first,
                "within_interval_of_first": one.within,
                "against_random": one.against_random,
                "against_oracle": one.against_oracle,
                "text": one.text,
            }
            for one in report.statements
        ],
        "worst": [
            {"sample": one.sample, "scene": one.scene, "l2_m": one.l2_m, "none_l2_m": one.whole_l2_m}
            for one in report.worst
        ],
        "tails": None if report.tails is None else tails_json(report.tails),
        "disagreement": None
        if found is None
        else {
            "plan_distance_m": _matrix_json(found.distances),
            "kept_overlap": None if found.overlaps is None else _matrix_json(found.overlaps),
            "samples": [{"sample": one.sample, "scene": one.scene, "spread_m": one.spread_m} for one in found.samples],
        },
    }


def _row_json(line: ResultRow) -> dict[str, Any]:
    return {
        "pruner": line.pruner,
        "drop": line.drop,
        "seeds": line.seeds,
        "tokens": line.tokens,
        "refused": line.refused,
        **{
            name: {
                "avg": figure.value,
                "interval_95": None if figure.interval is None else list(figure.interval),
                "relative_performance": figure.relative,
                "best": figure.best,
            }
            for name, figure in line.figures.items()
        },
        "tails": line.tail,
        **line.costs,
    }


def _matrix_json(matrix: Matrix) -> dict[str, Any]:
    values = [[None if np.isnan(value) else float(value) for value in row] for row in matrix.values]
    return {"pruners": list(matrix.names), "values": values}
