"""The terms of the EPDMS-style score that follow from where the vehicle was: NC, DAC, DDC, TLC, EP and LK."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastdrive_sim.drive.scoring.polygons import distances, overlap
from fastdrive_sim.drive.scoring.track import FURNITURE, Areas, Track, bearing_deg, ego_rectangles
from fastdrive_sim.drive.types import EXPERT, OFF_ROAD, RECORD_S, Collision, RunRecord, other_corners

STOPPED_MPS = 0.05  # slower than this, a vehicle is stopped
BEHIND_DEG = 150.0  # further from straight ahead than this, something is behind
DIRECTION_S = 1.0  # DDC: distance within this time
DIRECTION_M = (2.0, 6.0)  # less than these: 1, 1/2; else 0
PROGRESS_M = 5.0  # EP is 1 where the expert goes no further
LANE_M, LANE_S = 0.5, 2.0  # LK: further than this from the lane's middle, for so long on end
RED = ("red", "red_yellow")


@dataclass(frozen=True)
class Event:
    """Something that a score counts against a run."""

    time_s: float
    kind: str  # "collision", "off_road", "wrong_way", "red_light", "close", "lane", "uncomfortable" ...
    detail: str = ""


def at_fault(collision: Collision, run: RunRecord) -> bool:
    """Whether NC counts a collision: with something that stands or with the front, or with the flank while the vehicle
    is in several lanes, in a junction or off the road. Not when the ego vehicle stands, or is hit from behind."""
    ego, other = collision.ego, collision.other
    if abs(collision.ego_speed) <= STOPPED_MPS:
        return False
    if collision.is_static or abs(other.speed) <= STOPPED_MPS:
        return True
    if bearing_deg(ego.x, ego.y, ego.yaw, other.x, other.y) > BEHIND_DEG:
        return False
    corners = ego_rectangles(np.array([ego.x]), np.array([ego.y]), np.array([ego.yaw]), run.vehicle)
    if overlap(corners[0][[0, 3]], other_corners(other)):
        return True
    areas = Areas.of(corners, run.map)
    return bool(areas.several_lanes[0] or areas.off_road[0] or areas.junction[0])


def no_collision(run: RunRecord) -> float:
    """NC: 1; 1/2 after an at-fault collision with street furniture; 0 after one with a road user."""
    scores = [0.5 if each.other.kind in FURNITURE else 0.0 for each in run.collisions if at_fault(each, run)]
    return min(scores, default=1.0)


def drivable_area(track: Track) -> float:
    """DAC: 0 where a corner of the vehicle was off the drivable area at any step, else 1."""
    return 0.0 if track.areas.off_road.any() else 1.0


def wrong_way_m(track: Track) -> float:
    """The longest way in oncoming lanes, or off the route, within ``DIRECTION_S``, m."""
    steps = np.zeros(len(track))
    steps[1:] = np.linalg.norm(np.diff(track.centers, axis=0), axis=1)
    steps[~track.areas.wrong_way] = 0.0
    window = round(DIRECTION_S / RECORD_S)
    return max(float(steps[max(end - window, 0) : end].sum()) for end in range(1, len(steps) + 1))


def driving_direction(track: Track) -> float:
    """DDC: 1, 1/2 or 0 by ``wrong_way_m``; 0 where the run ended because the vehicle had left its route."""
    if track.run.ending == OFF_ROAD:
        return 0.0
    way = wrong_way_m(track) + 1e-9  # sums of steps: a limit that is reached counts as reached
    return 1.0 if way < DIRECTION_M[0] else 0.5 if way < DIRECTION_M[1] else 0.0


def red_lights(track: Track) -> list[Event]:
    """The times at which the vehicle came onto the area of a red light. Who is on it before it is red, may leave it."""
    found: list[Event] = []
    within: dict[int, bool] = {}  # by light: whether the vehicle was on its area at the step before
    for index, step in enumerate(track.run.steps):
        for light in step.lights:
            met = bool(overlap(track.corners[index], np.array(light.area)))
            if met and light.state in RED and not within.get(light.instance, index == 0):
                found.append(Event(step.time_s, "red_light"))
            within[light.instance] = met
    return found


def progress(run: RunRecord) -> float:
    """EP: the vehicle's way along the route over the expert's, both at the time when the expert's run ended."""
    if not run.steps:
        return 0.0
    expert = run.expert_progress_m
    if not len(expert):
        if run.row.pruner == EXPERT:
            return 1.0
        raise ValueError(f"{run.family} {run.seed}: the run has no progress of the expert")
    ends = min(len(expert), len(run.steps)) - 1
    own = max(step.progress_m for step in run.steps[: ends + 1])
    if expert[-1] <= PROGRESS_M:
        return 1.0
    return float(np.clip(own / expert[-1], 0.0, 1.0))


def lane_offsets(track: Track) -> np.ndarray:
    """Distance [T] of the vehicle's middle from the middle of the ego's lane, m."""
    return distances(track.centers, track.run.map.route)


def off_lane_steps(track: Track) -> np.ndarray:
    """bool [T]: the vehicle has been more than ``LANE_M`` off its lane's middle for ``LANE_S`` on end.

    In junctions the time begins anew.
    """
    off = (lane_offsets(track) > LANE_M) & ~track.areas.junction
    index = np.arange(len(off))
    since = np.maximum.accumulate(np.where(off, -1, index)) + 1  # first step of the present stretch
    return off & ((index - since) * RECORD_S >= LANE_S - 1e-9)


def first_events(times: np.ndarray, marked: np.ndarray, kind: str, detail: str = "") -> list[Event]:
    """An event at the first step of each stretch of marked steps."""
    begins = np.flatnonzero(marked & ~np.concatenate([[False], marked[:-1]]))
    return [Event(float(times[index]), kind, detail) for index in begins]


def window_mean(marked: np.ndarray, window_s: float, stride_s: float) -> float:
    """The fraction of windows without a marked step, as a run's term. A shorter run is one window.

    Args:
        marked: bool [T], steps at which a rule is broken.
    """
    size, stride = round(window_s / RECORD_S) + 1, round(stride_s / RECORD_S)
    starts: Sequence[int] = range(0, max(len(marked) - size, 0) + 1, stride)
    return float(np.mean([not marked[start : start + size].any() for start in starts]))
