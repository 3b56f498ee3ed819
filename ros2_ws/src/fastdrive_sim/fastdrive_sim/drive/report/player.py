"""The runs that the page can play, as small JSON: the map once, and a few numbers for each step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fastdrive_node.errors import InputError
from fastdrive_node.visualization.layout import camera_layout, camera_title
from fastdrive_sim.drive.kept import Grids, grids_of, packed
from fastdrive_sim.drive.types import CONSTANT_VELOCITY, EXPERT, PlanStep, RunRecord

MAX_RUNS = 36  # of a page
WORST_OF_A_ROW = 3
ROAD_USERS_M = 60.0  # those further away are left out
SHOWN = {
    "epdms_style": "EPDMS-style", "neuroncap": "NeuroNCAP", "hd_score": "HD-Score", "route_completion": "route",
    **{name: name.upper() for name in ("nc", "dac", "ddc", "tlc", "ep", "ttc", "lk", "hc", "ec")},
}  # fmt: skip
Key = tuple[str, str, int]  # row, family, seed
UNKNOWN = "The run's file does not say which tokens were kept: it is of an earlier version, or the node did not tell."


def chosen_runs(figures: dict[str, Any]) -> list[Key]:
    """The worst runs of each row, then one of each family and row until the page is full."""
    found: dict[Key, None] = {}
    taken: dict[str, int] = {}
    for each in sorted(figures["worst"], key=_harm):
        if taken.get(each["row"], 0) < WORST_OF_A_ROW and each["row"] != EXPERT:
            taken[each["row"]] = taken.get(each["row"], 0) + 1
            found[(each["row"], each["family"], each["seed"])] = None
    firsts: dict[tuple[str, str], Key] = {}
    for run in sorted(figures["runs"], key=lambda run: run["row"] in (EXPERT, CONSTANT_VELOCITY)):
        firsts.setdefault((run["row"], run["family"]), (run["row"], run["family"], run["seed"]))
    for key in firsts.values():
        found[key] = None
    return list(found)[:MAX_RUNS]


def _harm(worst: dict[str, Any]) -> tuple[bool, float]:
    """What pruning did harm to comes first, constant velocity last."""
    return worst["row"] == CONSTANT_VELOCITY, worst["epdms_style"] - (worst["unpruned_epdms_style"] or 0.0)


def played(
    figures: dict[str, Any],
    load: Callable[[Key], RunRecord | None],
    add_kept: Callable[[Key, RunRecord], RunRecord],
    ghost_row: str = "none",
) -> Iterator[dict[str, Any]]:
    """The chosen runs as JSON values.

    The way of the row ``ghost_row`` in the same scenario is given too, for comparison.

    Args:
        load: gives a run, or None where it was not driven.
        add_kept: gives it with its kept tokens; raises InputError where they are damaged, which the page then says.
    """
    entries = {(run["row"], run["family"], run["seed"]): run for run in figures["runs"]}
    for row, family, seed in chosen_runs(figures):
        run = load((row, family, seed))
        if run is None or not run.steps:
            continue
        other = load((ghost_row, family, seed)) if row != ghost_row else None
        problem = ""
        try:
            run = add_kept((row, family, seed), run)
        except InputError as error:
            problem = str(error)
            print(problem, file=sys.stderr)
        payload = run_payload(run, entries[row, family, seed], other, problem)
        yield {"row": row, "family": family, "seed": seed, **payload}


def run_payload(
    run: RunRecord, entry: dict[str, Any], ghost: RunRecord | None = None, problem: str = ""
) -> dict[str, Any]:
    """A run for the page's player: lengths in m to the cm, angles in rad to the mrad.

    Args:
        entry: of ``runs`` of the summary, with the scores and events.
        problem: why the kept tokens are not known.
    """
    grids = grids_of(run)
    return {
        "ending": run.ending,
        "reason": run.reason,
        "size": [run.vehicle.length_m, run.vehicle.width_m, _r(run.vehicle.center_m)],
        "map": {
            "drivable": [_points(polygon) for polygon in run.map.drivable],
            "lanes": [_points(lane.polygon) for lane in run.map.lanes],
            "route": _points(run.map.route[::4]),
            "obstacles": [[o.kind, *map(_r, (o.x, o.y, o.yaw, o.length, o.width))] for o in run.map.obstacles],
        },
        "steps": [_step(step) for step in run.steps],
        "plans": [_plan(plan, grids) for plan in run.plans],
        "cameras": _cameras(grids),
        "unknown": "" if grids else problem or (UNKNOWN if any(plan.total_tokens for plan in run.plans) else ""),
        "ghost": [] if ghost is None else [[_r(step.ego.x), _r(step.ego.y)] for step in ghost.steps],
        "scores": {title: entry[name] for name, title in SHOWN.items() if entry[name] is not None},
        "events": [[_r(event["time_s"]), event["kind"], event["detail"]] for event in entry["events"]],
    }


def _plan(plan: PlanStep, grids: Grids) -> list[Any]:
    return [
        _r(plan.time_s), plan.outcome, _points(plan.xy), plan.kept_tokens, plan.total_tokens, plan.reason,
        _kept(plan, grids),
    ]  # fmt: skip


def _kept(plan: PlanStep, grids: Grids) -> str | int:
    """The bits of ``packed``; 1 where all tokens are kept, 0 where it is not known."""
    if plan.kept and plan.kept_tokens == plan.total_tokens:
        return 1
    return packed(plan.kept, grids) or 0


def _cameras(grids: Grids) -> list[list[list[Any]]]:
    """Rows of cameras as they are drawn, each with title, rows, columns, and the index of its first bit."""
    first, found = 0, {}
    for name, (rows, columns) in grids.items():
        found[name] = [camera_title(name), rows, columns, first]
        first += rows * columns
    return [[found[name] for name in names] for names in camera_layout(list(grids))]


def _step(step: Any) -> list[Any]:
    ego = step.ego
    near = [o for o in step.others if np.hypot(o.x - ego.x, o.y - ego.y) < ROAD_USERS_M]
    return [
        _r(step.time_s), _r(ego.x), _r(ego.y), _r(ego.yaw), _r(ego.speed), step.plan, _r(step.plan_age_s),
        [[o.kind[0], *map(_r, (o.x, o.y, o.yaw, o.length, o.width))] for o in near],
        [[light.state, _points(np.array(light.stop_line))] for light in step.lights], step.command,
    ]  # fmt: skip


def _r(value: float) -> float:
    return round(float(value), 3 if abs(value) < 10 else 2)


def _points(points: np.ndarray) -> list[list[float]]:
    return [[_r(x), _r(y)] for x, y in points]
