"""A planner for tests: drives straight on at the present speed, and decodes every image as the real one does.

Run as a script it is the node with this planner: ``python fake_planner.py --ros-args -p use_sim_time:=true``; it takes
FAKE_PLANNER_DELAY_S seconds for a plan; with FAKE_PLANNER_REFUSES no answer is a plan, and with FAKE_PLANNER_DIES the
process ends at the first one.
"""

from __future__ import annotations

import os
import sys
import threading
import time

import numpy as np

from fastdrive_node.errors import AnswerError, InputError, ModelError
from fastdrive_node.types import CAMERAS, Command, EgoHistory, FrameSet, KeptTokens, Plan

GRID = (6, 4, 8)


class FakePlanner:
    """``hold`` keeps ``plan`` waiting until it is set; ``refuse`` makes the answer unusable; ``crash`` raises."""

    def __init__(self, cameras: tuple[str, ...] = CAMERAS):
        self.cameras = cameras
        self.drop = 0.5
        self.default_drop, self.least_drop = 0.5, 0.0
        self.hold = threading.Event()
        self.hold.set()
        self.started = threading.Event()
        self.refuse = self.crash = False
        self.delay_s = 0.0
        self.seen: list[tuple[FrameSet, EgoHistory, Command]] = []

    def check_drop(self, value: float) -> None:
        if value < self.least_drop:
            raise InputError(f"drop: {value:g} is less than the engine's {self.least_drop:g}")

    def plan(self, frame_set: FrameSet, history: EgoHistory, command: Command) -> Plan:
        self.seen.append((frame_set, history, command))
        self.started.set()
        self.hold.wait(30)
        time.sleep(self.delay_s)
        for frame in frame_set.frames:
            frame.load()
        if self.crash:
            raise ZeroDivisionError("a fault of the planner")
        if self.refuse:
            raise AnswerError("answer: no <PLANNING> tag")
        return straight_plan(frame_set, history, command, self.drop)


def straight_plan(frames: FrameSet, history: EgoHistory, command: Command = Command.NONE, drop: float = 0.5) -> Plan:
    times = 0.5 * np.arange(1, 7)
    waypoints = np.stack([history.now.speed_mps * times, np.zeros(6)], axis=1)
    total = int(np.prod(GRID))
    kept = KeptTokens(np.arange(round(total * (1 - drop))), np.linspace(0, 1, total, dtype=np.float32), GRID)
    mode = f"degraded: no image of {', '.join(frames.missing)}" if frames.missing else "nominal"
    stages = {"load": 1.0, "preprocess": 1.0, "encode": 4.0, "total": 6.0}
    text = f"{command.value}, {len(history.states)} states"
    return Plan(frames.t0_ns, waypoints, 0.5, text, mode, kept, stages)


def factory_of(planner: FakePlanner):
    from fastdrive_node.ros.planner_factory import LoadedPlanner

    return lambda settings: LoadedPlanner(planner, planner.cameras, 6, 0.5, lambda: {"vla": "fake"})


def make_loaded(settings):
    """For a planner's process. Pruners "unusable" and "dies" cannot be loaded."""
    if settings.pruner == "unusable":
        raise ModelError("pruner unusable: weights missing")
    if settings.pruner == "dies":
        os._exit(9)
    return factory_of(FakePlanner())(settings)


if __name__ == "__main__":
    from fastdrive_node.ros.program import main

    planner = FakePlanner()
    planner.delay_s = float(os.environ.get("FAKE_PLANNER_DELAY_S", 0))
    planner.refuse = "FAKE_PLANNER_REFUSES" in os.environ
    if os.environ.get("FAKE_PLANNER_DIES"):
        planner.plan = lambda *_: (print("a fatal fault", file=sys.stderr, flush=True), os._exit(7))
    sys.exit(main(planner_factory=factory_of(planner)))
