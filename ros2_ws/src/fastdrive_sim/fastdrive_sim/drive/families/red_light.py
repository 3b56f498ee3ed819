"""A traffic light that is red, or becomes red as the ego vehicle comes near."""

from __future__ import annotations

from fastdrive_sim.drive.agents import Pace
from fastdrive_sim.drive.families.base import Family, SceneDraft
from fastdrive_sim.drive.paths import crossing_path
from fastdrive_sim.roads import Crossing, Straight


class RedLight(Family):
    name = "red-light"
    summary = "a traffic light is red or becomes red; traffic crosses meanwhile"

    def prepare(self, draft: SceneDraft) -> None:
        limit = draft.pace()
        first = draft.draw("first_m", 35.0, 60.0)
        turn = draft.choose("turn", ("straight", "straight", "left", "right"))
        draft.road([Straight(first), Crossing(turn, has_light=True), Straight(90.0)], first + 80.0)
        red_first = draft.choose("red_first", (True, False))
        red_s = draft.draw("red_s", 5.0, 9.0)
        draft.light(draft.junction(), red_first, red_s, green_s=draft.draw("green_s", 0.5, 2.0))
        if turn == "straight" and red_first:
            path = crossing_path(draft.junction(), from_left=draft.choose("from_left", (True, False)))
            arrives_s = max((first - 38.0) / limit, 0.0) + 2.0
            speed = 8.0
            draft.vehicle("car", path, 45.0 - speed * arrives_s, speed, paces=(Pace(0.0, speed),))
        draft.bystanders()
