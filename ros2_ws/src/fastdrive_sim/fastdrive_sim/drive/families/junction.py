"""Junctions at which the command alone tells the way."""

from __future__ import annotations

from fastdrive_sim.drive.families.base import Family, SceneDraft
from fastdrive_sim.roads import Crossing, Straight


class CommandedJunction(Family):
    name = "junction"
    summary = "two junctions without lights; the command tells the way"

    def prepare(self, draft: SceneDraft) -> None:
        draft.pace(7.5, 11.0)
        first = draft.draw("first_m", 25.0, 45.0)
        turn = draft.choose("turn_1", ("left", "right", "straight"))
        other = draft.choose("turn_2", ("straight", "right" if turn == "left" else "left"))
        between = draft.draw("between_m", 30.0, 50.0)
        parts = [Straight(first), Crossing(turn), Straight(between), Crossing(other), Straight(80.0)]
        draft.road(parts, first + between + 85.0)
        draft.bystanders()
