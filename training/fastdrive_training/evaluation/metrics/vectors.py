"""Planning scenarios in a JSON file, judged in every convention (``fastdrive metrics``).

The file holds ``scenarios``, each with ``name``, ``pred_xy_fwd_left`` and ``gt_xy_fwd_left`` (six [x, y] in meters,
ego frame, 0.5 s apart; a prediction of null is a refused answer), ``obstacles`` ([{"at": [box at each step]}], a box
[x, y, yaw, length, width] or null where the object is gone) and ``boundary`` (polylines [[[x, y], ...], ...] as they
are at t0, or null).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastdrive_node.errors import InputError
from fastdrive_training.data.adapters.base import FUTURE_POINTS
from fastdrive_training.evaluation.metrics.horizons import (
    HORIZONS_S,
    NAMES,
    Obstacles,
    any_to_t,
    at_t,
    collision_steps,
    mean_to_t,
    step_errors,
    steps_to,
)
from fastdrive_training.evaluation.metrics.rasters import RASTERS, boundary_steps, raster_collision_steps

LARGEST_M = 1e5  # a coordinate beyond it is a mistake


@dataclass(frozen=True)
class MetricVector:
    """One prediction with what is around it."""

    name: str
    plan: np.ndarray | None  # float64 [6, 2]; None for a refused answer
    truth: np.ndarray  # float64 [6, 2]
    boxes: tuple[np.ndarray, ...]  # of each step, [n, 5]
    boundary: tuple[np.ndarray, ...] | None  # polylines [vertices, 2]


def load_scenarios(path: str | Path) -> list[MetricVector]:
    """Read a file of scenarios.

    Raises InputError, which names the scenario and field, where the file is missing or something in it is wrong.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); give a file with `scenarios`") from None
    rows = content.get("scenarios") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{path}: scenarios: must be a list of at least one scenario")
    scenarios = [_scenario(path, number, row) for number, row in enumerate(rows)]
    names = [scenario.name for scenario in scenarios]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path}: scenarios: name {twice!r} is there twice; give each scenario its own")
    return scenarios


def figures(scenario: MetricVector) -> dict:
    """The figures of every convention, by the names of the evaluators that they reproduce.

    A refused prediction has no figures: {"refused": True}.
    """
    if scenario.plan is None:
        return {"refused": True}
    errors = step_errors(scenario.plan, scenario.truth)
    hits = {
        name: raster_collision_steps(raster, scenario.plan, scenario.truth, scenario.boxes)
        for name, raster in RASTERS.items()
    }
    return {
        "UniAD_at_t": _uniad(errors, hits["UniAD"]),
        "STP3_avg_to_t": _averaged(errors, hits["ST-P3"], per_step=False),
        "VAD_avg_to_t": _averaged(errors, hits["VAD"], per_step=True),
        "BEV-Planner": _bev_planner(scenario, scenario.plan, errors, hits["BEV-Planner"]),
        "SparseDrive_ImpromptuVLA": _polygons(scenario, scenario.plan, errors),
        "plain": {
            "L2_per_step": errors.tolist(),
            "avg_to_1s_2s_3s": _at_horizons(mean_to_t(errors[None])),
            "at_1s_2s_3s": _at_horizons(at_t(errors[None])),
        },
    }


def _uniad(errors: np.ndarray, hits: np.ndarray) -> dict:
    return {
        "L2_per_step": errors.tolist(),
        "obj_box_col_per_step": hits.astype(float).tolist(),
        "reported_L2_1s_2s_3s": _at_horizons(at_t(errors[None])),
        "reported_box_col_1s_2s_3s": _at_horizons(at_t(hits[None])),
    }


def _averaged(errors: np.ndarray, hits: np.ndarray, per_step: bool) -> dict:
    l2, collision = mean_to_t(errors[None]), mean_to_t(hits[None])
    return {
        name: {
            "L2": l2[name],
            "obj_box_col": collision[name],
            **({"obj_box_col_per_step": _up_to(hits, t_s)} if per_step else {}),
        }
        for name, t_s in zip(NAMES, HORIZONS_S, strict=True)
    }


