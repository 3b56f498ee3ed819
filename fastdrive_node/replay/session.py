"""A replay from the first process to the last record: domain, node, player."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fastdrive_node.replay.bag import Recording
from fastdrive_node.replay.connection import NodeConnection, PublishedTopics
from fastdrive_node.replay.frame_sets import LoopResult, SetCounter
from fastdrive_node.replay.node_process import NODE_COMMAND, NodeProcess
from fastdrive_node.replay.player import Player
from fastdrive_node.ros.distribution import LOCAL_DISCOVERY
from fastdrive_node.ros.domain import own_domain
from fastdrive_node.ros.inputs import steering_type
from fastdrive_node.ros.parameter_files import check_parameter_file
from fastdrive_node.ros.parameters import PARAMETERS, Settings, make_settings
from fastdrive_node.ros.transport import profile_environment

STARTUP_S = 600.0  # a large model loads slowly; a node that ends is noticed at once
EXTERNAL_S = 15.0  # for the diagnostics of a node that runs already
CONNECT_S = 30.0
# Plans must not depend on the machine's load: a set waits longer for its odometry than in a vehicle, and for its plan.
REPLAY_PARAMETERS = {
    "use_sim_time": True,
    "autostart": True,
    "diagnostics_period_s": 0.2,
    "odometry_wait_s": 2.0,
    "planning_deadline_s": 600.0,
    "plan_rate_warn_hz": 0.0,  # the rate is that of the bag
    "plan_rate_error_hz": 0.0,
}


@dataclass(frozen=True)
class NodeOptions:
    """The node to play to."""

    external: bool = False
    name: str = "fastdrive"
    parameters: Mapping[str, object] = field(default_factory=dict)  # beside those of every replay
    parameter_file: Path | None = None
    fastdds_profile: str | None = None  # see ``profile_environment``
    command: Sequence[str] = NODE_COMMAND


@dataclass(frozen=True)
class Replay:
    """What a replay gave."""

    passes: list[LoopResult]
    identity: dict[str, str]  # what the node says of its model
    settings: Settings  # of the node


def play_bag(recording: Recording, node: NodeOptions, rate: float | None, loops: int) -> Replay:
    """Play a bag ``loops`` times, ``rate`` times real time or, with None, in lockstep.

    Raises:
        InputError: the parameter file, profile or bag cannot be used.
        FastDriveError: the node ended, or was not ready in time.
    """
    more = recording.parameters()
    with open_session(recording, node, more, lockstep=rate is None) as session:
        player = Player(recording, session.connection, rate)
        passes = []
        for index in range(loops):
            if index:
                player.rewind()
            counter = SetCounter(recording.topics, recording.compressed, session.settings.frame_limits())
            passes.append(player.play(counter))
        return Replay(passes, session.connection.identity, session.settings)


@dataclass(frozen=True)
class Session:
    """A node that is active, with all topics matched."""

    connection: NodeConnection
    settings: Settings  # of the node


@contextmanager
def open_session(
    inputs: PublishedTopics, node: NodeOptions, parameters: Mapping[str, object], lockstep: bool
) -> Iterator[Session]:
    """Start a node in a domain of its own, or find one that runs, and wait until it is active.

    Args:
        parameters: that follow from the inputs; they win over those of ``node``.
        lockstep: images and odometry are reliable.

    Raises:
        InputError: the parameter file or profile cannot be used.
        ModelError: Autoware's messages are asked for and are not installed.
        FastDriveError: the node ended, or was not ready in time.
    """
    values = {**REPLAY_PARAMETERS, **node.parameters, **parameters}
    if lockstep:
        topics = (*inputs.topics.cameras.values(), inputs.topics.odometry)
        values |= {f"qos_overrides.{topic}.subscription.reliability": "reliable" for topic in topics}
    settings = _settings(values, node)
    environment = profile_environment(node.fastdds_profile)
    with ExitStack() as stack:
        domain = None if node.external else stack.enter_context(own_domain())
        if domain is not None:
            environment |= {"ROS_DOMAIN_ID": str(domain), **LOCAL_DISCOVERY}
        stack.enter_context(_environment(environment))
        steering = steering_type(str(values.get("steering_input", "none")))
        process = None
        if not node.external:
            process = NodeProcess(inputs.topics, values, environment, node.parameter_file, command=node.command)
        name = node.name.strip("/") if node.external else "fastdrive"
        check = process.check if process is not None else lambda: None
        connection = stack.enter_context(NodeConnection(inputs, name, domain, check, steering))
        if process is not None:
            process.on_exit = connection.wake
            stack.enter_context(process)
        connection.wait_until_ready(EXTERNAL_S if node.external else STARTUP_S, CONNECT_S)
        yield Session(connection, settings)


def _settings(parameters: Mapping[str, object], node: NodeOptions) -> Settings:
    """The settings that the node will have, so that sets are counted by its limits."""
    name = node.name if node.external else "fastdrive"
    values = {} if node.parameter_file is None else check_parameter_file(node.parameter_file, name)
    values |= parameters
    return make_settings({name: value for name, value in values.items() if name in PARAMETERS})


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the middleware of this process, and set them back."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
