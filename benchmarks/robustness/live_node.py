"""A live node with a stand-in planner in this process; its callbacks are called directly, without an executor."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from nav_msgs.msg import Odometry
from rclpy.context import Context
from rclpy.impl.logging_severity import LoggingSeverity
from rclpy.logging import set_logger_level
from rclpy.parameter import Parameter
from rclpy.serialization import serialize_message
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CompressedImage, Image

from fastdrive_node.errors import AnswerError, InputError
from fastdrive_node.ros.distribution import LOCAL_DISCOVERY
from fastdrive_node.ros.domain import own_domain
from fastdrive_node.ros.inputs import Inputs
from fastdrive_node.ros.node import FastDriveNode
from fastdrive_node.ros.parameters import Settings
from fastdrive_node.ros.planner_factory import LoadedPlanner
from fastdrive_node.types import CAMERAS, Command, EgoHistory, FrameSet, KeptTokens, Plan

GRID = (len(CAMERAS), 2, 2)
WIDTH, HEIGHT = 8, 6
PATIENCE_S = 20.0


class DirectPlanner:
    """Decodes every image, as the real planner does, and drives straight on; ``behave`` is called before."""

    def __init__(self, behave: Callable[[], None] = lambda: None):
        self.behave = behave
        self.drop = self.default_drop = 0.5
        self.plans = 0

    def check_drop(self, value: float) -> None:
        if value > 0.9:
            raise InputError(f"drop: {value:g} leaves too few tokens")

    def plan(self, frame_set: FrameSet, history: EgoHistory, command: Command) -> Plan:
        for frame in frame_set.frames:
            frame.load()
        self.behave()
        times = 0.5 * np.arange(1, 7)
        waypoints = np.stack([history.now.speed_mps * times, np.zeros(6)], axis=1)
        if not np.isfinite(waypoints).all():
            raise AnswerError("answer: not finite")
        kept = KeptTokens(
            np.arange(int(np.prod(GRID)) // 2), np.linspace(0, 1, int(np.prod(GRID)), dtype=np.float32), GRID
        )
        self.plans += 1
        return Plan(frame_set.t0_ns, waypoints, 0.5, "straight", "nominal", kept, {"total": 1.0})


@contextmanager
def live_node(
    planner: DirectPlanner,
    parameters: Mapping[str, object] | None = None,
    load: Callable[[], None] = lambda: None,
    start: bool = True,
) -> Iterator[FastDriveNode]:
    """A node in a ROS domain of its own, active unless ``start`` is False; ``load`` is called when it is configured."""

    def factory(settings: Settings) -> LoadedPlanner:
        load()
        return LoadedPlanner(planner, CAMERAS, 6, 0.5, lambda: {"vla": "stand-in"})

    context = Context()
    with own_domain() as domain:
        os.environ.update(LOCAL_DISCOVERY)
        rclpy.init(args=[], context=context, domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
        overrides = [Parameter(name, value=value) for name, value in (parameters or {}).items()]
        node = FastDriveNode(factory, context=context, parameter_overrides=overrides)
        for logger in ("fastdrive", "rcl_lifecycle"):  # what is refused is counted, not printed
            set_logger_level(logger, LoggingSeverity.FATAL)
        try:
            if start and not node.start():
                raise RuntimeError("the node cannot be activated")
            yield node
        finally:
            node.destroy_node()
            context.try_shutdown()


def now_ns() -> int:
    return time.time_ns()


def stamp(ns: int) -> Time:
    return Time(sec=ns // 10**9, nanosec=ns % 10**9)


def odometry(ns: int, speed_mps: float = 8.0) -> bytes:
    """A serialized message of a vehicle that drives along x."""
    message = Odometry()
    message.header.stamp, message.header.frame_id = stamp(ns), "map"
    message.pose.pose.position.x = speed_mps * (ns * 1e-9 % 3600)
    message.pose.pose.orientation.w = 1.0
    message.twist.twist.linear.x = speed_mps
    return serialize_message(message)


def image(ns: int, encoding: str = "rgb8", channels: int = 3, shade: int = 90) -> bytes:
    step = WIDTH * channels
    message = Image(height=HEIGHT, width=WIDTH, encoding=encoding, step=step, data=bytes([shade]) * (HEIGHT * step))
    message.header.stamp = stamp(ns)
    return serialize_message(message)


def compressed_image(ns: int, data: bytes, form: str = "jpeg") -> bytes:
    message = CompressedImage(format=form, data=data)
    message.header.stamp = stamp(ns)
    return serialize_message(message)


def plans_a_set(node: FastDriveNode, planner: DirectPlanner, picture: Callable[[int], bytes] = image) -> bool:
    """Whether valid frame sets become a plan within ``PATIENCE_S``; what came before may have to age first."""
    before, until = planner.plans, time.monotonic() + PATIENCE_S
    while planner.plans == before:
        if time.monotonic() > until:
            return False
        ns = now_ns()
        send_set(node, ns, picture)
        time.sleep(0.05)
    return True


def inputs_of(node: FastDriveNode) -> Inputs:
    """Of an active node."""
    assert node._inputs is not None
    return node._inputs


def send_set(node: FastDriveNode, ns: int, picture: Callable[[int], bytes] = image) -> None:
    """Odometry and an image of each camera, all valid."""
    callbacks = inputs_of(node).callbacks
    callbacks["odometry"](odometry(ns))
    for camera in CAMERAS:
        callbacks[camera](picture(ns))
