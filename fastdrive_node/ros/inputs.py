"""Subscriptions of the node: serialized images, odometry, driving command. They only store; the worker plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nav_msgs.msg import Odometry
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from fastdrive_node.errors import InputError
from fastdrive_node.ros.images import camera_frame
from fastdrive_node.ros.messages import driving_command, ego_state
from fastdrive_node.ros.qos import COMMAND, ODOMETRY, SENSOR, QosLog, subscribe
from fastdrive_node.ros.topics import COMMAND_INPUT, ODOMETRY_INPUT, camera_input
from fastdrive_node.sync.worker import Worker

WARN_EVERY_S = 5.0  # of messages that cannot be used


class Inputs:
    """All subscriptions, from activation to deactivation.

    Images come serialized (``raw``): their header is read and the pixels stay where they are until a set is planned.
    """

    def __init__(self, node: Node, worker: Worker, cameras: Sequence[str], compressed: bool, log: QosLog):
        self._node = node
        self._worker = worker
        self._compressed = compressed
        self._log = log
        image = CompressedImage if compressed else Image
        # The executor takes ready messages in this order: command and odometry arrive before the set they belong to.
        self._subscriptions = {
            "command": subscribe(node, log, String, COMMAND_INPUT, self._on_command, COMMAND),
            "odometry": subscribe(node, log, Odometry, ODOMETRY_INPUT, self._on_odometry, ODOMETRY),
        }
        for camera in cameras:
            callback = self._image_callback(camera)
            self._subscriptions[camera] = subscribe(node, log, image, camera_input(camera), callback, SENSOR, raw=True)

    def publishers(self) -> dict[str, int]:
        """Matched publishers of every input."""
        return {name: subscription.get_publisher_count() for name, subscription in self._subscriptions.items()}

    def check_types(self) -> None:
        self._log.check_types(list(self._subscriptions.values()))

    def destroy(self) -> None:
        for subscription in self._subscriptions.values():
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    def _image_callback(self, camera: str) -> Callable[[bytes], None]:
        def on_image(raw: bytes) -> None:
            received_ns = self._node.get_clock().now().nanoseconds
            try:
                self._worker.add_frame(camera_frame(camera, raw, received_ns, self._compressed))
            except InputError as error:
                self._warn(error)

        return on_image

    def _on_odometry(self, message: Odometry) -> None:
        try:
            self._worker.add_odometry(ego_state(message))
        except InputError as error:
            self._warn(error)

    def _on_command(self, message: String) -> None:
        try:
            self._worker.set_command(driving_command(message.data))
        except InputError as error:
            self._warn(error)

    def _warn(self, error: InputError) -> None:
        self._node.get_logger().warning(str(error), throttle_duration_sec=WARN_EVERY_S)
