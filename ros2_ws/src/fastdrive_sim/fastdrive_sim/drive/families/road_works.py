"""Barriers and cones narrow the lane; the way past them is partly on the oncoming lane."""

from __future__ import annotations

from fastdrive_sim.drive.families.base import Family, SceneDraft
from fastdrive_sim.drive.scene import Detour
from fastdrive_sim.roads import RIGHT_EDGE_M, Straight


class RoadWorks(Family):
    name = "road-works"
    summary = "barriers and cones close the right part of the lane"

    def prepare(self, draft: SceneDraft) -> None:
        draft.pace(6.5, 9.0)
        draft.road([Straight(170.0)], 125.0)
        away = draft.draw("away_m", 45.0, 65.0)
        length = draft.draw("length_m", 9.0, 20.0)
        width = draft.draw("width_m", 1.3, 1.8)
        edge = RIGHT_EDGE_M + width
        for index, part in enumerate((0.2, 0.5, 0.8)):
            draft.parked("traffic_cone", draft.s(away - 9.0 + 3.0 * index), RIGHT_EDGE_M + part * width)
        s = away
        while s < away + length:
            draft.parked("barrier", draft.s(s + 1.45), edge - 0.25)
            s += 3.0
        offset = edge + 0.925 + 0.55
        draft.detours.append(Detour(draft.s(away - 18.0), draft.s(away + length + 12.0), round(max(offset, 0.0), 3)))
        draft.timeout_s = 45.0
