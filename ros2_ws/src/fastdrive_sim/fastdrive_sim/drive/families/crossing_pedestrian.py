"""Somebody crosses the road in plain view, and does not stop."""

from __future__ import annotations

from fastdrive_sim.drive.families.base import Family, SceneDraft
from fastdrive_sim.roads import Straight


class CrossingPedestrian(Family):
    name = "crossing-pedestrian"
    summary = "a pedestrian in plain view crosses the road and keeps walking"

    def prepare(self, draft: SceneDraft) -> None:
        draft.pace()
        draft.road([Straight(150.0)], 120.0)
        away = draft.draw("away_m", 35.0, 70.0)
        pace = draft.draw("walks_mps", 1.0, 2.0)
        trigger_s = draft.draw("trigger_s", 2.6, 4.0)
        if draft.choose("side", ("right", "right", "left")) == "right":
            draft.walker(draft.s(away), -3.0, 8.5, pace, trigger_s)
        else:
            draft.walker(draft.s(away), 6.3, -5.5, pace, trigger_s + 1.0)
        draft.bystanders()
