"""Somebody comes out from behind a parked vehicle."""

from __future__ import annotations

from fastdrive_sim.drive.agents import SIZES
from fastdrive_sim.drive.families.base import Family, SceneDraft
from fastdrive_sim.roads import RIGHT_EDGE_M, Straight


class HiddenPedestrian(Family):
    name = "hidden-pedestrian"
    summary = "a pedestrian comes out from behind a parked truck, bus or car"

    def prepare(self, draft: SceneDraft) -> None:
        draft.pace(7.0, 10.5)
        draft.road([Straight(150.0)], 120.0)
        away = draft.draw("away_m", 40.0, 75.0)
        kind = draft.choose("cover", ("truck", "truck", "bus", "car"))
        length, width, _ = SIZES[kind]
        draft.parked(kind, draft.s(away) - 0.9 - length / 2, RIGHT_EDGE_M - 0.2 - width / 2)
        pace = draft.draw("walks_mps", 1.2, 2.0)
        draft.walker(draft.s(away), RIGHT_EDGE_M - 1.6, 8.5, pace, draft.draw("trigger_s", 2.4, 3.2))
        draft.bystanders()
