"""Planners for the planner's process: they plan, hang, die or fail as the speed at t0 asks."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from fastdrive_node.errors import AnswerError, ModelError
from fastdrive_node.types import CAMERAS, Command, EgoHistory, FrameSet, KeptTokens, ModelOutput, Plan

if TYPE_CHECKING:  # a planner's process starts in half of the time without it
    from fastdrive_node.ros.parameters import Settings


class OutOfMemoryError(RuntimeError):
    """As torch's, which is known by its name."""


class StandIn:
    """What it does follows from the speed at t0, so that a test chooses it set by set."""

    def __init__(self, memory_for: float = 0.0):
        self.drop = self.default_drop = 0.5
        self.memory_for = memory_for  # drop ratio from which the memory suffices

    def plan(self, frame_set: FrameSet, history: EgoHistory, command: Command) -> Plan:
        act = {100: self.hang, 101: self.crash, 102: self.refuse, 103: self.fail, 104: self.leave}
        act.get(int(history.now.speed_mps), lambda: None)()
        if self.drop < self.memory_for:
            raise OutOfMemoryError("tried to allocate 2 GiB")
        sums = [int(frame.load().sum()) for frame in frame_set.frames]
        text = f"{command.value} {sums} {os.getpid()} {'rclpy' in sys.modules} {self.drop:g}"
        return Plan(frame_set.t0_ns, np.ones((6, 2)), 0.5, text)

    def hang(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        time.sleep(60)

    def crash(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    def leave(self) -> None:
        os._exit(3)

    def refuse(self) -> None:
        error = AnswerError("answer: no <PLANNING> tag")
        kept = KeptTokens(np.arange(3), None, (1, 2, 2))
        error.output = ModelOutput("prompt", "what it wrote", (1, 2), kept, {})
        raise error

    def fail(self) -> None:
        raise ZeroDivisionError("a fault of the planner")


def loaded(planner: StandIn, cameras: tuple[str, ...] = ("front", "back")) -> SimpleNamespace:
    return SimpleNamespace(
        planner=planner,
        cameras=cameras,
        history_steps=0,
        history_interval_s=0.5,
        identity=lambda: {"vla": "stand-in"},
        drop_limits=None,
    )


def make(memory_for: float = 0.0) -> SimpleNamespace:
    return loaded(StandIn(memory_for))


def for_node(settings: object) -> SimpleNamespace:
    time.sleep(0.5)
    return loaded(StandIn(), CAMERAS)


def unusable(*_: object) -> SimpleNamespace:
    raise ModelError("weights: missing")


def dies() -> SimpleNamespace:
    os._exit(9)


def slow(*_: object) -> SimpleNamespace:
    time.sleep(60)
    return make()


class Named(StandIn):
    """Its plans tell its name, drop ratio and process. That of the name "waits FILE" waits for a file."""

    def __init__(self, name: str, drop: float):
        super().__init__()
        self.name, self.drop = name, self.default_drop if drop < 0 else drop

    def plan(self, frame_set: FrameSet, history: EgoHistory, command: Command) -> Plan:
        plan = super().plan(frame_set, history, command)
        while self.name.startswith("waits") and not os.path.exists(self.name.split()[1]):
            time.sleep(0.01)
        return replace(plan, text=f"{self.name or 'first'}; {self.drop:g}; {os.getpid()}")


def for_exchange(settings: Settings) -> SimpleNamespace:
    name = settings.pruner
    if name.startswith("slow"):
        time.sleep(0.6)
    if name == "dies":
        os._exit(9)
    if name == "unusable":
        raise ModelError("pruner unusable: weights missing")
    named = loaded(Named(name, settings.drop), CAMERAS)
    named.identity = lambda: {"vla": "stand-in", "pruner": name}
    return named
