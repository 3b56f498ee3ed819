"""Figures of a drive: a row for each planner, an entry for each run, and how rows compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastdrive_sim.drive.scoring.scores import RunScores, score_run
from fastdrive_sim.drive.scoring.statistics import interval, known_mean, paired_difference, worst
from fastdrive_sim.drive.storage import hash_run, load_run
from fastdrive_sim.drive.types import CONSTANT_VELOCITY, EXPERT, DriveRow, RunRecord

# Figures of a row, and the score of a run that they are the mean of.
FIGURES = {
    "collision_rate": "collided",
    "at_fault_rate": "at_fault",
    "neuroncap": "neuroncap",
    "epdms_style": "epdms_style",
    "hd_score": "hd_score",
    "route_completion": "route_completion",
    "off_road_rate": "off_road",
    "red_light_rate": "red_light",
    "comfort": "hc",
    "refused": "refused",
    "late": "late",
    "superseded": "superseded",
    "failed_rate": "failed",
    "plan_deviation_m": "plan_deviation_m",
    "plan_age_s": "plan_age_s",
    **{term: term for term in ("nc", "dac", "ddc", "tlc", "ep", "ttc", "lk", "hc", "ec")},
}
MAIN = ("collision_rate", "neuroncap", "epdms_style", "hd_score", "route_completion")  # given for each family
LOWER_IS_BETTER = (
    "collision_rate", "at_fault_rate", "off_road_rate", "red_light_rate", "refused", "late", "superseded",
    "failed_rate", "plan_deviation_m", "plan_age_s",
)  # fmt: skip
OF_TICKS = ("refused", "late", "superseded")  # known of a run that failed, too
FULL, RANDOM = "none", "random"
DIGITS = 5


@dataclass(frozen=True)
class ScoredRun:
    """What the summary needs of a run; small, so that the record itself may be freed."""

    row: DriveRow
    family: str
    seed: int
    ending: str
    reason: str
    seconds: float
    scores: RunScores

    @classmethod
    def of(cls, run: RunRecord) -> ScoredRun:
        seconds = run.steps[-1].time_s if run.steps else 0.0
        return cls(run.row, run.family, run.seed, run.ending, run.reason, seconds, score_run(run))

    @property
    def key(self) -> tuple[str, int]:
        return self.family, self.seed

    def entry(self) -> dict[str, Any]:
        """As in ``runs`` of ``summary.json``."""
        return {
            "family": self.family,
            "seed": self.seed,
            "row": self.row.name,
            "ending": self.ending,
            "reason": self.reason,
            "seconds": round(self.seconds, 2),
            **{name: _rounded(value) for name, value in self.scores.figures().items()},
            "events": [asdict(event) for event in self.scores.events],
        }


def summarize(runs: Sequence[RunRecord | ScoredRun]) -> dict[str, Any]:
    """``rows``, ``families``, ``comparisons``, ``worst`` and ``runs`` of ``summary.json``."""
    scored = [run if isinstance(run, ScoredRun) else ScoredRun.of(run) for run in runs]
    groups: dict[DriveRow, list[ScoredRun]] = {}
    for run in scored:
        groups.setdefault(run.row, []).append(run)
    tables = {row: _RowRuns(each) for row, each in groups.items()}
    return {
        "rows": [_row(row, table) for row, table in tables.items()],
        "families": [entry for row, table in tables.items() for entry in _families(row, table)],
        "comparisons": [
            _compare(row, against, tables) for row in tables for against in _references(row) if against in tables
        ],
        "worst": [entry for table in tables.values() for entry in _worst(table, tables)],
        "runs": [run.entry() for run in scored],
    }


def score_file(path: Path) -> tuple[ScoredRun, str]:
    """Scores and hash of a run's file. Raises InputError where it cannot be read."""
    run = load_run(path)
    return ScoredRun.of(run), hash_run(run)


def not_comparable(row: dict[str, Any]) -> str:
    """Why a row of the summary cannot be compared with others, for people; "" where it can."""
    if row["comparable"]:
        return ""
    return (
        f"{row['row']}: {row['failed']} of {row['runs']} runs failed; its figures are of the others and cannot be "
        "compared with those of other rows"
    )


class _RowRuns:
    """The runs of a row."""

    def __init__(self, runs: Sequence[ScoredRun]):
        self.runs = sorted(runs, key=lambda run: run.key)
        self.families = [run.family for run in self.runs]
        self.keys = {run.key for run in self.runs}
        self.failed = sum(run.scores.failed for run in self.runs)

    def values(self, figure: str) -> np.ndarray:
        """float64 [runs], NaN where it is not known: of a run that failed, all but what says so and its ticks."""
        found = [
            getattr(run.scores, FIGURES[figure]) if self._is_known(run.scores, figure) else None for run in self.runs
        ]
        return np.array([np.nan if value is None else float(value) for value in found])

    @staticmethod
    def _is_known(scores: RunScores, figure: str) -> bool:
        return not scores.failed or figure == "failed_rate" or (figure in OF_TICKS and scores.ticks > 0)

    def driven(self) -> _RowRuns:
        """Those that did not fail."""
        return _RowRuns([run for run in self.runs if not run.scores.failed])

    def only(self, keys: set[tuple[str, int]]) -> _RowRuns:
        return _RowRuns([run for run in self.runs if run.key in keys])


