"""The node's program: how it spins, and what ends it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e .[ros]")

from rclpy.executors import SingleThreadedExecutor
from rclpy.task import Future

from fastdrive_node.ros.program import spin


class CountingFuture(Future):
    """Counts the callbacks that it is given to keep."""

    kept = 0

    def add_done_callback(self, callback):
        self.kept += 1
        super().add_done_callback(callback)


def test_spinning_keeps_nothing_of_a_callback_and_ends_with_the_future(ros):
    node, ended, calls = ros.create_node("spun"), CountingFuture(), []

    def call() -> None:
        calls.append(None)
        if len(calls) == 50:
            ended.set_result("the model cannot be loaded")

    node.create_timer(0.001, call)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    spin(executor, ended)
    executor.shutdown(0)
    node.destroy_node()
    assert len(calls) == 50 and ended.kept == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-r", "~/input/odometry:=a b"], "failed to initialize rcl: Couldn't parse remap rule"),
        (["-p", "drop:='0.5'"], "drop: '0.5': of type str, not float\n"),
    ],
)
def test_arguments_that_cannot_be_read_end_the_program_with_1_and_the_reason_last(capfd, words, expected):
    ended = subprocess.run([sys.executable, "-m", "fastdrive_node.ros", "--ros-args", *words], timeout=120)
    said = capfd.readouterr().err
    assert ended.returncode == 1 and "Traceback" not in said
    assert f"fastdrive_node: {expected}" in said[said.index("fastdrive_node: ") :]


NODE = """
import time
from fastdrive_node.ros.program import end_with_launcher
end_with_launcher()
print("ready", flush=True)
time.sleep(90)
"""
LAUNCH = f"""
import os, subprocess, sys, time
told = {{**os.environ, "FASTDRIVE_LAUNCHER": str(os.getpid())}}
node = subprocess.Popen([sys.executable, "-c", {NODE!r}], env=told, stdout=subprocess.PIPE)
node.stdout.readline()
print(node.pid, flush=True)
time.sleep(90)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_node_does_not_outlive_the_launch_that_started_it(ros, number):
    launch = subprocess.Popen([sys.executable, "-c", LAUNCH], stdout=subprocess.PIPE, text=True)
    assert launch.stdout is not None  # a pipe
    node = Path(f"/proc/{int(launch.stdout.readline())}/stat")
    assert node.exists()
    launch.send_signal(number)
    launch.wait(30)
    until = time.monotonic() + 20
    while node.exists() and node.read_text().split()[2] != "Z" and time.monotonic() < until:
        time.sleep(0.05)
    assert time.monotonic() < until
