"""Publishes a bag with its timing and /clock to a node, and collects what the node makes of it.

Nothing is timed by guess: the node's diagnostics say when its inputs are matched and which time it has, and its records
say what became of every set.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from fastdrive_node.errors import FastDriveError
from fastdrive_node.replay.bag import Bag, SetCounter
from fastdrive_node.ros.messages import stamp_ns, time_message
from fastdrive_node.ros.qos import RECORDS
from fastdrive_node.ros.topics import TopicMap

CLOCK_STEP_S = 0.02  # wall time between two messages on /clock
LINGER_S = 2.0  # of silence from an idle node, until a set without a record counts as lost on the way
SILENCE_S = 120.0  # from a busy node, until the replay gives up
MIN_JUMP_NS = 1_000_000_000  # a loop is a jump back of at least this, or the node could take it for jitter


@dataclass(frozen=True)
class NodeReport:
    """What the last diagnostics of the node say."""

    stamp_ns: int
    active: bool = False
    busy: bool = True
    records_readers: int = 0
    publishers: dict[str, int] = field(default_factory=dict)
    identity: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LoopResult:
    """One pass over the bag."""

    counter: SetCounter
    records: list[dict]  # in the order of their arrival


class Player:
    """One participant with the bag's publishers; a context manager.

    Args:
        node: fully qualified name, without the leading slash.
        domain: ROS domain id; None for that of the environment.
        check: raises where the node's process has ended.
    """

    def __init__(
        self,
        bag: Bag,
        topics: TopicMap,
        cameras: Sequence[str],
        compressed: bool,
        rate: float,
        node: str,
        domain: int | None,
        check: Callable[[], None],
    ):
        self._bag = bag
        self._topics = TopicMap({c: topics.cameras[c] for c in cameras}, topics.odometry, topics.command, topics.name)
        self._compressed = compressed
        self._rate = rate
        self._name = node
        self._domain = domain
        self._check = check
        self._changed = threading.Condition()
        self._report = NodeReport(stamp_ns=-1)
        self._records: list[dict] = []
        self._start_wall = time.monotonic()  # of the pass
        self._heard_at = self._start_wall  # the last record

    def __enter__(self) -> Player:
        self._context = rclpy.Context()
        rclpy.init(
            args=[], context=self._context, domain_id=self._domain, signal_handler_options=SignalHandlerOptions.NO
        )
        self._node = rclpy.create_node(f"fastdrive_replay_{os.getpid()}", context=self._context)
        self._clock = self._node.create_publisher(Clock, "/clock", 10)
        self._publishers = {topic: self._advertise(topic) for topic in self._topics.topics()}
        self._node.create_subscription(String, f"/{self._name}/output/plan_json", self._on_record, RECORDS)
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown()
        self._thread.join()
        self._node.destroy_node()
        self._context.try_shutdown()

    def wake(self) -> None:
        """Look at ``check`` now."""
        with self._changed:
            self._changed.notify_all()

    @property
    def identity(self) -> dict[str, str]:
        """What the node says of its model."""
        return self._report.identity

    def wait_until_ready(self, startup_s: float, connect_s: float) -> None:
        """Until the node is active, and then until it follows /clock and every topic is matched on both sides.

        Raises:
            FastDriveError: one of them takes longer; the text says what is missing.
        """
        self._sync(self._bag.start_ns, startup_s, self._inactive, same_time=False)
        self._sync(self._bag.start_ns, connect_s, self._unconnected)

    def play(self, counter: SetCounter) -> LoopResult:
        """One pass over the bag; returns when every set has its record, or cannot get one any more."""
        first_record = len(self._records)
        self._start_wall = time.monotonic()
        for message in self._bag.messages(self._topics.topics()):
            self._advance(message.stamp_ns)
            self._publishers[message.topic].publish(message.raw)
            counter.add(message)
        counter.finish(self._bag.end_ns)
        self._settle(counter, first_record)
        return LoopResult(counter, self._records[first_record:])

    def rewind(self) -> None:
        """Let time jump back to the bag's start, and wait until the node has seen it."""
        self._sync(max(self._time_ns(), self._bag.start_ns + MIN_JUMP_NS), SILENCE_S, list)
        self._sync(self._bag.start_ns, SILENCE_S, list)

    def _advertise(self, topic: str):
        if topic == self._topics.odometry:
            return self._node.create_publisher(Odometry, topic, 50)
        if topic == self._topics.command:
            return self._node.create_publisher(String, topic, 10)
        return self._node.create_publisher(CompressedImage if self._compressed else Image, topic, QoSProfile(depth=5))

    def _time_ns(self) -> int:
        return self._bag.start_ns + round((time.monotonic() - self._start_wall) * self._rate * 1e9)

    def _tell_time(self, ns: int) -> None:
        self._clock.publish(Clock(clock=time_message(ns)))

    def _advance(self, until_ns: int) -> None:
        """Tell the time until a message is due."""
        while (ahead_s := (until_ns - self._time_ns()) * 1e-9 / self._rate) > 0:
            with self._changed:
                self._changed.wait(min(ahead_s, CLOCK_STEP_S))
            self._check()
            self._tell_time(min(self._time_ns(), until_ns))
        self._tell_time(until_ns)

    def _settle(self, counter: SetCounter, first_record: int) -> None:
        expected = {*counter.complete, *(refusal.t0_ns for refusal in counter.incomplete)}
        ended_at = time.monotonic()
        linger_ns = self._bag.end_ns + LINGER_S * 1e9
        while expected - {record["t0_ns"] for record in self._records[first_record:]}:
            with self._changed:
                self._changed.wait(CLOCK_STEP_S)
            self._check()
            self._tell_time(max(self._time_ns(), self._bag.end_ns))
            silent_s = time.monotonic() - max(self._heard_at, ended_at)
            if not self._report.busy and self._report.stamp_ns > linger_ns and silent_s > LINGER_S:
                return
            if silent_s > SILENCE_S:
                raise FastDriveError(f"the node has given no plan for {SILENCE_S:.0f} s; is --rate too high for it?")

    def _sync(self, ns: int, timeout_s: float, unready: Callable[[], list[str]], same_time: bool = True) -> None:
        """Tell one time until the node's diagnostics carry it and nothing else is missing."""
        give_up_at = time.monotonic() + timeout_s
        while (missing := unready()) or (same_time and self._report.stamp_ns != ns):
            self._check()
            if time.monotonic() > give_up_at:
                missing = missing or ["it does not follow /clock; start it with use_sim_time:=true"]
                raise FastDriveError(f"the node {self._name} was not ready in {timeout_s:.0f} s: {'; '.join(missing)}")
            self._tell_time(ns)
            with self._changed:
                self._changed.wait(5 * CLOCK_STEP_S)

    def _inactive(self) -> list[str]:
        if self._report.stamp_ns < 0:
            return ["no diagnostics from it; is it running, with this name, in this ROS domain?"]
        return [] if self._report.active else ["it is not active"]

    def _unconnected(self) -> list[str]:
        """Which topics are not matched on both sides."""
        report = self._report
        inputs = {**self._topics.cameras, "odometry": self._topics.odometry}
        if self._topics.command:
            inputs["command"] = self._topics.command
        missing = [
            f"{name} is not connected to {topic}"
            for name, topic in inputs.items()
            if not report.publishers.get(name) or not self._publishers[topic].get_subscription_count()
        ]
        if not report.records_readers:
            missing.append("its output/plan_json is not connected")
        return missing

    def _on_record(self, message: String) -> None:
        record = json.loads(message.data)
        with self._changed:
            self._heard_at = time.monotonic()  # /clock is too coarse to time with
            due_s = self._start_wall + (record["t0_ns"] - self._bag.start_ns) * 1e-9 / self._rate
            self._records.append({**record, "end_to_end_ms": (self._heard_at - due_s) * 1e3})
            self._changed.notify_all()

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        parts = {
            status.name.removeprefix(f"{self._name}: "): {pair.key: pair.value for pair in status.values}
            for status in message.status
            if status.name.startswith(f"{self._name}: ")
        }
        if "planner" not in parts:
            return
        planner = parts["planner"]
        report = NodeReport(
            stamp_ns=stamp_ns(message.header.stamp),
            active=planner.get("lifecycle") == "active",
            busy=planner.get("busy") != "False",
            records_readers=int(planner.get("plan_json_readers", 0)),
            publishers={name: int(count) for name, count in parts.get("topics", {}).items()},
            identity=parts.get("model", {}),
        )
        with self._changed:
            self._report = report
            self._changed.notify_all()
