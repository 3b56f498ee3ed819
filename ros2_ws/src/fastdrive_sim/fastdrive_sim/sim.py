"""One drive through one world."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np

from fastdrive_sim.expert import Driver
from fastdrive_sim.population import START_M, populate
from fastdrive_sim.roads import build_route
from fastdrive_sim.scenarios import DEFAULT, SCENARIOS
from fastdrive_sim.types import EgoPose, Snapshot
from fastdrive_sim.world import build_world

STEP_S = 0.05
COMMAND_REACH_M = 30.0
ROUTE_AHEAD_M = 60.0


class Simulation:
    """A world made from ``seed`` and the expert's drive through it; good for ``seconds`` of driving.

    The start is perturbed, and now and then the expert drifts off the middle of its lane and comes back,
    so that a model can learn what it does there. ``scenario`` is one of ``SCENARIOS``.
    """

    def __init__(self, seed: int, seconds: float = 30.0, scenario: str = DEFAULT) -> None:
        rng = np.random.default_rng(seed)
        limit = float(rng.uniform(8.0, 13.0))
        self.route = build_route(rng, START_M + limit * (seconds + 2) + ROUTE_AHEAD_M + 40)
        ids = count(1)
        self.world = build_world(seed, rng, self.route, ids)
        self.traffic = populate(rng, self.route, limit, seconds, ids)
        self.seconds = seconds
        self._drifts = self._draw_drifts(rng, seconds)
        x, y, yaw = self.route.at(START_M, float(rng.uniform(-0.7, 0.7)))
        pose = EgoPose(x, y, yaw + float(rng.uniform(-0.08, 0.08)), limit * float(rng.uniform(0.3, 0.9)))
        self.driver = Driver(self.route, pose, limit, s=START_M)
        self.scenario = SCENARIOS[scenario]
        self.world, self.traffic = self.scenario.prepare(self.world, self.traffic, seed, limit, seconds, ids)

    @staticmethod
    def _draw_drifts(rng: np.random.Generator, seconds: float) -> list[tuple[float, float, float]]:
        drifts, clock = [], float(rng.uniform(0, 4))
        while clock < seconds:
            lasting = float(rng.uniform(1.0, 2.5))
            drifts.append((clock, clock + lasting, float(rng.uniform(-1.0, 1.0))))
            clock += lasting + float(rng.uniform(4, 9))
        return drifts

    def run(self, seconds: float | None = None, hz: float = 20.0) -> Iterator[Snapshot]:
        """Drive for ``seconds``; yields a snapshot every 1/hz s, the first at time 0. Once for each Simulation.

        Raises ValueError where ``hz`` is no divisor of 20, the rate of the physics.
        """
        stride = 20.0 / hz
        if hz <= 0 or stride != int(stride):
            raise ValueError(f"hz {hz:g} does not divide the simulation's 20 steps a second")
        steps = round((self.seconds if seconds is None else seconds) / STEP_S)
        for step in range(steps + 1):
            if step % int(stride) == 0:
                yield self.snapshot(step * STEP_S)
            self._step(step * STEP_S)

    def _step(self, time_s: float) -> None:
        driver = self.driver
        driver.offset_wish = next((wish for start, end, wish in self._drifts if start <= time_s < end), 0.0)
        driver.step(self.traffic.obstacles(driver.s, driver.pose.speed), STEP_S)
        self.traffic.step(driver.s, driver.pose.speed, time_s, STEP_S)

    def snapshot(self, time_s: float) -> Snapshot:
        """The present state."""
        s = self.driver.s
        junction = self.route.next_junction(s)
        command = junction.turn if junction is not None and junction.s_in - s < COMMAND_REACH_M else "straight"
        route = np.array([self.route.at(s + step)[:2] for step in np.arange(0, ROUTE_AHEAD_M, 1.0)])
        return Snapshot(
            time_s,
            self.driver.pose,
            tuple(self.traffic.things(s)),
            command,
            route,
            self.traffic.ahead(s),
            self.scenario.observe(self.traffic, s),
        )
