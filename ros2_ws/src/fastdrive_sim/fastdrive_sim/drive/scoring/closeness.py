"""TTC: whether the vehicle, going on as it does, meets something within a second."""

from __future__ import annotations

import numpy as np

from fastdrive_sim.drive.scoring.meetings import meet_moving, meet_standing
from fastdrive_sim.drive.scoring.terms import BEHIND_DEG
from fastdrive_sim.drive.scoring.track import FURNITURE, ON_THE_ROAD, Others, Track, bearing_deg, ego_rectangles
from fastdrive_sim.drive.types import RECORD_S

AHEAD_S = (0.0, 0.3, 0.6, 0.9)
LEAST_MPS = 5e-3  # a slower vehicle is not judged
AHEAD_DEG = 30.0  # nearer to straight ahead than this, something is ahead


def close_to(track: Track) -> np.ndarray:
    """int [T]: whom the vehicle would meet within 0.9 s at its present velocity, by instance; -1 for nobody.

    The others are where they were at that time; after the end of the run they go on at constant velocity. Only what is
    ahead counts, or what is not behind while the vehicle is in several lanes, in a junction or off the road. What is
    met without counting is not asked again, and neither is what touches the vehicle at the start.
    """
    hits = sorted(_hits(track))
    ignored = {instance for step, order, instance, _ in hits if step == 0 and order == 0}
    found = np.full(len(track), -1)
    for step, _, instance, counts in hits:
        if instance in ignored:
            continue
        if not counts:
            ignored.add(instance)
        elif found[step] < 0:
            found[step] = instance
    return found


def _hits(track: Track) -> list[tuple[int, int, int, bool]]:
    """What is met: step, index in ``AHEAD_S``, instance, and whether it is where it counts."""
    areas = track.areas
    anywhere = areas.several_lanes | areas.off_road | areas.junction
    standing, moving = _standing(track), track.others_until(max(AHEAD_S))
    judged = np.flatnonzero(track.speed >= LEAST_MPS)
    found = []
    for order, ahead in enumerate(AHEAD_S):
        x, y = (track.x + ahead * track.speed * np.cos(track.yaw), track.y + ahead * track.speed * np.sin(track.yaw))
        corners = ego_rectangles(x, y, track.yaw, track.run.vehicle)[judged]
        for things, (poses, rows) in (
            (moving, meet_moving(corners, judged + round(ahead / RECORD_S), moving)),
            (standing, meet_standing(corners, standing)),
        ):
            steps = judged[poses]
            angles = bearing_deg(track.x[steps], track.y[steps], track.yaw[steps], things.x[rows], things.y[rows])
            counts = (angles < AHEAD_DEG) | (anywhere[steps] & (angles <= BEHIND_DEG))
            found += [
                (int(s), order, int(i), bool(c)) for s, i, c in zip(steps, things.instance[rows], counts, strict=True)
            ]
    return found


def _standing(track: Track) -> Others:
    obstacles = track.run.map.obstacles
    seen = [other.kind not in FURNITURE or other.kind in ON_THE_ROAD for other in obstacles]
    return track.obstacles.take(np.array(seen, bool))
