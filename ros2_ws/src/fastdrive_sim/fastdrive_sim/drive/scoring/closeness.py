"""TTC: whether the vehicle, going on as it does, meets something within a second."""

from __future__ import annotations

import numpy as np

from fastdrive_sim.drive.scoring.polygons import overlap
from fastdrive_sim.drive.scoring.terms import BEHIND_DEG
from fastdrive_sim.drive.scoring.track import FURNITURE, ON_THE_ROAD, Others, Track, bearing_deg, ego_rectangles
from fastdrive_sim.drive.types import RECORD_S

AHEAD_S = (0.0, 0.3, 0.6, 0.9)
LEAST_MPS = 5e-3  # a slower vehicle is not judged
AHEAD_DEG = 30.0  # nearer to straight ahead than this, something is ahead


def close_steps(track: Track) -> np.ndarray:
    """bool [T]: at this step the vehicle would meet something within 0.9 s at its present velocity.

    The others are where they were at that time; after the end of the run they go on at constant velocity. Only what is
    ahead counts, or what is not behind while the vehicle is in several lanes, in a junction or off the road. What is
    met without counting is not asked again, and neither is what touches the vehicle at the start.
    """
    hits = sorted(_hits(track))
    ignored = {instance for step, order, instance, _ in hits if step == 0 and order == 0}
    found = np.zeros(len(track), bool)
    for step, _, instance, counts in hits:
        if instance in ignored:
            continue
        if counts:
            found[step] = True
        else:
            ignored.add(instance)
    return found


def _hits(track: Track) -> list[tuple[int, int, int, bool]]:
    """What is met: step, index in ``AHEAD_S``, instance, and whether it is where it counts."""
    areas = track.areas
    anywhere = areas.several_lanes | areas.off_road | areas.junction
    standing = _standing(track)
    found = []
    for order, ahead in enumerate(AHEAD_S):
        x, y = (track.x + ahead * track.speed * np.cos(track.yaw), track.y + ahead * track.speed * np.sin(track.yaw))
        ego = ego_rectangles(x, y, track.yaw, track.run.vehicle)
        others = _later(track, ahead)
        pairs = [(others, np.arange(len(others.step)), others.step - round(ahead / RECORD_S))]
        pairs += [(standing, *_near(ego, standing))]
        for things, rows, steps in pairs:
            met = _met(ego, track, things, rows, steps)
            for row, step in zip(rows[met], steps[met], strict=True):
                angle = bearing_deg(track.x[step], track.y[step], track.yaw[step], things.x[row], things.y[row])
                counts = bool(angle < AHEAD_DEG or (anywhere[step] and angle <= BEHIND_DEG))
                found.append((int(step), order, int(things.instance[row]), counts))
    return found


def _standing(track: Track) -> Others:
    obstacles = track.run.map.obstacles
    seen = [other.kind not in FURNITURE or other.kind in ON_THE_ROAD for other in obstacles]
    return track.obstacles.take(np.array(seen, bool))


def _later(track: Track, ahead_s: float) -> Others:
    """Others at the steps ``ahead_s`` after each step, those after the last one at constant velocity."""
    shift, last = round(ahead_s / RECORD_S), len(track) - 1
    parts = [track.others.take(track.others.step >= shift)]
    end = track.others.at(last)
    for beyond in range(1, min(shift, last + shift) + 1):
        later = end.after(beyond * RECORD_S)
        step = np.full(len(later.step), last + beyond)
        parts.append(Others(step, *(getattr(later, name) for name in list(later.__dataclass_fields__)[1:])))
    joined = (np.concatenate([getattr(part, name) for part in parts]) for name in Others.__dataclass_fields__)
    found = Others(*joined)
    return found.take(found.step >= shift)


def _near(ego: np.ndarray, things: Others) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows of ``things`` and steps that may touch."""
    if not len(things.step):
        return np.zeros(0, int), np.zeros(0, int)
    middle = ego.mean(axis=1)
    reach = np.linalg.norm(ego[0, 0] - middle[0])
    away = np.hypot(things.x[:, None] - middle[:, 0], things.y[:, None] - middle[:, 1])
    rows, steps = np.nonzero(away <= reach + things.radius[:, None])
    return rows, steps


def _met(ego: np.ndarray, track: Track, things: Others, rows: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """bool [pairs]: which pairs of rows and steps touch."""
    if not len(rows):
        return np.zeros(0, bool)
    middle = ego.mean(axis=1)[steps]
    reach = np.linalg.norm(ego[0, 0] - ego[0].mean(axis=0))
    near = np.hypot(things.x[rows] - middle[:, 0], things.y[rows] - middle[:, 1]) <= reach + things.radius[rows]
    near &= track.speed[steps] >= LEAST_MPS
    met = np.zeros(len(rows), bool)
    met[near] = overlap(ego[steps[near]], things.corners[rows[near]])
    return met
