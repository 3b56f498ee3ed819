"""A vehicle overtakes on the oncoming lane, changes into the ego's lane close ahead, and slows down."""

from __future__ import annotations

from fastdrive_sim.drive.agents import Pace, Shift
from fastdrive_sim.drive.families.base import Family, SceneDraft
from fastdrive_sim.roads import LANE_M, Straight


class CutIn(Family):
    name = "cut-in"
    summary = "an overtaking vehicle changes into the lane close ahead and slows down"

    def prepare(self, draft: SceneDraft) -> None:
        limit = draft.pace()
        draft.road([Straight(190.0)], 160.0)
        begins_s = draft.draw("begins_s", 1.5, 3.5)
        gap_m = draft.draw("gap_m", 3.5, 8.0)
        slower = draft.draw("slower", 0.35, 0.7)
        ego_speed = draft.start_speed
        speed = ego_speed + draft.draw("faster_mps", 1.0, 2.5)
        # Its tail is gap_m ahead of the ego's bumper when the lane change begins.
        ahead_m = 3.43 + gap_m + 2.25 - (speed - ego_speed) * begins_s
        shift = Shift(begins_s, 0.0, draft.draw("lasting_s", 1.6, 2.6))
        paces = (Pace(0.0, speed), Pace(begins_s + 1.2, slower * limit, 3.5), Pace(begins_s + 7.0, 0.9 * limit))
        draft.vehicle(
            "car",
            draft.route,
            draft.s(ahead_m),
            speed,
            limit=1.3 * limit,
            offset=LANE_M,
            paces=paces,
            shifts=(shift,),
        )
        draft.bystanders(oncoming=0)
