"""What is judged on the plans: HD-Score's terms, how much plans change, how old they are when they are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fastdrive_node.geometry import step_headings
from fastdrive_sim.drive.scoring.comfort import plan_is_comfortable
from fastdrive_sim.drive.scoring.meetings import meet_moving, meet_standing
from fastdrive_sim.drive.scoring.polygons import inside_any
from fastdrive_sim.drive.scoring.track import Track, ego_rectangles
from fastdrive_sim.drive.types import LATE, PLANNED, RECORD_S, REFUSED, SUPERSEDED, PlanStep

AHEAD_S = (0.5, 1.0)  # TTC of HD-Score
SHORT_STEP_M = 0.5  # a plan's segment that is shorter has the heading of the one before
DECAY = 0.5  # k of the weights exp(-k i) of plan deviation
LEAST_POINTS = 2  # of both plans, for plan deviation


@dataclass(frozen=True)
class PlanScore:
    """The terms of HD-Score for one plan, each 0 or 1."""

    collision: float
    drivable: float
    closeness: float
    comfort: float

    @property
    def score(self) -> float:
        """NC * DAC * (5 TTC + 2 C) / 7."""
        return self.collision * self.drivable * (5 * self.closeness + 2 * self.comfort) / 7


def plan_scores(plans: Sequence[PlanStep], track: Track) -> list[PlanScore]:
    """Plans against where the others were at their times, and what stands; those without waypoints are left out."""
    plans = [plan for plan in plans if plan.ego is not None and len(plan.xy)]
    if not plans:
        return []
    paths = [_poses(plan) for plan in plans]
    owner = np.concatenate([np.full(len(path.yaw), index) for index, path in enumerate(paths)])
    points, velocity = (np.concatenate([getattr(path, name) for path in paths]) for name in ("points", "velocity"))
    yaw, times = (np.concatenate([getattr(path, name) for path in paths]) for name in ("yaw", "times_s"))
    beyond_s = max(float(times.max()) + max(AHEAD_S) - (len(track) - 1) * RECORD_S, 0.0)
    others = track.others_until(beyond_s)

    def meets(ahead_s: float) -> np.ndarray:
        """bool [plans]: a pose, moved on at its velocity, touches something."""
        x, y = (points + ahead_s * velocity).T
        corners = ego_rectangles(x, y, yaw, track.run.vehicle)
        steps = np.rint((times + ahead_s) / RECORD_S).astype(int)
        touched = [meet_moving(corners, steps, others)[0], meet_standing(corners, track.obstacles)[0]]
        return np.isin(np.arange(len(plans)), owner[np.concatenate(touched)])

    collides, close = meets(0.0), np.any([meets(ahead) for ahead in AHEAD_S], axis=0)
    corners = ego_rectangles(points[:, 0], points[:, 1], yaw, track.run.vehicle)
    off_road = ~inside_any(corners, track.run.map.drivable).all(axis=1)
    drivable = ~np.isin(np.arange(len(plans)), owner[off_road])
    return [
        PlanScore(float(not collides[i]), float(drivable[i]), float(not close[i]), float(plan_is_comfortable(plan)))
        for i, plan in enumerate(plans)
    ]


@dataclass(frozen=True)
class _Path:
    """Where a plan begins and its waypoints, as poses."""

    points: np.ndarray  # [P + 1, 2]
    yaw: np.ndarray
    velocity: np.ndarray  # [P + 1, 2], of the segment that ends there; of the first one at the beginning
    times_s: np.ndarray


def _poses(plan: PlanStep) -> _Path:
    ego = plan.ego
    assert ego is not None
    points = np.concatenate([[[ego.x, ego.y]], plan.xy])
    times = np.concatenate([[plan.time_s], plan.times_s])
    steps = np.diff(points, axis=0)
    cos, sin = np.cos(ego.yaw), np.sin(ego.yaw)
    turned = step_headings(steps @ np.array([[cos, -sin], [sin, cos]]), SHORT_STEP_M) + ego.yaw
    velocity = steps / np.diff(times)[:, None]
    return _Path(points, np.concatenate([[ego.yaw], turned]), np.concatenate([velocity[:1], velocity]), times)


def mean_plan_score(track: Track) -> float:
    """Mean over the plans of a run; 0 without a plan."""
    scores = plan_scores([plan for plan in track.run.plans if plan.outcome == PLANNED], track)
    return float(np.mean([each.score for each in scores])) if scores else 0.0


def plan_deviation(plans: Sequence[PlanStep]) -> float | None:
    """How far consecutive plans are apart at the times of both, m: mean over pairs, weights exp(-k i); None: no pair.

    The newer plan's waypoint i is compared with the older plan, interpolated at its time.
    """
    planned = sorted((plan for plan in plans if plan.outcome == PLANNED), key=lambda plan: plan.time_s)
    found = [_deviation(*pair) for pair in pairwise(planned)]
    known = [each for each in found if each is not None]
    return float(np.mean(known)) if known else None


def _deviation(older: PlanStep, newer: PlanStep) -> float | None:
    if not len(older.xy):
        return None
    both = (newer.times_s <= older.times_s[-1] + 1e-6) & (newer.times_s >= older.time_s)
    if both.sum() < LEAST_POINTS:
        return None
    begin = older.xy[:1] if older.ego is None else np.array([[older.ego.x, older.ego.y]])
    times, points = np.concatenate([[older.time_s], older.times_s]), np.concatenate([begin, older.xy])
    at = np.stack([np.interp(newer.times_s[both], times, axis) for axis in points.T], axis=1)
    weights = np.exp(-DECAY * np.arange(both.sum()))
    return float((weights * np.linalg.norm(newer.xy[both] - at, axis=1)).sum() / weights.sum())


@dataclass(frozen=True)
class Ticks:
    """What became of the planning ticks of a run."""

    ticks: int
    refused: float  # fractions of the ticks
    late: float
    superseded: float
    mean_age_s: float | None  # of the plan in use, over the steps that had one
    max_age_s: float | None
    kept: float | None  # kept tokens over all tokens

    @classmethod
    def of(cls, track: Track) -> Ticks:
        run = track.run
        outcomes = [plan.outcome for plan in run.plans]
        count = max(len(outcomes), 1)
        ages = [step.plan_age_s for step in run.steps if step.plan >= 0]
        tokens = sum(plan.total_tokens for plan in run.plans)
        return cls(
            len(outcomes),
            outcomes.count(REFUSED) / count,
            outcomes.count(LATE) / count,
            outcomes.count(SUPERSEDED) / count,
            float(np.mean(ages)) if ages else None,
            max(ages) if ages else None,
            sum(plan.kept_tokens for plan in run.plans) / tokens if tokens else None,
        )
