"""A vehicle turns from a side road into the lane just ahead."""

from __future__ import annotations

from fastdrive_sim.drive.agents import Pace
from fastdrive_sim.drive.families.base import Family, SceneDraft
from fastdrive_sim.drive.paths import merging_path
from fastdrive_sim.roads import Crossing, Straight


class Merge(Family):
    name = "merge"
    summary = "a vehicle turns from the right into the lane just ahead and speeds up slowly"

    def prepare(self, draft: SceneDraft) -> None:
        limit = draft.pace(8.0, 11.5)
        first = draft.draw("first_m", 40.0, 60.0)
        draft.road([Straight(first), Crossing("straight"), Straight(130.0)], first + 110.0)
        path = merging_path(draft.route, draft.junction())
        reaches_s = (first + 12.0) / (0.9 * limit)
        before_s = draft.draw("before_s", 1.8, 3.2)
        speed = draft.draw("turns_mps", 3.5, 5.0)
        slow = draft.draw("slow", 0.5, 0.8)
        s = 48.0 - speed * max(reaches_s - before_s, 0.0)
        paces = (Pace(0.0, speed), Pace(reaches_s + 0.5, slow * limit))
        kind = draft.choose("kind", ("car", "car", "truck"))
        draft.vehicle(kind, path, s, speed, limit=limit, paces=paces)
        draft.bystanders(oncoming=0)
