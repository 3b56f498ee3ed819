"""The runs that the page can play, as small JSON: the map once, and a few numbers for each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fastdrive_sim.drive.types import CONSTANT_VELOCITY, EXPERT, RunRecord

MAX_RUNS = 36  # of a page
WORST_OF_A_ROW = 3
ROAD_USERS_M = 60.0  # those further away are left out
SHOWN = {
    "epdms_style": "EPDMS-style", "neuroncap": "NeuroNCAP", "hd_score": "HD-Score", "route_completion": "route",
    **{name: name.upper() for name in ("nc", "dac", "ddc", "tlc", "ep", "ttc", "lk", "hc", "ec")},
}  # fmt: skip
Key = tuple[str, str, int]  # row, family, seed


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
    figures: dict[str, Any], load: Callable[[Key], RunRecord | None], ghost_row: str = "none"
) -> Iterator[dict[str, Any]]:
    """The chosen runs as JSON values; ``load`` gives a run, or None where it was not driven.

    The way of the row ``ghost_row`` in the same scenario is given too, for comparison.
    """
    entries = {(run["row"], run["family"], run["seed"]): run for run in figures["runs"]}
    for row, family, seed in chosen_runs(figures):
        run = load((row, family, seed))
        if run is None or not run.steps:
            continue
        other = load((ghost_row, family, seed)) if row != ghost_row else None
        yield {"row": row, "family": family, "seed": seed, **run_payload(run, entries[row, family, seed], other)}


def run_payload(run: RunRecord, entry: dict[str, Any], ghost: RunRecord | None = None) -> dict[str, Any]:
    """A run for the page's player: lengths in m to the cm, angles in rad to the mrad.

    Args:
        entry: of ``runs`` of the summary, with the scores and events.
    """
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
        "plans": [
            [_r(plan.time_s), plan.outcome, _points(plan.xy), plan.kept_tokens, plan.total_tokens, plan.reason]
            for plan in run.plans
        ],
        "ghost": [] if ghost is None else [[_r(step.ego.x), _r(step.ego.y)] for step in ghost.steps],
        "scores": {title: entry[name] for name, title in SHOWN.items()},
        "events": [[_r(event["time_s"]), event["kind"], event["detail"]] for event in entry["events"]],
    }


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