def _row(row: DriveRow, table: _RowRuns) -> dict[str, Any]:
    values = {figure: table.values(figure) for figure in FIGURES}
    driven = table.driven()
    scores = driven.values("epdms_style")
    kept = [np.nan if run.scores.kept is None else run.scores.kept for run in driven.runs]
    return {
        **_names(row),
        "runs": len(table.runs),
        "failed": table.failed,
        "comparable": table.failed == 0,
        "ticks": sum(run.scores.ticks for run in table.runs),
        **{figure: _rounded(known_mean(each)) for figure, each in values.items()},
        "worst5_epdms_style": _rounded(known_mean(scores[worst(scores)])),
        "kept": _rounded(known_mean(np.array(kept))),
        "ci95": {figure: _pair(interval(each, table.families)) for figure, each in values.items()},
    }


def _names(row: DriveRow) -> dict[str, Any]:
    fault = f"{row.fault}:{row.severity:g}" if row.fault else None
    return {"row": row.name, "pruner": row.pruner, "drop": row.drop, "fault": fault, "latency_ms": row.latency_s * 1e3}


def _families(row: DriveRow, table: _RowRuns) -> list[dict[str, Any]]:
    found = []
    for family in dict.fromkeys(table.families):
        own = table.only({key for key in table.keys if key[0] == family})
        values = {figure: own.values(figure) for figure in MAIN}
        found.append(
            {
                "family": family,
                "row": row.name,
                "runs": len(own.runs),
                "failed": own.failed,
                **{figure: _rounded(known_mean(each)) for figure, each in values.items()},
                "ci95": {figure: _pair(interval(each, own.families)) for figure, each in values.items()},
            }
        )
    return found


def _references(row: DriveRow) -> list[DriveRow]:
    """The rows that a row is compared with: unpruned, random at the same ratio, and itself without the fault."""
    if row.pruner in (EXPERT, CONSTANT_VELOCITY):
        return []
    found = [replace(row, pruner=FULL, drop=0.0), replace(row, pruner=RANDOM), replace(row, fault="", severity=0.0)]
    return [each for each in dict.fromkeys(found) if each != row]


def _compare(row: DriveRow, against: DriveRow, tables: dict[DriveRow, _RowRuns]) -> dict[str, Any]:
    """Paired; pairs with a run that failed are left out of all figures but the rate of failures."""
    both = tables[row], tables[against]
    tried = both[0].keys & both[1].keys
    shared = both[0].driven().keys & both[1].driven().keys
    own, other = (table.only(shared) for table in both)
    failures = _differences(both[0].only(tried), both[1].only(tried), ("failed_rate",))
    families = {}
    for family in dict.fromkeys(own.families):
        keys = {key for key in shared if key[0] == family}
        families[family] = _differences(own.only(keys), other.only(keys), MAIN)
    return {
        "row": row.name,
        "against": against.name,
        "runs": len(shared),
        "failed": len(tried - shared),
        "differences": _differences(own, other, tuple(FIGURES)) | failures,
        "families": families,
        "loss": _loss(own, other),
    }


def _differences(own: _RowRuns, other: _RowRuns, figures: Sequence[str]) -> dict[str, Any]:
    found = {figure: paired_difference(own.values(figure), other.values(figure), own.families) for figure in figures}
    return {
        figure: None if each is None else {"difference": _rounded(each.difference), "ci95": _pair(each.ci95)}
        for figure, each in found.items()
    }


def _loss(own: _RowRuns, other: _RowRuns) -> dict[str, Any]:
    """Where the loss of the EPDMS-style score is: how much of it in the worst 5 % of the scenarios, and how many of
    them lose nothing. Gains elsewhere are not subtracted."""
    loss = np.clip(other.values("epdms_style") - own.values("epdms_style"), 0.0, None)
    if not len(loss):
        return {"share_of_worst5": None, "unharmed": None}
    total = float(loss.sum())
    share = float(loss[worst(-loss)].sum()) / total if total > 0 else None
    return {"share_of_worst5": _rounded(share), "unharmed": _rounded(float((loss <= 1e-9).mean()))}


def _worst(table: _RowRuns, tables: dict[DriveRow, _RowRuns]) -> list[dict[str, Any]]:
    """The worst 5 % of a row's runs that did not fail: of a pruner's those that lost most against all tokens, where
    these were driven, else by the EPDMS-style score; then by NeuroNCAP's and by the way."""
    row, driven = table.runs[0].row, table.driven()
    full = tables.get(replace(row, pruner=FULL, drop=0.0))
    unpruned = {run.key: run.scores.epdms_style for run in full.driven().runs} if full is not None else {}
    is_pruned = row.pruner not in (FULL, EXPERT, CONSTANT_VELOCITY)

    def place(run: ScoredRun) -> tuple[float, float, float, float]:
        scores = run.scores
        loss = scores.epdms_style - unpruned.get(run.key, 0.0) if is_pruned else 0.0
        return loss, scores.epdms_style, scores.neuroncap, scores.route_completion

    order = sorted(driven.runs, key=place)
    return [
        {
            "row": row.name,
            "family": run.family,
            "seed": run.seed,
            "ending": run.ending,
            "epdms_style": _rounded(run.scores.epdms_style),
            "unpruned_epdms_style": _rounded(unpruned.get(run.key)),
            "neuroncap": _rounded(run.scores.neuroncap),
            "route_completion": _rounded(run.scores.route_completion),
        }
        for run in order[: len(worst(driven.values("epdms_style")))]
    ]


def _rounded(value: Any) -> Any:
    return round(float(value), DIGITS) if isinstance(value, (float, np.floating)) else value


def _pair(found: tuple[float, float] | None) -> list[float] | None:
    return None if found is None else [_rounded(found[0]), _rounded(found[1])]
