"""The node's parameters, defined once: ``Settings``.

Descriptors and checks follow from it, and ``parameter_files`` writes config/fastdrive.yaml, its JSON schema and the
table in docs/node.md from it. No ROS, and no torch: the launch file imports this.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import ConfigDict, ValidationError, ValidationInfo, field_validator

from fastdrive_node.errors import InputError
from fastdrive_node.ros.check_parameters import InputCheckSettings, PlanCheckSettings
from fastdrive_node.ros.check_parameters import fixed as _fixed
from fastdrive_node.ros.check_parameters import live as _live
from fastdrive_node.ros.model_parameters import ModelSettings
from fastdrive_node.supervision.supervisor import SupervisionLimits
from fastdrive_node.sync.frames import FrameLimits
from fastdrive_node.sync.modes import ModeLimits
from fastdrive_node.sync.odometry import OdometryLimits
from fastdrive_node.sync.outcomes import WorkerLimits
from fastdrive_node.types import Vehicle

_OF_EVERY_NODE = ("use_sim_time", "start_type_description_service")  # rclpy declares them


class _NodeSettings(ModelSettings):
    """All parameters but those of the checks."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    autostart: bool = _fixed(
        True, "configure and activate at start; false: wait for a lifecycle manager", section="Node and topics"
    )
    bond: bool = _fixed(
        True,
        "heartbeat for Nav2's lifecycle manager on the topic bond while the node is active, where bondpy is installed",
    )
    image_transport: Literal["raw", "compressed"] = _fixed("raw", "type of the image topics")
    steering_input: Literal["none", "float64", "autoware"] = _fixed(
        "none",
        "type of ~/input/steering, the angle of the front wheels in rad, positive to the left: std_msgs/Float64 or "
        "autoware_vehicle_msgs/SteeringReport; none: derived from the odometry where a model reads it",
    )
    acceleration_input: bool = _fixed(
        False,
        "~/input/acceleration (geometry_msgs/AccelWithCovarianceStamped) is read; else accelerations are derived from "
        "the odometry",
    )
    base_frame: str = _fixed("base_link", "frame of path and markers: x forward, y left, origin under the rear axle")
    trajectory_type: Literal["multi_dof", "autoware", "candidates"] = _fixed(
        "multi_dof",
        "type of ~/output/trajectory: trajectory_msgs/MultiDOFJointTrajectory in base_frame; in the frame of the "
        "odometry autoware_planning_msgs/Trajectory or, every 0.1 s, autoware_internal_planning_msgs/"
        "CandidateTrajectories",
    )
    diagnostics_period_s: float = _fixed(1.0, "between two messages on /diagnostics", 0.1, 10.0)

    max_spread_s: float = _live(
        FrameLimits.max_spread_s,
        "longest time between the exposures of one set",
        0.001,
        1.0,
        section="Frame sets, odometry and command",
    )
    max_set_age_s: float = _live(
        FrameLimits.max_age_s, "largest age of a set's oldest image when planning begins", 0.05, 60.0
    )
    missing_timeout_s: float = _live(
        FrameLimits.missing_timeout_s, "time after which an incomplete set is given up", 0.02, 10.0
    )
    max_missing_cameras: int = _live(
        FrameLimits.max_missing_cameras, "number of cameras that may be missing; plans say so", 0, 31
    )
    max_odometry_age_s: float = _live(
        OdometryLimits.max_age_s, "largest age of the newest odometry at a set's time", 0.0, 5.0
    )
    odometry_wait_s: float = _live(
        WorkerLimits.odometry_wait_s, "time that a complete set waits for odometry of its time", 0.0, 2.0
    )
    max_command_age_s: float = _live(
        WorkerLimits.max_command_age_s, "largest age of the driving command; 0: no limit", 0.0, 3600.0
    )

    max_plan_age_s: float = _live(
        WorkerLimits.max_plan_age_s,
        "largest age of a plan's t0 when it is published; older ones are refused",
        0.05,
        60.0,
        section="Ages, operating mode and fallback (docs/node.md)",
    )
    compensate: bool = _fixed(
        WorkerLimits.compensate, "plans are moved on by odometry to the time of publishing, and stamped with it"
    )
    planning_deadline_s: float = _live(
        ModeLimits.planning_deadline_s,
        "longest time of one plan; a planner's process that takes longer is killed",
        0.05,
        3600.0,
    )
    silence_periods: float = _live(
        ModeLimits.silence_periods, "plan periods without a plan, until the mode is refusing", 1.0, 100.0
    )
    silence_min_s: float = _live(
        ModeLimits.silence_min_s, "time without a plan for which the mode stays, whatever the period is", 0.1, 10.0
    )
    recover_plans: int = _live(
        ModeLimits.recover_plans, "plans in a row after which the mode is nominal or degraded again", 1, 100
    )
    on_refusal: Literal["silent", "empty", "brake"] = _fixed(
        "silent",
        "path and trajectory while no plan comes: none, empty ones, or a stop along the last valid path from the "
        "present position and speed",
    )
    brake_decel_mps2: float = _fixed(1.5, "deceleration of on_refusal: brake", 0.1, 2.0)

    plan_age_warn_s: float = _live(
        2.0, "age of the last plan above which the planner is at WARN", 0.05, 3600.0, section="Diagnostics"
    )
    plan_age_error_s: float = _live(5.0, "age of the last plan above which the planner is at ERROR", 0.05, 3600.0)
    refused_warn_fraction: float = _live(
        0.1, "fraction of the last 20 sets refused, above which the planner is at WARN", 0.0, 1.0
    )
    refused_error_fraction: float = _live(
        0.5, "fraction of the last 20 sets refused, above which the planner is at ERROR", 0.0, 1.0
    )
    plan_rate_warn_hz: float = _live(
        5.0, "plans a second below which the timing is at WARN; 0: off. Cameras of 2 Hz need less than 2", 0.0, 100.0
    )
    plan_rate_error_hz: float = _live(1.0, "plans a second below which the timing is at ERROR; 0: off", 0.0, 100.0)
    statistics_window_s: float = _live(30.0, "time over which the diagnostics' percentiles are taken", 1.0, 3600.0)

    vehicle_length_m: float = _fixed(Vehicle.length_m, "length of the vehicle", 0.5, 30.0, section="Vehicle")
    vehicle_width_m: float = _fixed(Vehicle.width_m, "width of the vehicle", 0.3, 5.0)
    vehicle_rear_overhang_m: float = _fixed(Vehicle.rear_overhang_m, "from the rear bumper to the rear axle", 0.0, 10.0)
    vehicle_wheel_base_m: float = _fixed(Vehicle.wheel_base_m, "from the rear axle to the front axle", 0.3, 20.0)

    @field_validator("*", mode="before")
    @classmethod
    def _has_type(cls, value: object, info: ValidationInfo) -> object:
        """1 is taken for 1.0, but no bool for a number."""
        kind = type(cls.model_fields[str(info.field_name)].default)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise ValueError(f"of type {type(value).__name__}, not {kind.__name__}")
        return value

    @property
    def compressed(self) -> bool:
        return self.image_transport == "compressed"

    def frame_limits(self) -> FrameLimits:
        return FrameLimits(
            max_spread_s=self.max_spread_s,
            max_age_s=self.max_set_age_s,
            missing_timeout_s=self.missing_timeout_s,
            max_missing_cameras=self.max_missing_cameras,
        )

    def odometry_limits(self) -> OdometryLimits:
        return OdometryLimits(max_age_s=self.max_odometry_age_s)

    def worker_limits(self) -> WorkerLimits:
        return WorkerLimits(
            odometry_wait_s=self.odometry_wait_s,
            max_command_age_s=self.max_command_age_s,
            max_plan_age_s=self.max_plan_age_s,
            compensate=self.compensate,
        )

    def mode_limits(self) -> ModeLimits:
        return ModeLimits(
            silence_periods=self.silence_periods,
            silence_min_s=self.silence_min_s,
            silence_max_s=max(self.plan_age_error_s, self.silence_min_s),
            planning_deadline_s=self.planning_deadline_s,
            recover_plans=self.recover_plans,
        )

    def supervision_limits(self) -> SupervisionLimits:
        return SupervisionLimits(
            deadline_s=self.planning_deadline_s,
            load_s=self.planner_load_deadline_s,
            restarts=self.planner_restarts,
            window_s=self.planner_restart_window_s,
            threads=self.planner_threads,
        )

    def vehicle(self) -> Vehicle:
        return Vehicle(
            length_m=self.vehicle_length_m,
            width_m=self.vehicle_width_m,
            rear_overhang_m=self.vehicle_rear_overhang_m,
            wheel_base_m=self.vehicle_wheel_base_m,
        )


