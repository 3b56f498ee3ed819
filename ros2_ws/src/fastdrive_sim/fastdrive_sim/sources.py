"""Where worlds and pictures come from: simulation and renderer behind a seam, so that tests can stand in for both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from fastdrive_node.errors import SimError
from fastdrive_sim.types import Snapshot, Views, World


class SimulationLike(Protocol):
    """One world and what happens in it."""

    world: World

    def run(self, seconds: float, hz: float) -> Iterator[Snapshot]: ...


class RendererLike(Protocol):
    """Six cameras in one world at a time. Its ``Views`` hold depth: the annotations' visibility needs it."""

    def load(self, world: World) -> None: ...

    def render(self, snapshot: Snapshot) -> Views: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Sources:
    """``simulation(world_seed, seconds, scenario)`` and ``renderer(width, height)``."""

    simulation: Callable[[int, float, str], SimulationLike]
    renderer: Callable[[int, int], RendererLike]


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
    raise SimError(f"the world of seed {seed} ends after {len(snapshots)} of {steps} steps; take another --seed")
