"""Figures of a drive: a row for each planner, an entry for each run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastdrive_sim.drive.types import COLLIDED, LATE, OFF_ROAD, PLANNED, REFUSED, DriveRow, RunRecord


def summarize(runs: Sequence[RunRecord]) -> dict:
    """``rows`` and ``runs`` of ``summary.json``."""
    by_row: dict[DriveRow, list[RunRecord]] = {}
    for run in runs:
        by_row.setdefault(run.row, []).append(run)
    return {"rows": [_row(row, each) for row, each in by_row.items()], "runs": [_run(run) for run in runs]}


def _row(row: DriveRow, runs: Sequence[RunRecord]) -> dict:
    outcomes = [plan.outcome for run in runs for plan in run.plans]
    return {
        "pruner": row.pruner,
        "drop": row.drop,
        "fault": f"{row.fault}:{row.severity:g}" if row.fault else None,
        "runs": len(runs),
        "collision_rate": _mean([run.ending == COLLIDED for run in runs]),
        "off_road_rate": _mean([run.ending == OFF_ROAD for run in runs]),
        "route_completion": _mean([route_completion(run) for run in runs]),
        "planned": outcomes.count(PLANNED),
        "refused": outcomes.count(REFUSED),
        "late": outcomes.count(LATE),
    }


def route_completion(run: RunRecord) -> float:
    """The fraction of the way to the goal that was driven, 0 to 1."""
    if not run.steps:
        return 0.0
    return float(np.clip(max(step.progress_m for step in run.steps) / run.map.goal_m, 0.0, 1.0))


def _run(run: RunRecord) -> dict:
    events = [
        {
            "time_s": round(each.time_s, 2),
            "event": "contact" if each.is_static else "collision",
            "with": each.other.kind,
            "where": each.where,
            "impact_mps": round(each.impact_speed, 2),
        }
        for each in run.collisions
    ]
    return {
        "family": run.family,
        "seed": run.seed,
        "row": run.row.name,
        "ending": run.ending,
        "reason": run.reason,
        "seconds": run.steps[-1].time_s if run.steps else 0.0,
        "route_completion": round(route_completion(run), 4),
        "events": events,
    }


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4) if values else 0.0