class Settings(InputCheckSettings, PlanCheckSettings, _NodeSettings):
    """The values of all parameters. Lengths in metres, times in seconds, as the names say."""

    def frame_limits(self) -> FrameLimits:
        return replace(super().frame_limits(), stamps_jump=self.stamps_jump_check)

    def worker_limits(self) -> WorkerLimits:
        return replace(super().worker_limits(), inputs=self.input_limits())


PARAMETERS: dict[str, dict[str, Any]] = Settings.model_json_schema()["properties"]  # JSON schema of each, by name
MODEL_PARAMETERS = tuple(name for name, schema in PARAMETERS.items() if "exchange" in schema)


def validate(name: str, value: object) -> str | None:
    """Why a value is not one for this parameter, or None."""
    if name not in PARAMETERS:
        return unknown(name)
    try:
        Settings.model_validate({name: value})
    except ValidationError as error:
        return f"{name}: {value!r}: {reason_of(error)}"
    return None


def unknown(name: str) -> str:
    """That a name is none of ``PARAMETERS``, and which are close to it."""
    near = difflib.get_close_matches(name, PARAMETERS)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(PARAMETERS)}"
    return f"{name}: no such parameter; {hint}"


def reason_of(error: ValidationError) -> str:
    """What is wrong with a value, in words."""
    text = error.errors()[0]["msg"].removeprefix("Value error, ")
    return text.replace("Input should", "should")


