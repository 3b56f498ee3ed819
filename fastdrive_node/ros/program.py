"""From the start of the node's program to its end."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys

import rclpy
from rclpy._rclpy_pybind11 import RCLError
from rclpy.exceptions import ParameterException
from rclpy.executors import Executor, ExternalShutdownException, SingleThreadedExecutor
from rclpy.task import Future
from rclpy.utilities import get_default_context, ok, try_shutdown

from fastdrive_node import logs
from fastdrive_node.ros.node import FastDriveNode
from fastdrive_node.ros.planner_factory import PlannerFactory, make_planner
from fastdrive_node.ros.transport import remove_dead_segments

LAUNCHER = "FASTDRIVE_LAUNCHER"  # the process that is not to be outlived; the launch file sets it
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def end_with_launcher() -> None:
    """Be told by SIGTERM when the launch ends: at a SIGTERM `ros2 launch` ends and leaves its nodes running."""
    if sys.platform == "linux" and os.environ.get(LAUNCHER) == str(os.getppid()):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def spin(executor: Executor, ended: Future) -> None:
    """Run callbacks until the context ends, or one of them ends the future.

    rclpy's ``spin_until_future_complete`` adds a callback to the future for every message, 270 bytes that stay.
    """
    while executor.context.ok() and not ended.done():
        executor.spin_once()


def main(arguments: list[str] | None = None, planner_factory: PlannerFactory = make_planner) -> int:
    """Run the node until it is told to stop. Returns 0, or 1 where it could not start."""
    logs.set_up()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # rclpy calls the handlers that it finds, after its own
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_launcher()
    dead, freed = remove_dead_segments()
    try:
        rclpy.init(args=arguments)
    except (RCLError, ValueError) as error:  # a parameter file, remapping or variable that rcl cannot read
        text = re.sub(r", at /\S+:\d+", "", " ".join(str(error).split()))  # of rcl's sources
        print(f"fastdrive_node: {text}", file=sys.stderr)
        return 1
    node = executor = None
    try:
        node = FastDriveNode(planner_factory)
        if dead:
            text = f"{dead} segments of killed processes are removed from /dev/shm: {freed / 1e6:.0f} MB"
            node.get_logger().info(text)
        if node.settings.autostart and not node.start():
            return 1
        # 360 of 360 images of 4.3 MB at 60 a second, 7 ms after their stamp (p50); with more threads fewer arrive, for
        # taking a message holds the GIL, and the experimental EventsExecutor of rclpy 7.1.6's wheels delivered none.
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        spin(executor, node.failed if node.settings.autostart else Future())
        if node.settings.autostart and node.failed.done():
            return 1
    except ParameterException as error:
        print(f"fastdrive_node: {str(error).removesuffix(': []')}", file=sys.stderr)  # rclpy's list of names
        return 1
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except RCLError:
        if ok():
            raise
        # else a signal ended the context in the middle of a call
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal and a launch file each send one
        if executor is not None:
            executor.shutdown(0)
        if node is not None:
            node.destroy_node()
        try_shutdown()
        # Its last user is gone, so that the middleware ends here. Else its segment, 140 MB with the shipped profile,
        # would stay in /dev/shm after an exit that skips Python's own end.
        get_default_context().destroy()
    return 0
