"""The vehicle ahead brakes hard to a stop."""

from __future__ import annotations

from fastdrive_sim.drive.agents import Pace
from fastdrive_sim.drive.families.base import Family, SceneDraft
from fastdrive_sim.roads import Straight


class HardBrakingLead(Family):
    name = "hard-braking-lead"
    summary = "the vehicle ahead brakes hard to a stop, stands, and drives on"

    def prepare(self, draft: SceneDraft) -> None:
        limit = draft.pace()
        draft.road([Straight(180.0)], 150.0)
        gap_m = draft.draw("gap_s", 1.5, 2.2) * limit
        brakes_s = draft.draw("brakes_s", 2.0, 4.0)
        brake = draft.draw("brake", 3.5, 6.0)
        stands_s = draft.draw("stands_s", 2.0, 4.0)
        speed = 0.9 * limit
        again_s = brakes_s + speed / brake + stands_s
        paces = (Pace(0.0, speed), Pace(brakes_s, 0.0, brake), Pace(again_s, speed))
        kind = draft.choose("kind", ("car", "car", "truck"))
        draft.vehicle(kind, draft.route, draft.s(gap_m + 6.0), speed, limit=limit, paces=paces)
        draft.bystanders()
