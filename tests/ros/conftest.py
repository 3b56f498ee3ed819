"""A ROS context of the tests' own, and a rig that holds the node and talks to it."""

from __future__ import annotations

import io
import json
import threading
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image

from fastdrive_node.types import CAMERAS
from tests.ros import launch_stand_ins
from tests.ros.fake_planner import FakePlanner, factory_of

launch_stand_ins.install()

RECORDS = "/fastdrive/output/plan_json"
PATIENCE_S = 30.0  # for an event that must come; only a failing test waits that long


def jpeg_image(shade: int = 90, size: tuple[int, int] = (32, 24)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), shade, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


class Rig:
    """The node under test, with a fake planner unless a factory is given, and a second node that sends and collects."""

    _place: tuple[int, float] | None = None  # stamp and x of the last odometry

    def __init__(self, rclpy, planner: FakePlanner | None = None, start: bool = True, factory=None, **parameters):
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.parameter import Parameter

        from fastdrive_node.ros.node import FastDriveNode

        self.planner = planner or FakePlanner()
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        self.node = FastDriveNode(factory or factory_of(self.planner), parameter_overrides=overrides)
        self.peer = rclpy.create_node("peer")
        self.messages = defaultdict(list)
        self._changed = threading.Condition()
        self._publishers = {}
        self._executor = SingleThreadedExecutor()
        for node in (self.node, self.peer):
            self._executor.add_node(node)
        self._closing = False
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self.compressed = self.node.settings.compressed
        if start:
            assert self.node.start()
        self._thread.start()

    def start(self) -> None:
        """Configure and activate the node."""
        assert self.call(self.node.start)

    def is_spinning(self) -> bool:
        """Whether no callback has raised, and none has ended the executor's thread."""
        return self._thread.is_alive() and not self.node.failed_callbacks

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except Exception:  # a handle that ``close`` has destroyed meanwhile
            if not self._closing:
                raise

    def close(self) -> None:
        self._closing = True
        self.planner.hold.set()
        self._executor.shutdown()
        self._thread.join()
        self.node.destroy_node()
        self.peer.destroy_node()

    def call(self, function):
        """Call a function in the executor's thread, as a service would; rclpy cannot destroy what another waits for."""
        future = self._executor.create_task(function)
        self.wait(future.done, "the end of the call")
        return future.result()

    def advertise(self, kind: type, topic: str, qos=10):
        publisher = self.peer.create_publisher(kind, topic, qos)
        self._publishers[topic] = publisher
        return publisher

    def listen(self, kind: type, topic: str, qos=10) -> list:
        """Messages of a topic as they come; waits until the node's publisher is matched."""

        def store(message):
            with self._changed:
                self.messages[topic].append(message)
                self._changed.notify_all()

        from fastdrive_node.ros.distribution import publisher_count

        subscription = self.peer.create_subscription(kind, topic, store, qos)
        self.wait(lambda: publisher_count(self.peer, subscription) > 0, f"a publisher of {topic}")
        return self.messages[topic]

    def wait(self, condition, what: str, patience_s: float = PATIENCE_S):
        """Wait for a condition; looked at on every message and every 20 ms. Fails after ``patience_s``."""
        with self._changed:
            waited = 0.0
            while not (result := condition()):
                self._changed.wait(0.02)
                waited += 0.02
                assert waited < patience_s, f"no {what} after {patience_s} s"
            return result

    def connect_inputs(self, cameras: tuple[str, ...] = CAMERAS) -> None:
        """Publishers of every input, matched in both directions."""
        from nav_msgs.msg import Odometry
        from rclpy.qos import qos_profile_sensor_data
        from sensor_msgs.msg import CompressedImage, Image
        from std_msgs.msg import String

        kind = CompressedImage if self.compressed else Image
        for camera in cameras:
            self.advertise(kind, f"/fastdrive/input/{camera.lower()}/image", qos_profile_sensor_data)
        self.advertise(Odometry, "/fastdrive/input/odometry")
        self.advertise(String, "/fastdrive/input/command")
        self.wait(self.is_connected, "the inputs to be matched")

    def is_connected(self) -> bool:
        theirs = self.node._inputs.publishers().values()
        return all(count for count in theirs) and all(
            publisher.get_subscription_count() for publisher in self._publishers.values()
        )

    def now_ns(self) -> int:
        return self.node.get_clock().now().nanoseconds

    def send_odometry(self, stamp_ns: int, speed: float = 8.0) -> None:
        from nav_msgs.msg import Odometry

        message = Odometry()
        message.header.stamp = stamp_message(stamp_ns)
        before_ns, x_m = self._place or (stamp_ns, 0.0)
        x_m += speed * (stamp_ns - before_ns) * 1e-9  # as the speed says, else the node would warn of it
        self._place = (stamp_ns, x_m)
        message.pose.pose.position.x = x_m
        message.pose.pose.orientation.w = 1.0
        message.twist.twist.linear.x = speed
        self._publishers["/fastdrive/input/odometry"].publish(message)

    def send_image(self, camera: str, stamp_ns: int, data: bytes | None = None, frame_id: str = "", **changes) -> None:
        from sensor_msgs.msg import CompressedImage, Image

        if self.compressed:
            message = CompressedImage(format="jpeg", data=jpeg_image() if data is None else data)
        else:
            fields = {
                "height": 24,
                "width": 32,
                "step": 96,
                "encoding": "rgb8",
                "data": bytes(24 * 96) if data is None else data,
            }
            message = Image(**{**fields, **changes})
        message.header.stamp, message.header.frame_id = stamp_message(stamp_ns), frame_id
        self._publishers[f"/fastdrive/input/{camera.lower()}/image"].publish(message)

    def send_set(
        self,
        stamp_ns: int,
        skip: tuple[str, ...] = (),
        bad: dict | None = None,
        cameras: tuple[str, ...] = CAMERAS,
        speed: float = 8.0,
    ) -> None:
        """Odometry and an image of each camera, of one stamp; ``bad`` changes the image of a camera."""
        self.send_odometry(stamp_ns, speed)
        for camera in cameras:
            if camera not in skip:
                self.send_image(camera, stamp_ns, **(bad or {}).get(camera, {}))


