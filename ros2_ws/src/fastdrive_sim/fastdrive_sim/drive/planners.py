"""What plans in a closed loop, and when its plans come into use. The node is one of these (``node_planner``)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from fastdrive_sim.drive.expert import Expert
from fastdrive_sim.drive.latency import Latency
from fastdrive_sim.drive.scene import DriveScene
from fastdrive_sim.drive.types import PLANNED, SUPERSEDED, EgoStep, KeptMasks

WAYPOINT_S, WAYPOINTS = 0.5, 6


@dataclass(frozen=True)
class Tick:
    """The time at which a frame set is exposed."""

    time_s: float
    ego: EgoStep
    sensors: object = None  # what the planner's ``sense`` returned


@dataclass(frozen=True)
class TickAnswer:
    """What became of a tick. Waypoints are in the world."""

    tick: Tick
    outcome: str = PLANNED
    reason: str = ""
    xy: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    times_s: np.ndarray = field(default_factory=lambda: np.zeros(0))
    mode: str = ""
    kept_tokens: int = 0
    total_tokens: int = 0
    kept: KeptMasks = field(default_factory=dict)


class DrivePlanner(Protocol):
    """Plans for one scene after another."""

    def begin(self, scene: DriveScene) -> None:
        """A new run: nothing of the run before may have an effect."""

    def watch(self, ego: EgoStep, time_s: float) -> None:
        """The ego state, at every step of the record."""

    def offer(self, ego: EgoStep, time_s: float) -> None:
        """A planning tick: sensors see the scene now."""

    def collect(self, time_s: float) -> list[TickAnswer]:
        """What has come up to this time, oldest first."""
        ...


class SimulatedLatency:
    """A planner whose answers take simulated time. While it is busy the newest tick waits, older ones are superseded.

    Args:
        sense: what is to be kept of a tick until it is planned.
        solve: plans a tick; called when planning begins, with the time.
        latency_s: of the next plan.
    """

    def __init__(
        self,
        sense: Callable[[EgoStep, float], object],
        solve: Callable[[Tick, float], TickAnswer],
        latency_s: Callable[[], float],
    ):
        self._sense, self._solve, self._latency_s = sense, solve, latency_s
        self._waiting: Tick | None = None
        self._answer: TickAnswer | None = None  # ready, but not due yet
        self._due_s = 0.0
        self._done: list[TickAnswer] = []

    def offer(self, ego: EgoStep, time_s: float) -> None:
        self._advance(time_s)
        if self._waiting is not None:
            self._done.append(TickAnswer(self._waiting, SUPERSEDED, "a newer frame set came before it was planned"))
        self._waiting = Tick(time_s, ego, self._sense(ego, time_s))
        self._advance(time_s)

    def collect(self, time_s: float) -> list[TickAnswer]:
        self._advance(time_s)
        done, self._done = self._done, []
        return done

    def _advance(self, time_s: float) -> None:
        """Let what is due by ``time_s`` end, and the waiting tick begin."""
        while True:
            if self._answer is not None:
                if self._due_s > time_s + 1e-9:
                    return
                self._done.append(self._answer)
                self._answer = None
            if self._waiting is None:
                return
            tick, self._waiting = self._waiting, None
            begins_s = max(tick.time_s, self._due_s)
            self._due_s = begins_s + self._latency_s()
            self._answer = self._solve(tick, begins_s)


class InProcessPlanner:
    """A planner within this process, such as the expert: ``plan(ego)`` gives waypoints in the world and their times.

    Args:
        make: the planner of a scene.
        latencies_s: as those of ``Latency``.
    """

    def __init__(
        self, make: Callable[[DriveScene], Callable[[EgoStep], tuple[np.ndarray, np.ndarray]]], *latencies_s: float
    ):
        self._make, self._latency_s = make, Latency(*latencies_s)

    def begin(self, scene: DriveScene) -> None:
        plan = self._make(scene)

        def sense(ego: EgoStep, time_s: float) -> object:
            return plan(ego)  # now: the scene goes on

        self._latency_s.begin(scene.family, scene.seed)
        self._queue = SimulatedLatency(sense, self._solve, self._latency_s)

    def watch(self, ego: EgoStep, time_s: float) -> None:
        pass

    def offer(self, ego: EgoStep, time_s: float) -> None:
        self._queue.offer(ego, time_s)

    def collect(self, time_s: float) -> list[TickAnswer]:
        return self._queue.collect(time_s)

    @staticmethod
    def _solve(tick: Tick, time_s: float) -> TickAnswer:
        assert isinstance(tick.sensors, tuple)
        xy, times = tick.sensors
        return TickAnswer(tick, xy=xy, times_s=tick.time_s + times)


def expert_planner(*latencies_s: float) -> InProcessPlanner:
    """The row ``expert``."""
    return InProcessPlanner(lambda scene: Expert(scene).plan, *latencies_s)


def constant_velocity_planner(*latencies_s: float) -> InProcessPlanner:
    """The row ``constant-velocity``: straight on at the present speed."""
    return InProcessPlanner(lambda scene: _straight_on, *latencies_s)


def _straight_on(ego: EgoStep) -> tuple[np.ndarray, np.ndarray]:
    times = WAYPOINT_S * np.arange(1, WAYPOINTS + 1)
    direction = np.array([math.cos(ego.yaw), math.sin(ego.yaw)])
    return np.array([ego.x, ego.y]) + ego.speed * times[:, None] * direction, times
