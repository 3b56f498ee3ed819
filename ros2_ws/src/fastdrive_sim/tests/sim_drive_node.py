"""A node with a planner for tests, as a script. The file SIM_DRIVE_NODE says what it does from now on.

It plans, refuses, or dies at the fourth plan from then on: "plan", "refuse" or "die"."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))  # tests.ros

from fastdrive_node.errors import AnswerError
from fastdrive_node.types import Command, EgoHistory, FrameSet, Plan
from tests.ros.fake_planner import FakePlanner, factory_of


class OddPlanner(FakePlanner):
    """Goes straight on; in the way that the file says it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.way, self.plans = "plan", 0

    def plan(self, frame_set: FrameSet, history: EgoHistory, command: Command) -> Plan:
        way = Path(os.environ["SIM_DRIVE_NODE"]).read_text()
        if way != self.way:
            self.way, self.plans = way, 0
        self.plans += 1
        if way == "refuse":
            raise AnswerError("answer: no <PLANNING> tag")
        if way == "die" and self.plans == 4:
            os._exit(3)
        return super().plan(frame_set, history, command)


if __name__ == "__main__":
    from fastdrive_node.ros.program import main

    raise SystemExit(main(planner_factory=factory_of(OddPlanner())))
