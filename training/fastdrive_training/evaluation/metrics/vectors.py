"""Planning scenarios in a JSON file, judged in every convention (``fastdrive metrics``).

The file holds ``scenarios``, each with ``name``, ``pred_xy_fwd_left`` and ``gt_xy_fwd_left`` (six [x, y] in meters,
ego frame, 0.5 s apart; a prediction of null is a refused answer), ``obstacles`` ([{"at": [box at each step]}], a box
[x, y, yaw, length, width] or null where the object is gone) and ``boundary`` (polylines [[[x, y], ...], ...] as they
are at t0, or null).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from fastdrive_node.errors import InputError
from fastdrive_node.validation import first_fault
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


Number = Annotated[float, Field(ge=-LARGEST_M, le=LARGEST_M)]
Side = Annotated[float, Field(gt=0, le=LARGEST_M)]
Path6 = Annotated[list[tuple[Number, Number]], Field(min_length=FUTURE_POINTS, max_length=FUTURE_POINTS)]
Box = tuple[Number, Number, Number, Side, Side]
Polyline = Annotated[list[tuple[Number, Number]], Field(min_length=2)]


class _Obstacle(BaseModel):
    at: Annotated[list[Box | None], Field(min_length=FUTURE_POINTS, max_length=FUTURE_POINTS)]


class _Scenario(BaseModel):
    name: str
    pred_xy_fwd_left: Path6 | None
    gt_xy_fwd_left: Path6
    obstacles: list[_Obstacle]
    boundary: list[Polyline] | None = None


class _ScenarioFile(BaseModel):
    scenarios: Annotated[list[_Scenario], Field(min_length=1)]


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
        rows = _ScenarioFile.model_validate_json(path.read_bytes()).scenarios
    except OSError as error:
        raise InputError(f"{path}: not readable ({error}); give a file with `scenarios`") from None
    except ValidationError as error:
        raise InputError(f"{path}: {first_fault(error)}; lengths are in metres, angles in radians") from None
    scenarios = [
        MetricVector(
            name=row.name,
            plan=None if row.pred_xy_fwd_left is None else np.array(row.pred_xy_fwd_left),
            truth=np.array(row.gt_xy_fwd_left),
            boxes=_boxes(row.obstacles),
            boundary=None if row.boundary is None else tuple(np.array(line) for line in row.boundary),
        )
        for row in rows
    ]
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


def _boxes(obstacles: list[_Obstacle]) -> tuple[np.ndarray, ...]:
    """The boxes of each step, float64 [n, 5]."""
    steps = zip(*(obstacle.at for obstacle in obstacles), strict=True) if obstacles else [()] * FUTURE_POINTS
    return tuple(np.array([box for box in step if box is not None], np.float64).reshape(-1, 5) for step in steps)
