"""What the node would plan for a bag: frame sets with their ego history and command. No ROS installation."""

from __future__ import annotations

from dataclasses import dataclass

from rosbags.typesys import Stores, get_typestore

from fastdrive_node.errors import EgoStateError
from fastdrive_node.geometry import yaw_of_quaternion
from fastdrive_node.replay.bag import COMMAND_TYPE, ODOMETRY_TYPE, Recording
from fastdrive_node.replay.frame_sets import SetCounter
from fastdrive_node.sync.odometry import OdometryBuffer
from fastdrive_node.types import Command, EgoHistory, EgoState, FrameSet


@dataclass(frozen=True)
class PlanningSample:
    """One frame set, and what is known beside it."""

    frames: FrameSet
    history: EgoHistory
    command: Command


def planning_samples(recording: Recording, steps: int, interval_s: float, limit: int) -> list[PlanningSample]:
    """Complete frame sets of a bag that have odometry, in time order.

    Args:
        steps: past states that a VLA reads.
        interval_s: between them.
        limit: sets, evenly spread over the bag.

    Raises:
        InputError: the bag is damaged.
    """
    sets: list[tuple[FrameSet, int]] = []  # with the time at which each was complete, as the node takes the command
    counter = SetCounter(recording.topics, recording.compressed, on_set=lambda frames: sets.append((frames, now_ns)))
    for message in recording.image_messages():
        now_ns = message.stamp_ns
        counter.add(message)
    store, topics = get_typestore(Stores.ROS2_JAZZY), recording.topics
    odometry = recording.bag.messages([topics.odometry])
    states = [_state(store.deserialize_cdr(each.raw, ODOMETRY_TYPE)) for each in odometry]
    words = recording.bag.messages([] if topics.command is None else [topics.command])
    commands = [(each.stamp_ns, _command(store.deserialize_cdr(each.raw, COMMAND_TYPE))) for each in words]
    samples = []
    for frames, complete_ns in sets:
        buffer = OdometryBuffer(steps, interval_s)
        for state in states:
            if state.stamp_ns <= frames.t0_ns + 1e9:
                buffer.add(state)
        try:
            history = buffer.history(frames.t0_ns)
        except EgoStateError:
            continue
        command = next((word for at_ns, word in reversed(commands) if at_ns <= complete_ns), Command.NONE)
        samples.append(PlanningSample(frames, history, command))
    every = max(len(samples) / limit, 1.0)
    return [samples[round(k * every)] for k in range(min(limit, len(samples))) if round(k * every) < len(samples)]


def _state(message) -> EgoState:
    place, turn, twist = message.pose.pose.position, message.pose.pose.orientation, message.twist.twist
    stamp = message.header.stamp
    return EgoState(
        stamp_ns=stamp.sec * 10**9 + stamp.nanosec,
        x_m=place.x,
        y_m=place.y,
        yaw_rad=yaw_of_quaternion(turn.x, turn.y, turn.z, turn.w),
        speed_mps=twist.linear.x,
        yaw_rate_radps=twist.angular.z,
    )


def _command(message) -> Command:
    try:
        return Command(message.data.strip().lower())
    except ValueError:
        return Command.NONE
