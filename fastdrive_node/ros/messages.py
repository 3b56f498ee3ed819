"""Between ROS messages and the types of ``fastdrive_node.types``."""

from __future__ import annotations

import array
import importlib
import math
from types import ModuleType
from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration, Time
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion, Transform, Twist, Vector3
from nav_msgs.msg import Odometry, Path
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from trajectory_msgs.msg import MultiDOFJointTrajectory, MultiDOFJointTrajectoryPoint

from fastdrive_node.errors import InputError, ModelError
from fastdrive_node.planning.motion import Motion, motion_of
from fastdrive_node.types import Command, EgoState, Plan

_SECOND_NS = 1_000_000_000


def stamp_ns(stamp: Time) -> int:
    return stamp.sec * _SECOND_NS + stamp.nanosec


def time_message(ns: int) -> Time:
    return Time(sec=ns // _SECOND_NS, nanosec=ns % _SECOND_NS)


def duration_message(seconds: float) -> Duration:
    ns = round(seconds * _SECOND_NS)
    return Duration(sec=ns // _SECOND_NS, nanosec=ns % _SECOND_NS)


def ego_state(message: Odometry) -> EgoState:
    """Planar motion. The twist is that of the child frame (REP 105), so its x is the speed along the vehicle.

    Raises:
        InputError: a value is not finite, or the orientation is no rotation.
    """
    pose, twist = message.pose.pose, message.twist.twist
    q = pose.orientation
    values = (pose.position.x, pose.position.y, q.w, q.x, q.y, q.z, twist.linear.x, twist.angular.z)
    if not all(map(math.isfinite, values)):
        raise InputError("odometry: a value is not finite; the message is ignored")
    if not 0.9 < q.w**2 + q.x**2 + q.y**2 + q.z**2 < 1.1:
        raise InputError("odometry: pose.orientation is no unit quaternion; the message is ignored")
    yaw = math.atan2(2 * (q.w * q.z + q.x * q.y), 1 - 2 * (q.y**2 + q.z**2))
    return EgoState(
        stamp_ns=stamp_ns(message.header.stamp),
        x_m=pose.position.x,
        y_m=pose.position.y,
        yaw_rad=yaw,
        speed_mps=twist.linear.x,
        yaw_rate_radps=twist.angular.z,
    )


def driving_command(text: str) -> Command:
    """Raises InputError for a word that is no command."""
    try:
        return Command(text.strip().lower())
    except ValueError as error:
        known = ", ".join(command.value for command in Command)
        raise InputError(f"command: {text[:40]!r} is none of {known}; the message is ignored") from error


def header(plan: Plan, frame: str) -> Header:
    """Stamped t0, so that who reads it can tell how old the pictures behind the plan are."""
    return Header(stamp=time_message(plan.t0_ns), frame_id=frame)


def path_message(plan: Plan, frame: str) -> Path:
    """Poses at t0 + dt, t0 + 2 dt, ..., each with its own stamp, in the ego frame of t0."""
    motion = motion_of(plan.waypoints_m, plan.dt_s)
    message = Path(header=header(plan, frame))
    for index, seconds in enumerate(motion.times_s):
        stamp = time_message(plan.t0_ns + round(seconds * _SECOND_NS))
        message.poses.append(PoseStamped(header=Header(stamp=stamp, frame_id=frame), pose=_pose(plan, motion, index)))
    return message


def multi_dof_message(plan: Plan, frame: str) -> MultiDOFJointTrajectory:
    """One virtual joint, the vehicle: transforms, velocities and times in the ego frame of t0."""
    motion = motion_of(plan.waypoints_m, plan.dt_s)
    message = MultiDOFJointTrajectory(header=header(plan, frame), joint_names=[frame])
    for index, seconds in enumerate(motion.times_s):
        x, y = map(float, plan.waypoints_m[index])
        vx, vy = map(float, motion.velocities_mps[index])
        place = Transform(translation=Vector3(x=x, y=y), rotation=yaw_quaternion(motion.headings_rad[index]))
        twist = Twist(linear=Vector3(x=vx, y=vy), angular=Vector3(z=float(motion.yaw_rates_radps[index])))
        message.points.append(
            MultiDOFJointTrajectoryPoint(
                transforms=[place], velocities=[twist], time_from_start=duration_message(seconds)
            )
        )
    return message


def autoware_messages() -> ModuleType:
    """autoware_planning_msgs.msg. Raises ModelError where that package is not installed."""
    try:
        return importlib.import_module("autoware_planning_msgs.msg")
    except ImportError as error:
        raise ModelError(
            "trajectory_type: 'autoware' needs the ROS package autoware_planning_msgs, which is not installed; "
            "source a workspace that has it, or set trajectory_type to 'multi_dof'"
        ) from error


def autoware_message(plan: Plan, frame: str, messages: ModuleType) -> Any:
    """autoware_planning_msgs/Trajectory: points with time, pose, speed along the path, acceleration, heading rate."""
    motion = motion_of(plan.waypoints_m, plan.dt_s)
    trajectory = messages.Trajectory(header=header(plan, frame))
    for index, seconds in enumerate(motion.times_s):
        trajectory.points.append(
            messages.TrajectoryPoint(
                time_from_start=duration_message(seconds),
                pose=_pose(plan, motion, index),
                longitudinal_velocity_mps=float(motion.speeds_mps[index]),
                acceleration_mps2=float(motion.accels_mps2[index]),
                heading_rate_rps=float(motion.yaw_rates_radps[index]),
            )
        )
    return trajectory


def _pose(plan: Plan, motion: Motion, index: int) -> Pose:
    x, y = map(float, plan.waypoints_m[index])
    return Pose(position=Point(x=x, y=y), orientation=yaw_quaternion(motion.headings_rad[index]))


def yaw_quaternion(yaw_rad: float) -> Quaternion:
    return Quaternion(z=math.sin(yaw_rad / 2), w=math.cos(yaw_rad / 2))


def image_message(image: np.ndarray, stamp: int, frame: str) -> Image:
    """sensor_msgs/Image rgb8 from uint8 [H, W, 3]. The pixels go through ``array``: an ndarray would be slow."""
    message = Image(header=Header(stamp=time_message(stamp), frame_id=frame), encoding="rgb8")
    message.height, message.width = image.shape[:2]
    message.step = 3 * message.width
    pixels = array.array("B")
    pixels.frombytes(np.ascontiguousarray(image).tobytes())
    message.data = pixels
    return message
