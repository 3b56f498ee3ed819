"""Large images from another process: how many frame sets arrive, and how long after their stamp they are complete.

``python -m benchmarks.robustness.reception --json benchmarks/results/reception.json`` sends six raw images of 1600x900
and an odometry message 12 times a second from a process of its own, with the shipped Fast DDS profile, to a live node
whose planner takes no time. Both processes have the settings of malloc that the launch files give, unless
``--malloc default``. The stamp is taken before the first of the six is sent, so the time includes the copies of 26 MB
in the sender. Sets of the first second, in which the two find each other, do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.studies.summary import summarize, to_text
from fastdrive_node.ros.transport import TUNABLES, memory_environment, profile_environment
from fastdrive_node.types import CAMERAS, Command, EgoHistory, FrameSet, Plan

CONNECT_S = 20.0
SETTLE_S = 1.0


def publish(topics: Sequence[str], hz: float, seconds: float, size: tuple[int, int]) -> None:
    """Send sets at a steady pace; ``topics`` are those of the cameras, then the odometry's. Prints how many counted."""
    import rclpy
    from nav_msgs.msg import Odometry
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image

    from benchmarks.robustness.live_node import now_ns, odometry, stamp

    rclpy.init()
    node = rclpy.create_node("drivers")
    images = [node.create_publisher(Image, topic, qos_profile_sensor_data) for topic in topics[:-1]]
    motion = node.create_publisher(Odometry, topics[-1], 50)
    until = time.monotonic() + CONNECT_S
    while not all(each.get_subscription_count() for each in (*images, motion)):
        if time.monotonic() > until:
            sys.exit(f"no subscription to {', '.join(topics)} within {CONNECT_S:g} s")
        time.sleep(0.05)
    width, height = size
    message = Image(width=width, height=height, encoding="rgb8", step=3 * width, data=bytes(3 * width * height))
    sent, begun = 0, time.monotonic()
    while (due := begun + sent / hz) < begun + SETTLE_S + seconds:
        time.sleep(max(0.0, due - time.monotonic()))
        message.header.stamp = stamp(now_ns())
        for camera, each in zip(CAMERAS, images, strict=True):
            message.header.frame_id = camera
            each.publish(message)
        motion.publish(odometry(now_ns()))
        sent += 1
    time.sleep(0.5)
    print(sent - round(SETTLE_S * hz), flush=True)
    node.destroy_node()
    rclpy.shutdown()


def measure(hz: float, seconds: float, size: tuple[int, int]) -> dict:
    """The figures of one run."""
    os.environ |= profile_environment()
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.task import Future

    from benchmarks.robustness.live_node import DirectPlanner, live_node
    from fastdrive_node.ros.program import spin
    from fastdrive_node.ros.topics import ODOMETRY_INPUT, camera_input

    complete_ms: list[float] = []
    late: list[float] = []

    class Noting(DirectPlanner):
        def plan(self, frame_set: FrameSet, history: EgoHistory, command: Command) -> Plan:
            arrived = [(frame.received_ns - frame_set.t0_ns) * 1e-6 for frame in frame_set.frames]
            complete_ms.append(max(arrived))
            late.append(max(arrived) - min(arrived))
            return super().plan(_without_pixels(frame_set), history, command)

    checks = {name: "off" for name in ("odometry_speed_check", "odometry_motion_check")}
    with live_node(Noting(), checks) as node:
        inputs = [*map(camera_input, CAMERAS), ODOMETRY_INPUT]
        topics = [name.replace("~", f"/{node.get_name()}") for name in inputs]
        executor = SingleThreadedExecutor(context=node.context)
        executor.add_node(node)
        ended = Future()
        thread = threading.Thread(target=spin, args=(executor, ended))
        thread.start()
        words = [sys.executable, "-m", "benchmarks.robustness.reception", "--publish", *topics]
        words += ["--hz", str(hz), "--seconds", str(seconds), "--size", *map(str, size)]
        environment = {**os.environ, "ROS_DOMAIN_ID": str(node.context.get_domain_id())}
        try:
            done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        finally:
            ended.set_result(None)
            executor.wake()
            thread.join()
            executor.remove_node(node)
    sent = int(done.stdout)
    counted = complete_ms[-sent:] if len(complete_ms) > sent else complete_ms
    p50, p99 = np.percentile(counted, [50, 99]) if counted else (float("nan"),) * 2
    return {
        "sent_sets": sent,
        "planned_sets": len(counted),
        "hz": hz,
        "size": list(size),
        "malloc": os.environ.get(TUNABLES) or "default",
        "cameras": len(CAMERAS),
        "complete_ms": {"p50": round(float(p50), 2), "p99": round(float(p99), 2), "worst": round(max(counted), 2)},
        "first_to_last_image_ms_p50": round(float(np.median(late[-len(counted) :])), 2),
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }


def _without_pixels(frame_set: FrameSet) -> FrameSet:
    """Reception alone is measured: nothing is decoded."""
    from dataclasses import replace

    return replace(frame_set, frames=())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hz", type=float, default=12.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--size", type=int, nargs=2, default=(1600, 900), metavar=("W", "H"))
    parser.add_argument("--malloc", choices=("launch", "default"), default="launch", help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, help="(default: standard output)")
    parser.add_argument("--publish", nargs="+", metavar="TOPIC", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    size = (args.size[0], args.size[1])
    if args.publish:
        publish(args.publish, args.hz, args.seconds, size)
        return
    if args.malloc == "launch" and (tunables := memory_environment()):  # which glibc reads when a process starts
        words = [sys.executable, "-m", "benchmarks.robustness.reception", *(arguments or sys.argv[1:])]
        sys.exit(subprocess.run(words, env={**os.environ, **tunables}).returncode)
    text = to_text(summarize(measure(args.hz, args.seconds, size)))
    if args.json is None:
        print(text)
    else:
        args.json.write_text(text + "\n")
        print(json.dumps(json.loads(text)))


if __name__ == "__main__":
    main()
