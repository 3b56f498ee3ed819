"""What a page says, as the command's JSON."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastdrive_training.reports.open_loop.disagreement import Matrix
from fastdrive_training.reports.open_loop.figures import ResultRow
from fastdrive_training.reports.open_loop.report import OpenLoopReport


def as_json(report: OpenLoopReport) -> dict[str, Any]:
    """``lines``, ``statements``, ``worst`` and ``disagreement``; m, fractions in 0..1, None where not known."""
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
        "lines": [_line(line) for line in lines],
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
        "disagreement": None
        if found is None
        else {
            "plan_distance_m": _matrix(found.distances),
            "kept_overlap": None if found.overlaps is None else _matrix(found.overlaps),
            "samples": [{"sample": one.sample, "scene": one.scene, "spread_m": one.spread_m} for one in found.samples],
        },
    }


def _line(line: ResultRow) -> dict[str, Any]:
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
                "relative_to_none": figure.relative,
                "best": figure.best,
            }
            for name, figure in line.figures.items()
        },
        **line.costs,
    }


def _matrix(matrix: Matrix) -> dict[str, Any]:
    values = [[None if np.isnan(value) else float(value) for value in row] for row in matrix.values]
    return {"pruners": list(matrix.names), "values": values}
