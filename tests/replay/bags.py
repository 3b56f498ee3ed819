"""Small bags for tests, written with rosbags."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from fastdrive_node.types import CAMERAS

STORE = get_typestore(Stores.ROS2_JAZZY)
TYPES = STORE.types
START_NS = 1_700_000_000_000_000_000
SIZE = (32, 24)
STORAGES = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}


@dataclass(frozen=True)
class BagPlan:
    """What a bag holds. ``change`` may alter or drop (None) a camera's message of a set."""

    sets: int = 3
    period_s: float = 0.5
    transport: str = "raw"
    storage: str = "mcap"
    without: Collection[str] = ()  # topics
    types: dict[str, str] = field(default_factory=dict)  # topics that are of another type
    spread_ms: float = 0.0  # between neighbouring cameras
    cameras: Sequence[str] = CAMERAS
    odometry_delay_s: float = 0.0  # from its stamp to its recording
    signals: bool = False  # /steer and /accel, with the odometry
    change: Callable[[int, str, object], object | None] = lambda index, camera, message: message


def header(stamp_ns: int, frame: str):
    stamp = TYPES["builtin_interfaces/msg/Time"](sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return TYPES["std_msgs/msg/Header"](stamp=stamp, frame_id=frame)


def jpeg(shade: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(np.full((SIZE[1], SIZE[0], 3), shade, np.uint8)).save(buffer, "JPEG")
    return np.frombuffer(buffer.getvalue(), np.uint8)


def image(transport: str, stamp_ns: int, camera: str, shade: int):
    if transport == "compressed":
        return TYPES["sensor_msgs/msg/CompressedImage"](
            header=header(stamp_ns, camera), format="jpeg", data=jpeg(shade)
        )
    return TYPES["sensor_msgs/msg/Image"](
        header=header(stamp_ns, camera),
        height=SIZE[1],
        width=SIZE[0],
        encoding="rgb8",
        is_bigendian=0,
        step=3 * SIZE[0],
        data=np.full(3 * SIZE[0] * SIZE[1], shade, np.uint8),
    )


def odometry(stamp_ns: int, speed: float):
    seconds = (stamp_ns - START_NS) * 1e-9
    place = geometry("Point", speed * seconds, 0.0, 0.0)
    pose = geometry("Pose", place, geometry("Quaternion", 0.0, 0.0, 0.0, 1.0))
    twist = geometry("Twist", geometry("Vector3", speed, 0.0, 0.0), geometry("Vector3", 0.0, 0.0, 0.0))
    return TYPES["nav_msgs/msg/Odometry"](
        header(stamp_ns, "odom"),
        "base_link",
        geometry("PoseWithCovariance", pose, np.zeros(36)),
        geometry("TwistWithCovariance", twist, np.zeros(36)),
    )


def acceleration(stamp_ns: int):
    accel = geometry("Accel", geometry("Vector3", 0.1, 0.0, 0.0), geometry("Vector3", 0.0, 0.0, 0.0))
    with_covariance = geometry("AccelWithCovariance", accel, np.zeros(36))
    return geometry("AccelWithCovarianceStamped", header(stamp_ns, "base_link"), with_covariance)


def geometry(name: str, *values):
    return TYPES[f"geometry_msgs/msg/{name}"](*values)


def image_topic(camera: str, transport: str) -> str:
    return f"/{camera}/image_raw" + ("/compressed" if transport == "compressed" else "")


def write_bag(path: Path, plan: BagPlan | None = None) -> Path:
    """The simulator's topics: odometry at 20 Hz, one command and an image of each camera a set."""
    plan = plan or BagPlan()
    kind = "sensor_msgs/msg/CompressedImage" if plan.transport == "compressed" else "sensor_msgs/msg/Image"
    topics = {image_topic(camera, plan.transport): kind for camera in plan.cameras}
    topics |= {"/odom": "nav_msgs/msg/Odometry", "/driving_command": "std_msgs/msg/String"}
    if plan.signals:
        topics |= {"/steer": "std_msgs/msg/Float64", "/accel": "geometry_msgs/msg/AccelWithCovarianceStamped"}
    topics = {topic: plan.types.get(topic, kind) for topic, kind in topics.items() if topic not in plan.without}
    with Writer(path, version=9, storage_plugin=STORAGES[plan.storage]) as writer:
        connections = {topic: writer.add_connection(topic, kind, typestore=STORE) for topic, kind in topics.items()}

        messages = []

        def add(topic: str, message: object | None, stamp_ns: int) -> None:
            if topic in connections and message is not None and topic not in plan.types:
                messages.append((stamp_ns, topic, message))

        steps = round((plan.sets - 1) * plan.period_s / 0.05) + 1
        sets = {round(index * plan.period_s / 0.05): index for index in range(plan.sets)}
        for step in range(steps):
            stamp_ns = START_NS + step * 50_000_000
            add("/odom", odometry(stamp_ns, 5.0), stamp_ns + round(plan.odometry_delay_s * 1e9))
            add("/steer", TYPES["std_msgs/msg/Float64"](0.01), stamp_ns)
            add("/accel", acceleration(stamp_ns), stamp_ns)
            if step in sets:
                add("/driving_command", TYPES["std_msgs/msg/String"]("left"), stamp_ns + 1)
                for offset, camera in enumerate(plan.cameras):
                    exposed_ns = stamp_ns + round(offset * plan.spread_ms * 1e6)
                    message = image(plan.transport, exposed_ns, camera, 40 * offset % 256)
                    message = plan.change(sets[step], camera, message)
                    add(image_topic(camera, plan.transport), message, exposed_ns + 2 + offset)
        for stamp_ns, topic, message in sorted(messages, key=lambda each: each[0]):
            writer.write(connections[topic], stamp_ns, STORE.serialize_cdr(message, connections[topic].msgtype))
    return path


def without_camera(camera: str, index: int) -> BagPlan:
    """One camera's message of one set is absent."""
    return BagPlan(change=lambda i, c, message: None if (i, c) == (index, camera) else message)
