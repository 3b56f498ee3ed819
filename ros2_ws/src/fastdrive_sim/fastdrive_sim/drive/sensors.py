"""What the node gets of a scene: serialized messages of cameras, odometry and command, as a vehicle publishes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rosbags.typesys import Stores, get_typestore

from fastdrive_node.replay.bag import BagMessage
from fastdrive_node.ros.topics import TopicMap
from fastdrive_sim.bag import header_message, image_message, odometry_message
from fastdrive_sim.drive.types import EgoStep
from fastdrive_sim.types import EgoPose

_STORE = get_typestore(Stores.ROS2_JAZZY)


class Publications:
    """Messages with the stamps of one run.

    Args:
        topics: of the node's inputs; images are raw.
        start: where odometry has its origin.
        base_ns: the stamp of the run's start.
    """

    def __init__(self, topics: TopicMap, start: EgoStep, base_ns: int):
        self._topics, self._start, self.base_ns = topics, _pose(start), base_ns

    def stamp_ns(self, time_s: float) -> int:
        return self.base_ns + round(time_s * 1e9)

    def odometry(self, ego: EgoStep, time_s: float) -> BagMessage:
        stamp_ns = self.stamp_ns(time_s)
        return _message(self._topics.odometry, stamp_ns, odometry_message(_pose(ego), self._start, stamp_ns))

    def command(self, command: str, time_s: float) -> BagMessage:
        assert self._topics.command is not None  # the simulator's topics have one
        message = _STORE.types["std_msgs/msg/String"](data=command)
        return _message(self._topics.command, self.stamp_ns(time_s), message)

    def images(self, images: Sequence[np.ndarray | None], time_s: float) -> list[BagMessage]:
        """One message a camera, in the order of the topic map; cameras without an image are left out."""
        stamp_ns = self.stamp_ns(time_s)
        return [
            _message(topic, stamp_ns, image_message(header_message(stamp_ns, camera), rgb))
            for (camera, topic), rgb in zip(self._topics.cameras.items(), images, strict=True)
            if rgb is not None
        ]


def _pose(ego: EgoStep) -> EgoPose:
    return EgoPose(ego.x, ego.y, ego.yaw, ego.speed, ego.accel, ego.yaw_rate)


def _message(topic: str, stamp_ns: int, message: object) -> BagMessage:
    kind = getattr(message, "__msgtype__")  # noqa: B009  # set by rosbags, unknown to the type checker
    return BagMessage(topic, stamp_ns, bytes(_STORE.serialize_cdr(message, kind)))
