"""A vehicle stands in the lane."""

from __future__ import annotations

from fastdrive_sim.drive.agents import Pace
from fastdrive_sim.drive.families.base import Family, SceneDraft
from fastdrive_sim.roads import Straight


class StoppedLead(Family):
    name = "stopped-lead"
    summary = "a vehicle stands in the lane ahead and drives on after a while"

    def prepare(self, draft: SceneDraft) -> None:
        limit = draft.pace()
        draft.road([Straight(150.0)], 130.0)
        away = draft.draw("away_m", 45.0, 75.0)
        stands_s = draft.draw("stands_s", 10.0, 14.0)
        kind = draft.choose("kind", ("car", "car", "truck", "bus"))
        paces = (Pace(0.0, 0.0), Pace(stands_s, 0.8 * limit))
        draft.vehicle(kind, draft.route, draft.s(away), 0.0, limit=0.8 * limit, paces=paces)
        draft.bystanders()
