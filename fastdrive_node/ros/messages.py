"""Between ROS messages and the types of ``fastdrive_node.types``."""

from __future__ import annotations

import array
import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration, Time
from geometry_msgs.msg import (
    AccelWithCovarianceStamped,
    Point,
    Pose,
    PoseStamped,
    Quaternion,
    Transform,
    Twist,
    Vector3,
)
from nav_msgs.msg import Odometry, Path
from sensor_msgs.msg import Image
from std_msgs.msg import Float64, Header
from trajectory_msgs.msg import MultiDOFJointTrajectory, MultiDOFJointTrajectoryPoint

from fastdrive_node.errors import EgoStateError, InputError
from fastdrive_node.geometry import yaw_of_quaternion
from fastdrive_node.planning.motion import Motion
from fastdrive_node.ros.bridge import installed_bridge
from fastdrive_node.types import MAP_FRAME, Command, EgoState, Plan, VehicleSignal

_SECOND_NS = 1_000_000_000


def stamp_ns(stamp: Time) -> int:
    return stamp.sec * _SECOND_NS + stamp.nanosec


def time_message(ns: int) -> Time:
    return Time(sec=ns // _SECOND_NS, nanosec=ns % _SECOND_NS)


def duration_message(seconds: float) -> Duration:
    ns = round(seconds * _SECOND_NS)
    return Duration(sec=ns // _SECOND_NS, nanosec=ns % _SECOND_NS)


def ego_state(message: Odometry) -> EgoState:
    """Planar motion in the frame of the header, "map" where it is empty.

    The twist is in the child frame (REP 105), so its x is the speed along the vehicle.

    Raises:
        EgoStateError: a value is not finite, or the orientation is no rotation.
    """
    pose, twist = message.pose.pose, message.twist.twist
    q = pose.orientation
    place = pose.position
    values = (place.x, place.y, place.z, q.w, q.x, q.y, q.z, twist.linear.x, twist.angular.z)
    if not all(map(math.isfinite, values)):
        raise EgoStateError("odometry: a value is not finite; the message is ignored")
    if not 0.95 < math.hypot(q.w, q.x, q.y, q.z) < 1.05:  # a sum of squares may overflow, which raises
        raise EgoStateError("odometry: pose.orientation is no unit quaternion; the message is ignored")
    return EgoState(
        stamp_ns=stamp_ns(message.header.stamp),
        x_m=place.x,
        y_m=place.y,
        yaw_rad=yaw_of_quaternion(q.x, q.y, q.z, q.w),
        speed_mps=twist.linear.x,
        yaw_rate_radps=twist.angular.z,
        z_m=place.z,
        frame=message.header.frame_id or MAP_FRAME,
        child_frame=message.child_frame_id,
    )


def steering_signal(message: Any, received_ns: int) -> VehicleSignal:
    """From a SteeringReport with its stamp, or a Float64, which has none: it counts from its arrival."""
    if hasattr(message, "steering_tire_angle"):
        return VehicleSignal(stamp_ns(message.stamp), steer_rad=message.steering_tire_angle)
    return VehicleSignal(received_ns, steer_rad=message.data)


def acceleration_signal(message: AccelWithCovarianceStamped) -> VehicleSignal:
    linear = message.accel.accel.linear
    return VehicleSignal(stamp_ns(message.header.stamp), accel_mps2=linear.x, accel_y_mps2=linear.y)


def driving_command(text: str) -> Command:
    """Raises InputError for a word that is no command."""
    try:
        return Command(text.strip().lower())
    except ValueError as error:
        known = ", ".join(command.value for command in Command)
        raise InputError(f"command: {text[:40]!r} is none of {known}; there is no command now") from error


def header(plan: Plan, frame: str) -> Header:
    """Stamped t0, so that a reader can tell how old the images behind the plan are; with ``compensate`` later."""
    return Header(stamp=time_message(plan.stamp_ns), frame_id=frame)


def path_message(plan: Plan, motion: Motion, frame: str) -> Path:
    """Poses at t0 + dt, t0 + 2 dt, ..., each with its own stamp, in the ego frame of t0 (or of the plan's stamp)."""
    poses = []
    for index, seconds in enumerate(motion.times_s):
        stamp = time_message(plan.stamp_ns + round(seconds * _SECOND_NS))
        pose = pose_message(plan.waypoints_m[index], motion.headings_rad[index])
        poses.append(PoseStamped(header=Header(stamp=stamp, frame_id=frame), pose=pose))
    return Path(header=header(plan, frame), poses=poses)


def multi_dof_message(plan: Plan, motion: Motion, frame: str) -> MultiDOFJointTrajectory:
    """One virtual joint, the vehicle: transforms, velocities and times in the ego frame of t0."""
    points = []
    for index, seconds in enumerate(motion.times_s):
        x, y = map(float, plan.waypoints_m[index])
        vx, vy = map(float, motion.velocities_mps[index])
        place = Transform(translation=Vector3(x=x, y=y), rotation=yaw_quaternion(motion.headings_rad[index]))
        twist = Twist(linear=Vector3(x=vx, y=vy), angular=Vector3(z=float(motion.yaw_rates_radps[index])))
        time = duration_message(seconds)
        points.append(MultiDOFJointTrajectoryPoint(transforms=[place], velocities=[twist], time_from_start=time))
    return MultiDOFJointTrajectory(header=header(plan, frame), joint_names=[frame], points=points)


def time_messages() -> tuple[type, Callable[[float, Time], Any]]:
    """Type of the times on ``~/debug`` and what makes a message of a time in milliseconds and the present stamp.

    Autoware's checkers read autoware_internal_debug_msgs/Float64Stamped; where that is not installed it is
    std_msgs/Float64.
    """
    try:
        kind: Any = importlib.import_module("autoware_internal_debug_msgs.msg").Float64Stamped
    except ImportError:
        return Float64, lambda milliseconds, _stamp: Float64(data=milliseconds)
    return kind, lambda milliseconds, stamp: kind(stamp=stamp, data=milliseconds)


def pose_message(point_m: np.ndarray, heading_rad: float, z_m: float = 0.0) -> Pose:
    x, y = map(float, point_m)
    return Pose(position=Point(x=x, y=y, z=z_m), orientation=yaw_quaternion(heading_rad))


def yaw_quaternion(yaw_rad: float) -> Quaternion:
    return Quaternion(z=math.sin(yaw_rad / 2), w=math.cos(yaw_rad / 2))


def image_message(image: np.ndarray, stamp: int, frame: str) -> Image:
    """sensor_msgs/Image rgb8 from uint8 [H, W, 3], by cv_bridge where it is installed.

    Without it the pixels go through ``array``, for an ndarray would be slow.
    """
    stamped = Header(stamp=time_message(stamp), frame_id=frame)
    if (bridge := installed_bridge()) is not None:
        message = bridge.to_message(image)
        message.header = stamped
        return message
    message = Image(header=stamped, encoding="rgb8")
    message.height, message.width = image.shape[:2]
    message.step = 3 * message.width
    pixels = array.array("B")
    pixels.frombytes(np.ascontiguousarray(image).tobytes())
    message.data = pixels
    return message
