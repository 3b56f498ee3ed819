"""Stand-ins for simulation and renderer: a straight drive among three things, and images drawn with numpy."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Sequence

import numpy as np

from fastdrive_node.errors import FastDriveError
from fastdrive_sim.drive.planners import InProcessPlanner, _straight_on
from fastdrive_sim.drive.scene import DriveScene
from fastdrive_sim.sources import Sources
from fastdrive_sim.types import Camera, EgoPose, Label, Snapshot, Thing, Views, World

PARKED = Thing(1, "car", 30.0, 4.0, 0.0, (4.5, 1.9, 1.6), (200, 0, 0))
TREE = Thing(2, "tree", 10.0, 9.0, 0.0, (2.0, 2.0, 6.0), (0, 200, 0))
ROAD = np.array([[-50.0, -4.0], [400.0, -4.0], [400.0, 6.0], [-50.0, 6.0]])


class FakeSimulation:
    """The ego follows a slow arc; its speed depends on the seed, so that worlds differ."""

    def __init__(self, seed: int, seconds: float, scenario: str = "default") -> None:
        self.world = World(seed, (), (PARKED, TREE), (ROAD,))
        self._speed = 4.0 + seed % 1000 / 250

    def pose(self, time_s: float) -> EgoPose:
        rate = 0.02
        yaw = rate * time_s
        radius = self._speed / rate
        return EgoPose(radius * math.sin(yaw), radius * (1 - math.cos(yaw)), yaw, self._speed, 0.0, rate)

    def run(self, seconds: float, hz: float = 20.0) -> Iterator[Snapshot]:
        for step in range(round(seconds * hz) + 1):
            yield self.snapshot(step / hz)

    def snapshot(self, time_s: float) -> Snapshot:
        ego = self.pose(time_s)
        things = (
            Thing(3, "truck", ego.x + 15, ego.y, ego.yaw, (8.0, 2.5, 3.0), (0, 0, 200), speed=ego.speed),
            Thing(4, "pedestrian", 40.0, -5.0, 0.0, (0.5, 0.6, 1.8), (200, 200, 0)),
            Thing(5, "bus", ego.x + 100, ego.y, 0.0, (12.0, 2.5, 3.0), (200, 200, 0), speed=ego.speed),
        )
        command = "straight" if time_s < 6 else "left"
        return Snapshot(time_s, ego, things, command, np.array([[ego.x, ego.y], [ego.x + 10, ego.y]]))


class EndingSimulation(FakeSimulation):
    """A world whose road ends after two seconds."""

    def run(self, seconds: float, hz: float = 20.0) -> Iterator[Snapshot]:
        return super().run(min(seconds, 2.0), hz)


class FakeRenderer:
    """Stripes that move with time and the world's seed; a patch of the truck in the front camera."""

    def __init__(self, width: int, height: int, rig: Sequence[Camera]) -> None:
        self.size, self.cameras = (width, height), len(rig)
        self.seed = 0
        self.threads = os.environ.get("LP_NUM_THREADS")

    def load(self, world: World) -> None:
        self.seed = world.seed % 251

    def render(self, snapshot: Snapshot) -> Views:
        width, height = self.size
        rows, columns = np.mgrid[:height, :width]
        base = (rows * 2 + columns + self.seed + round(snapshot.time_s * 20) * 3) % 256
        rgb = np.stack([np.stack([base, (base + 40 * camera) % 256, rows % 256], -1) for camera in range(self.cameras)])
        label = np.full((self.cameras, height, width), int(Label.ROAD), np.uint8)
        instance = np.zeros((self.cameras, height, width), np.uint16)
        box = (0, slice(height // 3, height // 2), slice(width // 3, width // 2))
        label[box], instance[box] = int(Label.VEHICLE), 3
        return Views(rgb.astype(np.uint8), label, instance, np.full((self.cameras, height, width), 50.0, np.float32))

    def render_color(self, snapshot: Snapshot) -> np.ndarray:
        return self.render(snapshot).rgb

    def close(self) -> None:
        pass


def fake_sources() -> Sources:
    return Sources(FakeSimulation, FakeRenderer)


def ending_sources() -> Sources:
    return Sources(EndingSimulation, FakeRenderer)


class SingleThreadRenderer(FakeRenderer):
    """Refuses to start where the environment lets OpenGL start threads."""

    def __init__(self, width: int, height: int, rig: Sequence[Camera]) -> None:
        super().__init__(width, height, rig)
        if self.threads != "1":
            raise RuntimeError(f"LP_NUM_THREADS is {self.threads!r}")


def single_thread_sources() -> Sources:
    return Sources(FakeSimulation, SingleThreadRenderer)


class DyingRenderer(FakeRenderer):
    """Takes the process with it in the second world it is given."""

    worlds = 0

    def load(self, world: World) -> None:
        DyingRenderer.worlds += 1
        if DyingRenderer.worlds == 2:
            os._exit(3)
        super().load(world)


def dying_sources() -> Sources:
    return Sources(FakeSimulation, DyingRenderer)


class BlockingRenderer(FakeRenderer):
    """Says that it has begun, and never ends."""

    def render(self, snapshot: Snapshot) -> Views:
        os.write(1, b"rendering\n")  # at once: two processes write
        threading.Event().wait()
        return super().render(snapshot)


def blocking_sources() -> Sources:
    return Sources(FakeSimulation, BlockingRenderer)


class DyingNodes(InProcessPlanner):
    """Constant velocity by nodes that end in the runs with these numbers; ``started`` counts the nodes."""

    def __init__(self, dies_in: set[int]):
        super().__init__(lambda scene: _straight_on)
        self.dies_in, self.begun, self.dead, self.started = dies_in, 0, False, 0

    def start(self, *_: float) -> DyingNodes:
        self.started += 1
        return self

    def begin(self, scene: DriveScene) -> None:
        self.begun, self.dead = self.begun + 1, self.begun in self.dies_in
        if self.dead:
            raise FastDriveError("the node ended with exit code 3")
        super().begin(scene)

    def alive(self) -> bool:
        return not self.dead
