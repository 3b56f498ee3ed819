"""A road that winds, with nobody else in the lane."""

from __future__ import annotations

import math

from fastdrive_sim.drive.families.base import Family, SceneDraft
from fastdrive_sim.roads import Bend, Straight


class SharpBend(Family):
    name = "bend"
    summary = "two tight bends, one after the other"

    def prepare(self, draft: SceneDraft) -> None:
        draft.pace(8.0, 12.0)
        first, second = draft.draw("radius_1_m", 15.0, 35.0), draft.draw("radius_2_m", 15.0, 35.0)
        sign = draft.choose("first", (1, -1))
        turn_1 = math.radians(draft.draw("angle_1_deg", 40.0, 85.0))
        turn_2 = math.radians(draft.draw("angle_2_deg", 30.0, 70.0))
        between = draft.draw("between_m", 8.0, 25.0)
        parts = [Straight(25.0), Bend(first, sign * turn_1), Straight(between), Bend(second, -sign * turn_2)]
        draft.road([*parts, Straight(80.0)], 45.0 + first * turn_1 + between + second * turn_2)
        draft.start_speed = round(0.7 * draft.limit, 3)
        draft.start_offset = draft.draw("start_offset_m", -0.5, 0.5)
        draft.bystanders()
