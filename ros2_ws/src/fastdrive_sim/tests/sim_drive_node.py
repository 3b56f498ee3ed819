"""A node with a planner for tests, as a script. SIM_DRIVE_NODE says what it does: plan, refuse, or die at plan 3."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))  # tests.ros

from fastdrive_node.errors import AnswerError
from fastdrive_node.types import Command, EgoHistory, FrameSet, Plan
from tests.ros.fake_planner import FakePlanner, factory_of


class OddPlanner(FakePlanner):
    """Goes straight on; in the way that the environment says it does not."""

    def plan(self, frame_set: FrameSet, history: EgoHistory, command: Command) -> Plan:
        way = os.environ.get("SIM_DRIVE_NODE", "plan")
        if way == "refuse":
            raise AnswerError("answer: no <PLANNING> tag")
        if way == "die" and len(self.seen) == 3:
            os._exit(3)
        return super().plan(frame_set, history, command)


if __name__ == "__main__":
    from fastdrive_node.ros.program import main

    raise SystemExit(main(planner_factory=factory_of(OddPlanner())))