def stamp_message(ns: int):
    from builtin_interfaces.msg import Time

    return Time(sec=ns // 10**9, nanosec=ns % 10**9)


def records_of(rig: Rig) -> list[dict]:
    """Records of frame sets, without those of mode changes."""
    return [record for message in rig.messages[RECORDS] if (record := json.loads(message.data))["kind"] != "mode"]


def next_record(rig: Rig, count: int) -> dict:
    """Waits for the record of this number, counted from 1."""
    rig.wait(lambda: len(records_of(rig)) >= count, f"record {count}")
    return records_of(rig)[count - 1]


def connected(rig: Rig) -> Rig:
    """Publishers of every input and a reader of the records, matched."""
    from std_msgs.msg import String

    rig.listen(String, RECORDS)
    rig.connect_inputs()
    rig.wait(lambda: rig.node._outputs.readers() > 0, "the records to be matched")
    return rig


def diagnostics(rig: Rig) -> dict:
    """The newest status of each part; the rig listens to /diagnostics."""
    messages = rig.messages["/diagnostics"]
    rig.wait(lambda: messages, "diagnostics")
    return {status.name.split(": ")[1]: status for status in messages[-1].status}


def values(status) -> dict[str, str]:
    return {pair.key: pair.value for pair in status.values}


@pytest.fixture
def rig(ros):
    """Makes rigs, and closes them: ``rig(image_transport="compressed")``."""
    made = []

    def make(**parameters) -> Rig:
        made.append(Rig(ros, **parameters))
        return made[-1]

    yield make
    for each in made:
        each.close()
