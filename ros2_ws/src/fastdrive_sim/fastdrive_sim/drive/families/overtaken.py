"""A faster vehicle behind overtakes by its driver's decision, and goes back close ahead."""

from __future__ import annotations

from fastdrive_sim.drive.families.base import Family, SceneDraft
from fastdrive_sim.drive.overtaking import Overtaking
from fastdrive_sim.drive.paths import oncoming_path
from fastdrive_sim.roads import Straight


class Overtaken(Family):
    name = "overtaken"
    summary = "a faster vehicle behind overtakes when the oncoming lane is free, goes back close ahead, and slows down"

    def prepare(self, draft: SceneDraft) -> None:
        limit = draft.pace(6.5, 8.5)
        draft.road([Straight(220.0)], 170.0)
        faster = draft.draw("faster", 1.6, 1.9)
        overtaking = Overtaking(faster * limit, draft.draw("after", 0.5, 0.8) * limit, draft.draw("gap_m", 3.5, 7.0))
        behind = draft.draw("behind_m", 11.0, 18.0)
        way = {"limit": 1.4 * limit, "overtaking": overtaking}
        draft.vehicle("car", draft.route, draft.s(-behind), draft.start_speed, **way)
        if draft.choose("oncoming", (True, False)):  # which it waits for
            path = oncoming_path(draft.route, draft.s(150.0), 2.0)
            draft.vehicle("car", path, draft.draw("oncoming_at_m", 20.0, 60.0), limit)
