"""A column of vehicles that stops and goes."""

from __future__ import annotations

from fastdrive_sim.drive.agents import Pace
from fastdrive_sim.drive.families.base import Family, SceneDraft
from fastdrive_sim.drive.paths import oncoming_path
from fastdrive_sim.roads import Straight


class DenseTraffic(Family):
    name = "dense-traffic"
    summary = "a column of vehicles ahead and one behind, stop and go, with oncoming traffic"

    def prepare(self, draft: SceneDraft) -> None:
        limit = draft.pace(7.5, 11.0)
        draft.start_speed = round(0.6 * limit, 3)
        draft.road([Straight(200.0)], 110.0)
        speed = 0.6 * limit
        first_s = draft.draw("stop_1_s", 2.5, 4.5)
        stands_s = draft.draw("stands_s", 2.0, 4.0)
        second_s = first_s + stands_s + draft.draw("between_s", 4.0, 7.0)
        lead = (
            Pace(0.0, speed), Pace(first_s, 0.0, 3.0), Pace(first_s + stands_s + 2, speed), Pace(second_s, 1.0, 3.0),
            Pace(second_s + 3.0, 0.8 * limit),
        )  # fmt: skip
        s, number = draft.s(16.0), draft.choose("ahead", (2, 3, 4))
        for index in range(number):
            kind = draft.choose(f"kind_{index}", ("car", "car", "truck"))
            last = index == number - 1
            draft.vehicle(kind, draft.route, s, speed, limit=limit, paces=lead if last else (Pace(0.0, 0.9 * limit),))
            s += 14.0 + draft.draw(f"gap_{index}_m", 0.0, 4.0)
        draft.vehicle("car", draft.route, draft.s(-14.0), speed, limit=limit)
        path = oncoming_path(draft.route, draft.s(190.0), 5.0)
        for index in range(4):
            draft.vehicle("car", path, 5.0 + 32.0 * index, 0.8 * limit)
        draft.timeout_s = 50.0
        draft.bystanders(oncoming=0)
