"""A cyclist rides in the lane."""

from __future__ import annotations

from fastdrive_sim.drive.agents import Pace, Shift
from fastdrive_sim.drive.families.base import Family, SceneDraft
from fastdrive_sim.roads import Straight


class Cyclist(Family):
    name = "cyclist"
    summary = "a slow cyclist rides ahead in the lane, or comes into it from the edge"

    def prepare(self, draft: SceneDraft) -> None:
        limit = draft.pace()
        draft.road([Straight(170.0)], 100.0)
        away = draft.draw("away_m", 18.0, 40.0)
        speed = draft.draw("rides_mps", 3.0, 5.5)
        offset = draft.draw("offset_m", -1.0, -0.4)
        shifts: tuple[Shift, ...] = ()
        if draft.choose("swerves", (True, False)):
            shifts = (Shift(draft.draw("swerves_s", 1.5, 4.0), 0.2, 2.0),)
        way = {"offset": offset, "paces": (Pace(0.0, speed),), "shifts": shifts}
        draft.vehicle("cyclist", draft.route, draft.s(away), speed, limit=limit, **way)
        draft.timeout_s = 45.0
        draft.bystanders()
