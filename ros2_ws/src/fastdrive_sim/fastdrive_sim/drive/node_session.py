"""A node with renderer and connection, ready to drive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fastdrive_node.errors import SimError
from fastdrive_node.replay.node_process import NODE_COMMAND
from fastdrive_node.replay.session import NodeOptions, Session, open_session
from fastdrive_node.ros.topics import TopicMap, simulator_topics
from fastdrive_sim.bag import image_topic
from fastdrive_sim.drive.faults import make_fault
from fastdrive_sim.drive.latency import Latency
from fastdrive_sim.drive.node_planner import CameraRig, NodePlanner
from fastdrive_sim.drive.realtime import RealTimeNodePlanner
from fastdrive_sim.drive.runner import DriveSettings
from fastdrive_sim.drive.types import DriveRow
from fastdrive_sim.rig import RIGS
from fastdrive_sim.sources import RendererLike
from fastdrive_sim.types import Camera

MISSING_S = 0.05  # a set without all of its cameras is given up; in lockstep nothing else arrives meanwhile


@contextmanager
def open_planner(settings: DriveSettings, row: DriveRow) -> Iterator[NodePlanner]:
    """The node of a row, active, and what publishes to it. Raises as ``open_node`` does."""
    with open_node(settings, row) as (rig, session):
        yield make_planner(settings, row, rig, session)


def make_planner(settings: DriveSettings, row: DriveRow, rig: CameraRig, session: Session) -> NodePlanner:
    """A node that is active as the planner of a row: with its fault and its latency."""
    make = RealTimeNodePlanner if settings.realtime else NodePlanner
    fault, age_s = make_fault(row.fault, row.severity), session.settings.max_plan_age_s
    return make(
        rig, session.connection, fault, Latency(*settings.latencies_of(row)), MISSING_S, settings.loop.plan_s, age_s
    )


@contextmanager
def open_node(settings: DriveSettings, row: DriveRow) -> Iterator[tuple[CameraRig, Session]]:
    """A node with the pruner of a row, active, and the renderer with the topics that it reads.

    Raises:
        SimError: no rig has the VLA's cameras, or the machine cannot render.
        InputError: the parameter file cannot be used.
        FastDriveError: the node ended, or was not ready in time.
    """
    cameras = rig_of(settings.cameras)
    topics = TopicMap(
        {camera.name: image_topic(camera.name, "raw") for camera in cameras},
        simulator_topics().odometry,
        simulator_topics().command,
        "the simulator's topics",
    )
    parameters: dict[str, object] = {"vla": settings.vla, "pruner": row.pruner, "drop": row.drop}
    values = {} if settings.realtime else {"missing_timeout_s": MISSING_S}
    command = settings.node_command or NODE_COMMAND
    options = NodeOptions(parameters=parameters, parameter_file=settings.parameter_file, command=command)
    renderer = (settings.renderer or _renderer)(*settings.size, cameras)
    try:
        rig = CameraRig(renderer, topics)
        with open_session(rig, options, values, lockstep=not settings.realtime) as session:
            yield rig, session
    finally:
        renderer.close()


def _renderer(width: int, height: int, rig: Sequence[Camera]) -> RendererLike:
    from fastdrive_sim.render import Renderer  # loads OpenGL

    return Renderer(width, height, rig)


def rig_of(cameras: tuple[str, ...]) -> tuple[Camera, ...]:
    """The simulator's cameras of these names, in their order. Raises SimError where no rig has them all."""
    for rig in RIGS.values():
        known = {camera.name: camera for camera in rig}
        if all(name in known for name in cameras):
            return tuple(known[name] for name in cameras)
    names = sorted({camera.name for rig in RIGS.values() for camera in rig})
    raise SimError(f"cameras {', '.join(cameras)}: no rig of the simulator has them; it has {', '.join(names)}")
