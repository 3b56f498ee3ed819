"""Subscriptions of the node: images, odometry, driving command, all serialized. They only store; the worker plans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from geometry_msgs.msg import AccelWithCovarianceStamped
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from rclpy.subscription import Subscription
from rclpy.utilities import get_rmw_implementation_identifier
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Float64, String

from fastdrive_node.errors import InputError, ModelError
from fastdrive_node.planning.early_images import EarlyDecoder
from fastdrive_node.ros.cdr import parse_camera_info
from fastdrive_node.ros.distribution import publisher_count
from fastdrive_node.ros.images import camera_frame
from fastdrive_node.ros.messages import acceleration_signal, driving_command, ego_state, steering_signal
from fastdrive_node.ros.parameters import Settings
from fastdrive_node.ros.qos import COMMAND, ODOMETRY, SENSOR, QosLog, subscribe, type_name
from fastdrive_node.ros.topics import (
    ACCELERATION_INPUT,
    COMMAND_INPUT,
    ODOMETRY_INPUT,
    STEERING_INPUT,
    camera_info_topic,
    camera_input,
)
from fastdrive_node.ros.transport import loss_expected
from fastdrive_node.sync.worker import Worker
from fastdrive_node.types import Command


def steering_type(name: str) -> type | None:
    """Of a value of the parameter ``steering_input``. Raises ModelError where the message package is not installed."""
    if name == "none":
        return None
    if name == "float64":
        return Float64
    try:
        from autoware_vehicle_msgs.msg import SteeringReport  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ModelError(
            "steering_input: autoware needs the package autoware_vehicle_msgs; install it, or use float64"
        ) from error
    return SteeringReport


WARN_EVERY_S = 5.0  # of messages that cannot be used


class Inputs:
    """All subscriptions, from activation to deactivation.

    Messages come serialized (``raw``), so that malformed ones are noticed. Of images the header is read, and the pixels
    stay where they are until a set is planned, or ``early`` decodes them.
    """

    def __init__(
        self,
        node: Node,
        worker: Worker,
        cameras: Sequence[str],
        settings: Settings,
        log: QosLog,
        early: EarlyDecoder | None = None,
    ):
        self._node = node
        self._worker = worker
        self.early = early
        self._compressed = settings.compressed
        self._log = log
        self._largest: int | None = None  # bytes of an image message
        self._middleware = get_rmw_implementation_identifier()
        image = CompressedImage if settings.compressed else Image
        steering = steering_type(settings.steering_input)  # raises before there are subscriptions
        self.callbacks: dict[str, Callable[[bytes], None]] = {}  # of serialized messages, by input
        self.unusable: Counter[str] = Counter()  # messages that were ignored, by input
        self.defects: Counter[str] = Counter()  # of them, those by an exception that nobody expected
        self._subscriptions: dict[str, Subscription] = {}
        # The executor takes ready messages in this order: command and odometry arrive before the set they belong to.
        self._add("command", String, COMMAND_INPUT, COMMAND, self._on_command)
        self._add("odometry", Odometry, ODOMETRY_INPUT, ODOMETRY, self._on_odometry)
        if steering is not None:
            self._add("steering", steering, STEERING_INPUT, ODOMETRY, partial(self._on_steering, steering))
        if settings.acceleration_input:
            kind = AccelWithCovarianceStamped
            self._add("acceleration", kind, ACCELERATION_INPUT, ODOMETRY, self._on_acceleration)
        for camera in cameras:
            self._add(camera, image, camera_input(camera), SENSOR, partial(self._on_image, camera))
        kept = [self._subscriptions[camera].qos_profile.reliability for camera in cameras]
        self._reliable = all(policy == ReliabilityPolicy.RELIABLE for policy in kept)  # by qos_overrides
        if text := self.loss_expected():
            node.get_logger().warning(text)
        self._infos = [] if settings.camera_info_check == "off" else self._subscribe_infos(cameras)

    def _add(self, name: str, kind: type, topic: str, qos: QoSProfile, store: Callable[[bytes], None]) -> None:
        self.callbacks[name] = partial(self._take, name, store)
        self._subscriptions[name] = subscribe(self._node, self._log, kind, topic, self.callbacks[name], qos, raw=True)

    def publishers(self) -> dict[str, int]:
        """Matched publishers of every input."""
        return {name: publisher_count(self._node, each) for name, each in self._subscriptions.items()}

    def lost(self) -> dict[str, int]:
        """Messages of every input that the middleware lost, since the node was started."""
        return {name: self._log.lost[each.topic_name] for name, each in self._subscriptions.items()}

    def loss_expected(self) -> str:
        """See ``transport.loss_expected``; by the images that came so far. What is lost on the way to a reliable
        subscription is sent again."""
        if self._reliable or (self._compressed and self._largest is None):
            return ""
        return loss_expected(self._middleware, self._largest)

    def check_publishers(self) -> None:
        """Look at the types of the publishers, and tell the worker their numbers."""
        self._log.check_types([*self._subscriptions.values(), *self._infos])
        self._worker.checks.publishers = self.publishers()

    def destroy(self) -> None:
        subscriptions = [*self._subscriptions.values(), *self._infos]
        self._log.forget(subscriptions)
        for subscription in subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()
        self._infos.clear()
        if self.early is not None:
            self.early.close()

    def _subscribe_infos(self, cameras: Sequence[str]) -> list[Subscription]:
        """Of every camera whose image topic has a namespace of its own."""
        topics = {camera: camera_info_topic(self._subscriptions[camera].topic_name) for camera in cameras}
        number = Counter(topics.values())
        made = []
        for camera, topic in topics.items():
            if number[topic] == 1:
                name = f"{camera} camera_info"
                self.callbacks[name] = partial(self._take, name, partial(self._on_camera_info, camera))
                made.append(subscribe(self._node, self._log, CameraInfo, topic, self.callbacks[name], SENSOR, raw=True))
        return made

    def _on_camera_info(self, camera: str, raw: bytes) -> None:
        try:
            info = parse_camera_info(raw)
        except InputError as error:
            raise InputError(f"{camera}: CameraInfo: {error}") from error
        self._worker.checks.tell_camera_info(camera, info)

    def _on_image(self, camera: str, raw: bytes) -> None:
        received_ns = self._node.get_clock().now().nanoseconds
        self._largest = max(len(raw), self._largest or 0)
        frame = camera_frame(camera, raw, received_ns, self._compressed)
        self._worker.add_frame(frame if self.early is None else self.early.begin(frame, self._worker.set_waits))

    def _on_odometry(self, raw: bytes) -> None:
        self._worker.add_odometry(ego_state(_parsed("odometry", Odometry, raw)))

    def _on_steering(self, kind: type, raw: bytes) -> None:
        now_ns = self._node.get_clock().now().nanoseconds
        self._worker.add_signal(steering_signal(_parsed("steering", kind, raw), now_ns))

    def _on_acceleration(self, raw: bytes) -> None:
        message = _parsed("acceleration", AccelWithCovarianceStamped, raw)
        self._worker.add_signal(acceleration_signal(message))

    def _on_command(self, raw: bytes) -> None:
        try:
            command = driving_command(_parsed("command", String, raw).data)
        except InputError:
            self._worker.set_command(Command.NONE)  # the command before is no longer what is wanted
            raise
        self._worker.set_command(command)

    def _take(self, name: str, store: Callable[[bytes], None], raw: bytes) -> None:
        """Store what a message tells. No message can end the process: an exception in a callback would."""
        try:
            store(raw)
        except InputError as error:
            self.unusable[name] += 1
            self._node.get_logger().warning(str(error), throttle_duration_sec=WARN_EVERY_S)
        except Exception as error:
            self.unusable[name] += 1
            self.defects[name] += 1
            self._node.get_logger().error(
                f"{name}: {type(error).__name__}: {error}; the message is ignored, please report this",
                throttle_duration_sec=WARN_EVERY_S,
            )


def _parsed(name: str, kind: type, raw: bytes) -> Any:
    """Raises InputError for bytes that are no such message, on which a subscription that parses would be silent."""
    try:
        return deserialize_message(raw, kind)
    except Exception as error:  # RMWError of the middleware, UnicodeDecodeError, ...
        raise InputError(f"{name}: {len(raw)} bytes that are no {type_name(kind)}; the message is ignored") from error
