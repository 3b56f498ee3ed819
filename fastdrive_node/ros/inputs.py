"""Subscriptions of the node: serialized images, odometry, driving command. They only store; the worker plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from geometry_msgs.msg import AccelWithCovarianceStamped
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.utilities import get_rmw_implementation_identifier
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Float64, String

from fastdrive_node.errors import InputError, ModelError
from fastdrive_node.ros.distribution import publisher_count
from fastdrive_node.ros.images import camera_frame
from fastdrive_node.ros.messages import acceleration_signal, driving_command, ego_state, steering_signal
from fastdrive_node.ros.parameters import Settings
from fastdrive_node.ros.qos import COMMAND, ODOMETRY, SENSOR, QosLog, subscribe
from fastdrive_node.ros.topics import ACCELERATION_INPUT, COMMAND_INPUT, ODOMETRY_INPUT, STEERING_INPUT, camera_input
from fastdrive_node.ros.transport import loss_expected
from fastdrive_node.sync.worker import Worker
from fastdrive_node.types import Command


def _steering_type(name: str) -> type:
    """Raises ModelError where the message package is not installed."""
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

    Images come serialized (``raw``): their header is read and the pixels stay where they are until a set is planned.
    """

    def __init__(self, node: Node, worker: Worker, cameras: Sequence[str], settings: Settings, log: QosLog):
        self._node = node
        self._worker = worker
        self._compressed = settings.compressed
        self._log = log
        self._largest: int | None = None  # bytes of an image message
        self._middleware = get_rmw_implementation_identifier()
        if text := self.loss_expected():
            node.get_logger().warning(text)
        image = CompressedImage if settings.compressed else Image
        # The executor takes ready messages in this order: command and odometry arrive before the set they belong to.
        self._subscriptions = {
            "command": subscribe(node, log, String, COMMAND_INPUT, self._on_command, COMMAND),
            "odometry": subscribe(node, log, Odometry, ODOMETRY_INPUT, self._on_odometry, ODOMETRY),
        }
        if settings.steering_input != "none":
            message = _steering_type(settings.steering_input)
            self._subscriptions["steering"] = subscribe(node, log, message, STEERING_INPUT, self._on_steering, ODOMETRY)
        if settings.acceleration_input:
            self._subscriptions["acceleration"] = subscribe(
                node, log, AccelWithCovarianceStamped, ACCELERATION_INPUT, self._on_acceleration, ODOMETRY
            )
        for camera in cameras:
            callback = self._image_callback(camera)
            self._subscriptions[camera] = subscribe(node, log, image, camera_input(camera), callback, SENSOR, raw=True)

    def publishers(self) -> dict[str, int]:
        """Matched publishers of every input."""
        return {name: publisher_count(self._node, each) for name, each in self._subscriptions.items()}

    def lost(self) -> dict[str, int]:
        """Messages of every input that the middleware lost, since the node was started."""
        return {name: self._log.lost[each.topic_name] for name, each in self._subscriptions.items()}

    def loss_expected(self) -> str:
        """See ``transport.loss_expected``; by the images that came so far."""
        if self._compressed and self._largest is None:
            return ""
        return loss_expected(self._middleware, self._largest)

    def check_types(self) -> None:
        self._log.check_types(list(self._subscriptions.values()))

    def destroy(self) -> None:
        for subscription in self._subscriptions.values():
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    def _image_callback(self, camera: str) -> Callable[[bytes], None]:
        def on_image(raw: bytes) -> None:
            received_ns = self._node.get_clock().now().nanoseconds
            self._largest = max(len(raw), self._largest or 0)
            self._take(camera, lambda: self._worker.add_frame(camera_frame(camera, raw, received_ns, self._compressed)))

        return on_image

    def _on_odometry(self, message: Odometry) -> None:
        self._take("odometry", lambda: self._worker.add_odometry(ego_state(message)))

    def _on_steering(self, message: Any) -> None:
        now_ns = self._node.get_clock().now().nanoseconds
        self._take("steering", lambda: self._worker.add_signal(steering_signal(message, now_ns)))

    def _on_acceleration(self, message: AccelWithCovarianceStamped) -> None:
        self._take("acceleration", lambda: self._worker.add_signal(acceleration_signal(message)))

    def _on_command(self, message: String) -> None:
        def store() -> None:
            try:
                command = driving_command(message.data)
            except InputError:
                self._worker.set_command(Command.NONE)  # the command before is no longer what is wanted
                raise
            self._worker.set_command(command)

        self._take("command", store)

    def _take(self, name: str, store: Callable[[], None]) -> None:
        """Store what a message tells. No message can end the process: an exception in a callback would."""
        try:
            store()
        except InputError as error:
            self._node.get_logger().warning(str(error), throttle_duration_sec=WARN_EVERY_S)
        except Exception as error:
            self._node.get_logger().error(
                f"{name}: {type(error).__name__}: {error}; the message is ignored, please report this",
                throttle_duration_sec=WARN_EVERY_S,
            )
