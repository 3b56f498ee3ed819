"""All scores of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from fastdrive_sim.drive.scoring.closeness import close_to
from fastdrive_sim.drive.scoring.comfort import plan_comfort, uncomfortable_steps
from fastdrive_sim.drive.scoring.plans import Ticks, mean_plan_score, plan_deviation
from fastdrive_sim.drive.scoring.terms import (
    Event,
    at_fault,
    drivable_area,
    driving_direction,
    first_events,
    no_collision,
    off_lane_steps,
    progress,
    red_lights,
    window_mean,
)
from fastdrive_sim.drive.scoring.track import Track
from fastdrive_sim.drive.types import FAILED, OFF_ROAD, Collision, RunRecord

WINDOW_S, STRIDE_S = 4.0, 0.5  # the horizon of EPDMS, and between two windows' starts
SOFT = ("traffic_cone",)  # the run goes on after a contact with one; it is no collision
WEIGHTS = {"ep": 5.0, "ttc": 5.0, "lk": 2.0, "hc": 2.0, "ec": 2.0}
SLOW_START_MPS = 1.0  # the reference speed of NeuroNCAP is the limit where a run starts slower


@dataclass(frozen=True)
class RunScores:
    """Scores of one run. Rates over runs are means of the booleans; None: not known for this run."""

    nc: float
    dac: float
    ddc: float
    tlc: float
    ep: float
    ttc: float
    lk: float
    hc: float
    ec: float | None  # None: no two plans are 0.5 s apart
    epdms_style: float
    neuroncap: float  # 0 to 5
    hd_score: float
    route_completion: float
    collided: bool
    at_fault: bool  # in a collision
    off_road: bool
    red_light: bool
    failed: bool
    impact_mps: float | None  # of the collision
    plan_deviation_m: float | None
    plan_age_s: float | None  # mean of the plan in use
    max_plan_age_s: float | None
    ticks: int
    refused: float  # fractions of the ticks
    late: float
    superseded: float
    kept: float | None  # of the visual tokens
    events: tuple[Event, ...]

    @property
    def comfort(self) -> float:
        """HC by its other name."""
        return self.hc

    def figures(self) -> dict[str, float | bool | int | None]:
        """Everything but the events, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "events"}


def score_run(run: RunRecord) -> RunScores:
    """All scores of a run. One that failed, or was never driven, scores 0 whatever it did until then."""
    if not run.steps:
        return _not_driven(run)
    track = Track(run)
    threats, off_lane, breaches = close_to(track), off_lane_steps(track), uncomfortable_steps(track)
    uncomfortable = np.any(list(breaches.values()), axis=0)
    reds = red_lights(track)
    terms = {
        "nc": no_collision(run),
        "dac": drivable_area(track),
        "ddc": driving_direction(track),
        "tlc": 0.0 if reds else 1.0,
        "ep": progress(run),
        "ttc": window_mean(threats >= 0, WINDOW_S, STRIDE_S),
        "lk": window_mean(off_lane, WINDOW_S, STRIDE_S),
        "hc": window_mean(uncomfortable, WINDOW_S, STRIDE_S),
        "ec": plan_comfort(run.plans),
    }
    failed = run.ending == FAILED
    hit = first_collision(run)
    completion = route_completion(run)
    ticks = Ticks.of(track)
    return RunScores(
        **terms,
        epdms_style=0.0 if failed else epdms_style(terms),
        neuroncap=0.0 if failed else neuroncap(run),
        hd_score=0.0 if failed else mean_plan_score(track) * completion,
        route_completion=completion,
        collided=hit is not None,
        at_fault=hit is not None and at_fault(hit, run),
        off_road=not terms["dac"] or run.ending == OFF_ROAD,
        red_light=bool(reds),
        failed=failed,
        impact_mps=hit.impact_speed if hit is not None else None,
        plan_deviation_m=plan_deviation(run.plans),
        plan_age_s=ticks.mean_age_s,
        max_plan_age_s=ticks.max_age_s,
        ticks=ticks.ticks,
        refused=ticks.refused,
        late=ticks.late,
        superseded=ticks.superseded,
        kept=ticks.kept,
        events=_events(track, reds, threats, off_lane, breaches),
    )


def epdms_style(terms: Mapping[str, float | None]) -> float:
    """NC * DAC * DDC * TLC * (5 EP + 5 TTC + 2 LK + 2 HC + 2 EC) / 16; a term that is None is left out of the mean."""
    known = {name: value for name, value in terms.items() if value is not None}
    allowed = known["nc"] * known["dac"] * known["ddc"] * known["tlc"]
    weights = {name: weight for name, weight in WEIGHTS.items() if name in known}
    weighted = sum(weight * known[name] for name, weight in weights.items())
    return allowed * weighted / sum(weights.values())


def first_collision(run: RunRecord) -> Collision | None:
    """The first contact with anything but a traffic cone, whoever is at fault."""
    return next((each for each in run.collisions if each.other.kind not in SOFT), None)


def neuroncap(run: RunRecord) -> float:
    """5 without a collision, else 4 max(0, 1 - impact speed / reference speed).

    The reference is the speed at the start: that at which the vehicle meets something that stands if nobody acts.
    """
    hit = first_collision(run)
    if hit is None:
        return 5.0
    start = run.steps[0].ego.speed
    reference = start if start >= SLOW_START_MPS else run.map.speed_limit
    return 4.0 * max(0.0, 1.0 - hit.impact_speed / reference)


def route_completion(run: RunRecord) -> float:
    """The fraction of the way to the goal that was driven, 0 to 1."""
    return float(np.clip(max(step.progress_m for step in run.steps) / run.map.goal_m, 0.0, 1.0))


def _not_driven(run: RunRecord) -> RunScores:
    event = Event(0.0, "failed", run.reason)
    zeros = dict.fromkeys(("nc", "dac", "ddc", "tlc", "ep", "ttc", "lk", "hc", "ec"), 0.0)
    return RunScores(
        **zeros, epdms_style=0.0, neuroncap=0.0, hd_score=0.0, route_completion=0.0, collided=False, at_fault=False,
        off_road=False, red_light=False, failed=True, impact_mps=None, plan_deviation_m=None, plan_age_s=None,
        max_plan_age_s=None, ticks=0, refused=0.0, late=0.0, superseded=0.0, kept=None,
        events=(event,),
    )  # fmt: skip


def _events(
    track: Track, reds: list[Event], threats: np.ndarray, off_lane: np.ndarray, breaches: dict[str, np.ndarray]
) -> tuple[Event, ...]:
    """What happened, in the order of time."""
    run, times = track.run, track.time_s
    found = [*reds]
    for each in run.collisions:
        kind = "contact" if each.other.kind in SOFT else "collision"
        fault = "at fault" if at_fault(each, run) else "not at fault"
        found.append(Event(each.time_s, kind, f"{each.other.kind}, {each.where}, {each.impact_speed:.1f} m/s, {fault}"))
    found += first_events(times, track.areas.off_road, "off_road")
    found += first_events(times, track.areas.wrong_way, "wrong_way")
    kinds = {other.instance: other.kind for other in run.map.obstacles}
    kinds |= {other.instance: other.kind for step in run.steps for other in step.others}
    for instance in np.unique(threats[threats >= 0]).tolist():
        found += first_events(times, threats == instance, "close", kinds[instance])
    found += first_events(times, off_lane, "off_lane")
    for name, marked in breaches.items():
        found += first_events(times, marked, "uncomfortable", name)
    if run.ending == FAILED:
        found.append(Event(float(times[-1]), "failed", run.reason))
    return tuple(sorted(found, key=lambda event: event.time_s))