def _bev_planner(scenario: MetricVector, plan: np.ndarray, errors: np.ndarray, hits: np.ndarray) -> dict:
    l2, collision = mean_to_t(errors[None]), any_to_t(hits[None])
    result = {
        name: {"L2": l2[name], "obj_box_col_any": collision[name], "obj_box_col_per_step": _up_to(hits, t_s)}
        for name, t_s in zip(NAMES, HORIZONS_S, strict=True)
    }
    if scenario.boundary is not None:
        crossed = boundary_steps(plan, scenario.truth, scenario.boundary)
        touched = any_to_t(crossed[None])
        for name, t_s in zip(NAMES, HORIZONS_S, strict=True):
            result[name]["boundary_intersection_any"] = touched[name]
            result[name]["boundary_per_step"] = _up_to(crossed, t_s)
    return result


def _polygons(scenario: MetricVector, plan: np.ndarray, errors: np.ndarray) -> dict:
    obstacles = Obstacles.from_boxes(scenario.boxes)
    hits = collision_steps(plan, scenario.truth, obstacles)
    l2 = mean_to_t(errors[None])
    return {
        "L2_per_step": errors.tolist(),
        "L2_avg_to_1s_2s_3s": _at_horizons(l2),
        "L2_avg": l2["avg"],
        "obj_box_col_per_step": hits.astype(float).tolist(),
        "obj_box_col_avg_to_1s_2s_3s": _at_horizons(mean_to_t(hits[None])),
        "gt_col_per_step(reported as obj_col)": obstacles.hit_by(scenario.truth).astype(float).tolist(),
    }


def _at_horizons(by_name: dict[str, float]) -> list[float]:
    return [by_name[name] for name in NAMES]


def _up_to(flags: np.ndarray, t_s: float) -> list[float]:
    return flags[: steps_to(t_s)].astype(float).tolist()


def _scenario(path: Path, number: int, row) -> MetricVector:
    if not isinstance(row, dict) or not isinstance(row.get("name"), str):
        raise InputError(f"{path}: scenarios[{number}]: must be an object with a name")
    where = f"{path}: scenario {row['name'][:80]!r}"
    plan = row.get("pred_xy_fwd_left", "absent")
    boundary = row.get("boundary")
    return MetricVector(
        name=row["name"],
        plan=None if plan is None else _numbers(f"{where}: pred_xy_fwd_left", plan, (FUTURE_POINTS, 2)),
        truth=_numbers(f"{where}: gt_xy_fwd_left", row.get("gt_xy_fwd_left"), (FUTURE_POINTS, 2)),
        boxes=_boxes(where, row.get("obstacles")),
        boundary=None if boundary is None else _lines(f"{where}: boundary", boundary),
    )


def _boxes(where: str, obstacles) -> tuple[np.ndarray, ...]:
    if not isinstance(obstacles, list):
        raise InputError(f"{where}: obstacles: must be a list, empty where nothing is around")
    steps: list[list[np.ndarray]] = [[] for _ in range(FUTURE_POINTS)]
    for number, obstacle in enumerate(obstacles):
        field = f"{where}: obstacles[{number}].at"
        boxes = obstacle.get("at") if isinstance(obstacle, dict) else None
        if not isinstance(boxes, list) or len(boxes) != FUTURE_POINTS:
            raise InputError(f"{field}: must be a list of {FUTURE_POINTS} boxes, null where the object is gone")
        for step, box in zip(steps, boxes, strict=True):
            if box is not None:
                step.append(_numbers(field, box, (5,)))
                if (step[-1][3:] <= 0).any():
                    raise InputError(f"{field}: length and width must be above 0")
    return tuple(np.array(step).reshape(-1, 5) for step in steps)


def _lines(field: str, lines) -> tuple[np.ndarray, ...]:
    if not isinstance(lines, list):
        raise InputError(f"{field}: must be a list of polylines, or null")
    return tuple(_numbers(f"{field}[{number}]", line, (None, 2)) for number, line in enumerate(lines))


def _numbers(field: str, value, shape: tuple[int | None, ...]) -> np.ndarray:
    """A list as float64 of a shape (None: any length from 2 up). Raises InputError for anything else."""
    try:
        array = np.array(value, np.float64)
    except (ValueError, TypeError, OverflowError):
        array = np.zeros(0)
    fits = array.ndim == len(shape) and all(
        have >= 2 if want is None else have == want for have, want in zip(array.shape, shape, strict=True)
    )
    if not fits or not (np.abs(array) <= LARGEST_M).all():
        wanted = " x ".join("n" if length is None else str(length) for length in shape)
        raise InputError(f"{field}: must be {wanted} finite numbers in meters and radians")
    return array
