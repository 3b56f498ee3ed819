"""A left turn across oncoming traffic that has the right of way."""

from __future__ import annotations

from fastdrive_sim.drive.families.base import Family, SceneDraft
from fastdrive_sim.drive.paths import opposite_path
from fastdrive_sim.roads import Crossing, Straight


class UnprotectedTurn(Family):
    name = "unprotected-turn"
    summary = "a left turn across oncoming traffic, without a light"

    def prepare(self, draft: SceneDraft) -> None:
        limit = draft.pace(7.5, 11.0)
        first = draft.draw("first_m", 30.0, 45.0)
        draft.road([Straight(first), Crossing("left"), Straight(80.0)], first + 75.0)
        path = opposite_path(draft.route, draft.junction())
        speed = draft.draw("oncoming_mps", 7.0, 10.0)
        # The ego vehicle, slowing down for the turn, reaches the box after about this time.
        arrives_s = (first + 12.0) / (0.75 * limit)
        gap_s = draft.draw("gap_s", 1.6, 2.6)
        number = draft.choose("vehicles", (1, 2, 3))
        lead_s = draft.draw("lead_s", -0.5, 1.5)
        for index in range(number):
            s = 45.0 - speed * (arrives_s - lead_s + index * gap_s)
            draft.vehicle("car", path, s, speed)
        draft.timeout_s = 40.0
        draft.bystanders(oncoming=0)
