"""What ``~/output/trajectory`` is: a MultiDOFJointTrajectory, Autoware's Trajectory, or its CandidateTrajectories."""

from __future__ import annotations

import importlib
import math
import uuid
from types import ModuleType
from typing import Any

import numpy as np
from std_msgs.msg import Header, String
from trajectory_msgs.msg import MultiDOFJointTrajectory

from fastdrive_node.errors import ModelError
from fastdrive_node.geometry import to_parent_frame, wrap_angle
from fastdrive_node.planning.motion import Motion, motion_of, resampled
from fastdrive_node.ros.messages import duration_message, header, multi_dof_message, pose_message
from fastdrive_node.ros.parameters import Settings
from fastdrive_node.sync.compensation import BRAKE_MODE
from fastdrive_node.types import EgoState, Plan, Vehicle

MIN_STEER_MPS = 0.5  # steering angles are computed with at least this speed, for yaw rate / speed is noise below
CANDIDATE_STEP_S = 0.1  # between the points of a candidate, as Autoware's planners have it
GENERATOR_NAME = "fastdrive"
BRAKE_NAME = "fastdrive brake"  # of a stop along the last path, which no model made


class TrajectoryOutput:
    """``trajectory_type: multi_dof``; the other types derive from it."""

    kind: Any = MultiDOFJointTrajectory  # of the messages

    def __init__(self, settings: Settings):
        self._frame = settings.base_frame
        self._vehicle = settings.vehicle()

    def message(self, plan: Plan, ego: EgoState | None) -> Any:
        """A plan's message; None where it needs the ego state at the plan's stamp, and there is none."""
        return multi_dof_message(plan, motion_of(plan.waypoints_m, plan.dt_s), self._frame)

    def empty(self, stamp: Header) -> Any:
        """A message that says that there is no trajectory."""
        return self.kind(header=stamp)


class AutowareOutput(TrajectoryOutput):
    """``trajectory_type: autoware``."""

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self._messages = _installed("autoware_planning_msgs", "autoware")
        self.kind = self._messages.Trajectory

    def message(self, plan: Plan, ego: EgoState | None) -> Any:
        if ego is None:
            return None
        motion = motion_of(plan.waypoints_m, plan.dt_s)
        points = trajectory_points(plan.waypoints_m, motion, ego, self._vehicle, self._messages)
        return self._messages.Trajectory(header=header(plan, ego.frame), points=points)


class CandidatesOutput(TrajectoryOutput):
    """``trajectory_type: candidates``: one candidate, from a generator whose id is that of this object."""

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self._points = _installed("autoware_planning_msgs", "candidates")
        self._messages = _installed("autoware_internal_planning_msgs", "candidates")
        self.kind = self._messages.CandidateTrajectories
        self._id = np.frombuffer(uuid.uuid4().bytes, np.uint8)

    def message(self, plan: Plan, ego: EgoState | None) -> Any:
        if ego is None:
            return None
        waypoints, motion = resampled(plan.waypoints_m, plan.dt_s, ego.speed_mps, CANDIDATE_STEP_S)
        candidate = self._messages.CandidateTrajectory(
            header=header(plan, ego.frame),
            points=trajectory_points(waypoints, motion, ego, self._vehicle, self._points),
        )
        candidate.generator_id.uuid = self._id
        message = self._with_name(GENERATOR_NAME if plan.mode != BRAKE_MODE else BRAKE_NAME)
        message.candidate_trajectories = [candidate]
        return message

    def empty(self, stamp: Header) -> Any:
        return self._with_name(GENERATOR_NAME)

    def _with_name(self, name: str) -> Any:
        # of releases after 1.12 the type has another name
        kind = getattr(self._messages, "GeneratorInfo", None) or self._messages.TrajectoryGeneratorInfo
        info = kind(generator_name=String(data=name))
        info.generator_id.uuid = self._id
        return self.kind(generator_info=[info])


def trajectory_output(settings: Settings) -> TrajectoryOutput:
    """By ``trajectory_type``. Raises ModelError where its messages are not installed."""
    kinds = {"multi_dof": TrajectoryOutput, "autoware": AutowareOutput, "candidates": CandidatesOutput}
    return kinds[settings.trajectory_type](settings)


def _installed(package: str, value: str) -> ModuleType:
    try:
        return importlib.import_module(f"{package}.msg")
    except ImportError as error:
        raise ModelError(
            f"trajectory_type: {value!r} needs the ROS package {package}, which is not installed; "
            "source a workspace that has it, or set trajectory_type to 'multi_dof'"
        ) from error


def trajectory_points(
    waypoints_m: np.ndarray, motion: Motion, ego: EgoState, vehicle: Vehicle, messages: ModuleType
) -> list[Any]:
    """autoware_planning_msgs/TrajectoryPoints in the fixed frame of ``ego``, whose state is the first one.

    Autoware's planning and control work in the map frame and look for the point nearest to the vehicle. Speeds are
    along the path; the wheel angle is that of a bicycle model. Height is the ego's, for a plan is planar.

    Args:
        waypoints_m: [points, 2] in the ego frame; ``motion`` is theirs.
        messages: the module that has TrajectoryPoint.
    """
    points = to_parent_frame(np.vstack([np.zeros(2), waypoints_m]), ego.x_m, ego.y_m, ego.yaw_rad)
    columns = (
        [0.0, *motion.times_s],
        [0.0, *motion.headings_rad],
        [ego.speed_mps, *motion.speeds_mps],
        [ego.accel_mps2, *motion.accels_mps2],
        [ego.yaw_rate_radps, *motion.yaw_rates_radps],
    )
    return [
        messages.TrajectoryPoint(
            time_from_start=duration_message(seconds),
            pose=pose_message(point, wrap_angle(ego.yaw_rad + heading), ego.z_m),
            longitudinal_velocity_mps=float(speed),
            acceleration_mps2=float(accel),
            heading_rate_rps=float(yaw_rate),
            front_wheel_angle_rad=_wheel_angle(vehicle, speed, yaw_rate),
        )
        for point, seconds, heading, speed, accel, yaw_rate in zip(points, *columns, strict=True)
    ]


def _wheel_angle(vehicle: Vehicle, speed_mps: float, yaw_rate_radps: float) -> float:
    speed = math.copysign(max(abs(speed_mps), MIN_STEER_MPS), speed_mps)
    return math.atan(vehicle.wheel_base_m * yaw_rate_radps / speed)