def make_settings(values: Mapping[str, object]) -> Settings:
    """Defaults with some values of one's own.

    Raises:
        InputError: a name or value is wrong; the text names it.
    """
    for name, value in values.items():
        if (reason := validate(name, value)) is not None:
            raise InputError(reason)
    return Settings.model_validate(dict(values))


def check_names(names: Iterable[str]) -> None:
    """Raises InputError for the first name that is neither of ``PARAMETERS`` nor one that every ROS 2 node may have."""
    for name in names:
        if name not in (*PARAMETERS, *_OF_EVERY_NODE) and not name.startswith("qos_overrides."):
            raise InputError(unknown(name))


def descriptor(name: str):
    """rcl_interfaces/ParameterDescriptor."""
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

    schema = PARAMETERS[name]
    choices = schema.get("enum", ())
    message = ParameterDescriptor(
        name=name,
        description=schema["description"],
        read_only=schema.get("readOnly", False),
        # so that 1 is taken for 1.0; rclpy would refuse it, and end the node where a file has it
        dynamic_typing=schema["type"] == "number",
        additional_constraints=f"one of {', '.join(choices)}" if choices else "",
    )
    if schema["type"] == "number":
        message.floating_point_range = [
            FloatingPointRange(from_value=float(schema["minimum"]), to_value=float(schema["maximum"]))
        ]
    if schema["type"] == "integer":
        message.integer_range = [IntegerRange(from_value=schema["minimum"], to_value=schema["maximum"])]
    return message
