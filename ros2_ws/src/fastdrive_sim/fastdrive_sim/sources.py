"""What images look like, and where worlds and images come from: interfaces that tests can implement too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from fastdrive_node.errors import SimError, UsageError
from fastdrive_sim.domains import DEFAULT_DOMAIN, DOMAINS
from fastdrive_sim.rig import DEFAULT_RIG, RIGS
from fastdrive_sim.scenarios import DEFAULT, SCENARIOS
from fastdrive_sim.types import Camera, SceneRecording, Snapshot, Views, World


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """What the images show: the fields that ``DatasetSpec`` and ``BagSpec`` share.

    Raises UsageError that names the option of a field that is out of range.
    """

    seed: int
    width: int = 280
    height: int = 168
    jpeg_quality: int = 92
    scenario: str = DEFAULT
    rig: str = DEFAULT_RIG
    domain: str = DEFAULT_DOMAIN

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed}: give 0 or more")
        if not 16 <= self.width <= 4096 or not 16 <= self.height <= 4096:
            raise UsageError(f"--size {self.width}x{self.height}: give a width and a height of 16 to 4096 pixels")
        if not 1 <= self.jpeg_quality <= 100:
            raise UsageError(f"--jpeg-quality {self.jpeg_quality}: give 1 to 100")
        registries = (("scenario", SCENARIOS), ("rig", RIGS), ("domain", DOMAINS))
        for option, known in registries:
            name = getattr(self, option)
            if name not in known:
                raise UsageError(f"--{option} {name}: give one of {', '.join(known)}")


class SimulationLike(Protocol):
    """One world and what happens in it."""

    world: World

    def run(self, seconds: float, hz: float) -> Iterator[Snapshot]: ...


@runtime_checkable
class ChoosesKeyframes(Protocol):
    """A simulation that says itself which of its moments are keyframes, and what the expert would do at them."""

    def choose(self, keyframes: int, hz: int) -> SceneRecording: ...


class RendererLike(Protocol):
    """The cameras of a rig in one world at a time. Its ``Views`` hold depth: the annotations' visibility needs it.
    ``render_color`` gives their ``rgb`` alone."""

    def load(self, world: World) -> None: ...

    def render(self, snapshot: Snapshot) -> Views: ...

    def render_color(self, snapshot: Snapshot) -> np.ndarray: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Sources:
    """``simulation(world_seed, seconds, scenario)`` and ``renderer(width, height, rig)``."""

    simulation: Callable[[int, float, str], SimulationLike]
    renderer: Callable[[int, int, Sequence[Camera]], RendererLike]


SourcesFactory = Callable[[], Sources]  # a module-level function: worker processes import it by name


def simulator_sources() -> Sources:
    """The real simulation and renderer. Imported here, so that a worker can set its environment before OpenGL loads."""
    from fastdrive_sim.render import Renderer
    from fastdrive_sim.sim import Simulation

    return Sources(Simulation, Renderer)


def record(simulation: SimulationLike, steps: int, hz: float) -> list[Snapshot]:
    """The first ``steps`` snapshots at ``hz``, one every 1 / hz seconds.

    Raises SimError where the simulation ends early.
    """
    snapshots: list[Snapshot] = []
    for snapshot in simulation.run(steps / hz, hz):
        snapshots.append(snapshot)
        if len(snapshots) == steps:
            return snapshots
    seed = simulation.world.seed
    raise SimError(f"the world of seed {seed} ends after {len(snapshots)} of {steps} steps; use another --seed")
