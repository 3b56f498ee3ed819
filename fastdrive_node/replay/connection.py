"""The replay's ROS node: it publishes a bag's messages and /clock, and hears the node's records."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import AccelWithCovarianceStamped
from nav_msgs.msg import Odometry
from rcl_interfaces.srv import GetParameters
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from fastdrive_node.errors import FastDriveError
from fastdrive_node.record import MODE, PlanRecord
from fastdrive_node.replay.bag import BagMessage
from fastdrive_node.ros.diagnostics import ACTIVE, LIFECYCLE_KEY, MODEL_STATUS, PLANNER_STATUS
from fastdrive_node.ros.distribution import publisher_count
from fastdrive_node.ros.messages import time_message
from fastdrive_node.ros.qos import RECORDS
from fastdrive_node.ros.topics import TopicMap

CLOCK_STEP_S = 0.02  # wall time between two messages on /clock
SILENCE_S = 120.0  # of wall time, until the replay gives a node up


@dataclass(frozen=True)
class Arrival:
    """A record with the wall time of its arrival, by the monotonic clock."""

    record: PlanRecord
    at_s: float


class PublishedTopics(Protocol):
    """What is published: a ``Recording``, or the simulator."""

    @property
    def topics(self) -> TopicMap: ...

    @property
    def compressed(self) -> bool: ...


class NodeConnection:
    """One participant with the publishers of the node's inputs; a context manager.

    Args:
        inputs: their topics.
        node: fully qualified name, without the leading slash.
        domain: ROS domain id; None for that of the environment.
        check: raises where the node's process has ended.
        steering: type of the steering topic, where there is one.
    """

    def __init__(
        self,
        inputs: PublishedTopics,
        node: str,
        domain: int | None,
        check: Callable[[], None],
        steering: type | None = None,
    ):
        self._inputs = inputs
        self._steering = steering
        self._name = node
        self._domain = domain
        self._check_process = check
        self._changed = threading.Condition()
        self._failure: Exception | None = None
        self._active: bool | None = None  # None: no diagnostics yet
        self.identity: dict[str, str] = {}  # what the node says of its model
        self.arrivals: list[Arrival] = []
        self.time_ns = 0  # what /clock said last

    def __enter__(self) -> NodeConnection:
        self._context = Context()
        rclpy.init(
            args=[], context=self._context, domain_id=self._domain, signal_handler_options=SignalHandlerOptions.NO
        )
        self._node = rclpy.create_node(f"fastdrive_replay_{os.getpid()}", context=self._context)
        self._clock = self._node.create_publisher(Clock, "/clock", 10)
        self._publishers = {topic: self._advertise(topic) for topic in self._inputs.topics.topics()}
        self._records = self._node.create_subscription(
            String, f"/{self._name}/output/plan_json", self._on_record, RECORDS
        )
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        # The last endpoint: a participant announces them in the order of creation, see ``wait_until_ready``.
        self._parameters = self._node.create_client(GetParameters, f"/{self._name}/get_parameters")
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
        """Let ``wait`` return now."""
        with self._changed:
            self._changed.notify_all()

    def wait(self, seconds: float = CLOCK_STEP_S) -> None:
        """Until something arrives, at most ``seconds``. Raises FastDriveError where the node has ended."""
        with self._changed:
            self._changed.wait(seconds)
        self._check_process()
        if self._failure is not None:
            raise self._failure

    def wait_until_ready(self, startup_s: float, connect_s: float) -> None:
        """Until the node is active, and then until every topic is matched on both ends.

        The reply to a request shows that the node has matched this participant's last endpoint, and so all of them.

        Raises:
            FastDriveError: one of them takes longer; the text says what is missing.
        """
        self._wait_for(self._inactive, startup_s)
        self._wait_for(self._unconnected, connect_s)
        if not self.round_trip(connect_s):
            raise FastDriveError(f"the node {self._name} does not follow /clock; start it with use_sim_time:=true")

    def tell_time(self, ns: int) -> None:
        self.time_ns = ns
        self._clock.publish(Clock(clock=time_message(ns)))

    def set_time(self, ns: int) -> None:
        """Tell the time and wait until the node has it."""
        self.tell_time(ns)
        self.round_trip()

    def publish(self, message: BagMessage) -> None:
        self._publishers[message.topic].publish(message.raw)

    def round_trip(self, timeout_s: float = SILENCE_S) -> bool:
        """Wait until the node has handled what was published before. Returns its parameter use_sim_time.

        A node's executor takes what waits on its topics before it answers a request.

        Raises:
            FastDriveError: the node does not answer.
        """
        reply = self._parameters.call_async(GetParameters.Request(names=["use_sim_time"]))
        reply.add_done_callback(lambda _: self.wake())
        self._wait_for(lambda: [] if reply.done() else ["no reply from its parameter service"], timeout_s)
        answer = reply.result()
        assert answer is not None
        return answer.values[0].bool_value

    def _wait_for(self, missing: Callable[[], list[str]], timeout_s: float) -> None:
        give_up_at = time.monotonic() + timeout_s
        while reasons := missing():
            if time.monotonic() > give_up_at:
                raise FastDriveError(f"the node {self._name} was not ready in {timeout_s:.0f} s: {'; '.join(reasons)}")
            self.wait()

    def _advertise(self, topic: str):
        inputs = self._inputs.topics
        if topic == inputs.odometry:
            return self._node.create_publisher(Odometry, topic, 50)
        if topic == inputs.command:
            return self._node.create_publisher(String, topic, 10)
        if topic == inputs.steering:
            assert self._steering is not None
            return self._node.create_publisher(self._steering, topic, 50)
        if topic == inputs.acceleration:
            return self._node.create_publisher(AccelWithCovarianceStamped, topic, 50)
        kind = CompressedImage if self._inputs.compressed else Image
        return self._node.create_publisher(kind, topic, QoSProfile(depth=5))

    def _inactive(self) -> list[str]:
        if self._active is None:
            return ["no diagnostics from it; is it running, with this name, in this ROS domain?"]
        return [] if self._active else ["it is not active, or its model is not loaded"]

    def _unconnected(self) -> list[str]:
        missing = [
            f"it does not subscribe to {topic}"
            for topic, publisher in self._publishers.items()
            if not publisher.get_subscription_count()
        ]
        if not publisher_count(self._node, self._records):
            missing.append("its output/plan_json is not connected")
        if not self._parameters.service_is_ready():
            missing.append("its parameter service is not connected")
        return missing

    def _on_record(self, message: String) -> None:
        try:
            values = json.loads(message.data)
            if values.get("kind") == MODE:
                return
            arrival = Arrival(PlanRecord.from_dict(values), time.monotonic())
        except (
            FastDriveError,
            ValueError,
            AttributeError,
            RecursionError,
        ) as error:  # raised by ``wait``, in the replay's thread
            self._failure = FastDriveError(f"{self._records.topic_name}: {error}")
        with self._changed:
            if self._failure is None:
                self.arrivals.append(arrival)
            self._changed.notify_all()

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        parts = {status.name: {pair.key: pair.value for pair in status.values} for status in message.status}
        planner = parts.get(f"{self._name}: {PLANNER_STATUS}")
        if planner is None:
            return
        with self._changed:
            self.identity = parts.get(f"{self._name}: {MODEL_STATUS}", {})
            self._active = planner.get(LIFECYCLE_KEY) == ACTIVE and bool(self.identity)  # empty until it is loaded
            self._changed.notify_all()
