"""Faults that the checks of the inputs tell: images that show nothing, swapped cameras, odometry against itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from fastdrive_node.types import CAMERAS
from tests.faults.harness import SPEED_MPS, Fault, Scene, picture
from tests.faults.inject import (
    BACK,
    camera_info,
    end_second_publisher,
    image,
    new_frames,
    odometry,
    right_camera_info,
    second_node,
    second_publisher,
    traffic,
)

FRONT = "CAM_FRONT"
PIXELS = 24 * 32


def noise(count: int) -> bytes:
    return np.random.default_rng(count).bytes(3 * PIXELS)


def all_cameras(**fields: Any) -> Callable[[Scene], None]:
    return traffic(bad={camera: fields for camera in CAMERAS})


def swapped(**frame_ids: str) -> Callable[[Scene], None]:
    return traffic(bad={camera: {"frame_id": frame_id} for camera, frame_id in frame_ids.items()})


def pose(name: str, values: Callable[[int], float]) -> Callable[[Scene], None]:
    """Injects odometry whose pose is moved, by the number of the message."""
    numbers = itertools.count()

    def edit(message: Any) -> None:
        place = message.pose.pose.position
        setattr(place, name, getattr(place, name) + values(next(numbers)))

    return traffic(edit=edit)


def turned(message: Any) -> None:
    """A quarter turn to the left each second, without a yaw rate."""
    angle = 1.57 * (message.header.stamp.sec % 1000 + message.header.stamp.nanosec * 1e-9)
    orientation = message.pose.pose.orientation
    orientation.z, orientation.w = float(np.sin(angle / 2)), float(np.cos(angle / 2))


ONE = {"height": 1, "width": 1, "step": 3, "data": b"\x80\x80\x80"}
PORTRAIT = {"height": 32, "width": 24, "step": 72}
LOOKS: tuple[tuple[str, Callable[[Scene], None], str], ...] = (
    ("a camera is black", image(data=bytes(3 * PIXELS)), "image.dark"),
    ("a camera is white", image(data=b"\xff" * 3 * PIXELS), "image.saturated"),
    ("a camera shows one gray", image(data=b"\x80" * 3 * PIXELS), "image.flat"),
    ("a camera sends noise", image(data=noise), "image.noise"),
    ("a camera sends one image again and again", image(data=picture(1)), "image.frozen"),
    ("all cameras are black", all_cameras(data=bytes(3 * PIXELS)), "image.dark"),
    ("all cameras send noise", all_cameras(data=noise), "image.noise"),
    ("all cameras are frozen", all_cameras(data=picture(1)), "image.frozen"),
    ("a camera sends images of 1 x 1", image(**ONE), "image.size|image.flat"),
)
WARNED = {"mode": "degraded", "code": "cameras"}
IMAGE_CHECKS = [
    *[Fault(name, "image checks", send, **WARNED, scene="model") for name, send, _ in LOOKS],
    *[Fault(f"{name}, refused", "image checks", send, code=code, scene="strict") for name, send, code in LOOKS],
    Fault("a camera turns to portrait", "image checks", image(**PORTRAIT), **WARNED, scene="model"),
    Fault(
        "CameraInfo tells another size",
        "image checks",
        camera_info(48, 64),
        **WARNED,
        scene="model",
        undo=right_camera_info,
    ),
    Fault(
        "CameraInfo tells another size, refused",
        "image checks",
        camera_info(48, 64),
        code="image.camera_info",
        scene="strict",
        undo=right_camera_info,
    ),
]
IDENTITY = [
    Fault(
        "two cameras are swapped",
        "identity",
        swapped(CAM_FRONT=BACK, CAM_BACK=FRONT),
        **WARNED,
        scene="raw",
        quick=True,
    ),
    Fault("a camera has another one's frame_id", "identity", swapped(CAM_BACK=FRONT), **WARNED),
    Fault("a camera's frame_id is new", "identity", swapped(CAM_BACK="lens_7"), **WARNED),
    Fault("a camera's frame_id is empty", "identity", swapped(CAM_BACK=""), **WARNED),
    Fault(
        "two cameras are swapped, refused",
        "identity",
        swapped(CAM_FRONT=BACK, CAM_BACK=FRONT),
        code="image.frame_id",
        scene="strict",
    ),
    Fault(
        "CameraInfo has another frame_id",
        "identity",
        camera_info(frame_id="lens_7"),
        **WARNED,
        undo=right_camera_info,
        quick=True,
    ),
    Fault(
        "a camera has two publishers",
        "identity",
        second_publisher("cam_back/image"),
        **WARNED,
        undo=end_second_publisher,
        quick=True,
    ),
    Fault(
        "the odometry has two publishers",
        "identity",
        second_publisher("odometry"),
        mode="degraded",
        code="odometry.publishers",
        undo=end_second_publisher,
    ),
    Fault(
        "another node has this name",
        "identity",
        second_node,
        mode="degraded",
        code="node_name",
        undo=end_second_publisher,
    ),
    Fault(
        "a camera has two publishers, refused",
        "identity",
        second_publisher("cam_back/image"),
        code="image.publishers",
        scene="strict",
        undo=end_second_publisher,
    ),
]
STAMPS = [
    Fault("all stamps are 0.3 s ahead", "stamps", traffic(shift_s={"all": 0.3}), code="frames.stamp_ahead", quick=True),
    Fault(
        "a camera's stamps alternate by 1 s",
        "stamps",
        traffic(shift_s={BACK: lambda count: -float(count % 2)}),
        **WARNED,  # it is late for every second set
    ),
    Fault(
        "all stamps alternate by 1 s",
        "stamps",
        traffic(shift_s={"all": lambda count: -float(count % 2)}),
        code="frames.stamps_jump|frames|no_set",
        quick=True,
    ),
]
MOTION = [
    Fault("the speed is 80 m/s", "motion", odometry("twist.twist.linear.x", 80.0), code="odometry.speed", quick=True),
    Fault(
        "the speed is 0 while the pose moves",
        "motion",
        odometry("twist.twist.linear.x", 0.0),
        mode="degraded",
        code="odometry.motion",
    ),
    Fault(
        "the pose stands while the speed is 8 m/s",
        "motion",
        odometry("pose.pose.position.x", 0.0),
        mode="degraded",
        code="odometry.motion",
        quick=True,
    ),
    Fault(
        "the pose jumps by 20 m",
        "motion",
        pose("y", lambda number: 20.0 * (number // 10 % 2)),
        mode="degraded",
        code="odometry.motion",
    ),
    Fault(
        "the pose goes twice as fast as the speed",
        "motion",
        pose("x", lambda number: 0.05 * SPEED_MPS * number),
        mode="degraded",
        code="odometry.motion",
    ),
    Fault("the pose turns without a yaw rate", "motion", traffic(edit=turned), mode="degraded", code="odometry.motion"),
    Fault(
        "the pose stands while the speed is 8 m/s, refused",
        "motion",
        odometry("pose.pose.position.x", 0.0),
        code="odometry.motion",
        scene="strict",
    ),
    Fault(
        "the odometry's frame_id changes",
        "motion",
        new_frames(frame_id="odom"),
        mode="degraded",
        code="odometry.frame",
    ),
    Fault(
        "the odometry's child_frame_id changes",
        "motion",
        new_frames(child_frame_id="front_axle"),
        mode="degraded",
        code="odometry.frame",
    ),
    Fault(
        "the odometry's frame_id changes, refused",
        "motion",
        new_frames(frame_id="odom"),
        code="odometry.frame",
        scene="strict",
    ),
]
INPUT_CHECKS: list[Fault] = [*IMAGE_CHECKS, *IDENTITY, *STAMPS, *MOTION]
