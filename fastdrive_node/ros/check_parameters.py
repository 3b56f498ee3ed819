"""Parameters of the checks of plans and inputs; ``parameters.Settings`` has them with all others.

A check of plans has two bands, a warning and a refusal, and 0 turns one off.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, field_validator

from fastdrive_node.errors import InputError
from fastdrive_node.planning.checks import Band, PlanLimits
from fastdrive_node.planning.image_health import ImageLimits
from fastdrive_node.sync.camera_identity import parse_frame_ids
from fastdrive_node.sync.frames import FrameLimits
from fastdrive_node.sync.health import Action, InputLimits


def fixed(default: Any, description: str, low: float | None = None, high: float | None = None, **extra: Any) -> Any:
    """A parameter that is read when the node is configured."""
    return Field(default, description=description, ge=low, le=high, json_schema_extra={"readOnly": True, **extra})


def exchanged(default: Any, description: str, **extra: Any) -> Any:
    """A parameter of the model: a change while the node runs loads another planner, which then takes over."""
    return Field(default, description=description, json_schema_extra={"exchange": True, **extra})


def live(default: Any, description: str, low: float, high: float, **extra: Any) -> Any:
    """A parameter that may change while the node runs."""
    return Field(default, description=description, ge=low, le=high, json_schema_extra=extra)


def _warn(band: Band, words: str, high: float, **extra: Any) -> Any:
    return fixed(band.warn, f"{words}: warned of above this", 0.0, high, **extra)


def _refuse(band: Band, words: str, high: float) -> Any:
    return fixed(band.refuse, f"{words}: refused above this", 0.0, high)


class PlanCheckSettings(BaseModel):
    """Limits of a plan. ``planning.checks`` defines them, and the codes of warnings and refusals."""

    warn_plan_speed_mps: float = _warn(
        PlanLimits.speed,
        "speed of a plan",
        100.0,
        section="Plan checks: warnings and refusals, 0 turns one off (docs/node.md)",
    )
    max_plan_speed_mps: float = _refuse(PlanLimits.speed, "speed of a plan", 100.0)
    warn_plan_start_mps2: float = _warn(PlanLimits.start, "acceleration from the present velocity", 100.0)
    max_plan_start_mps2: float = _refuse(PlanLimits.start, "acceleration from the present velocity", 100.0)
    warn_plan_accel_mps2: float = _warn(PlanLimits.acceleration, "change of speed, faster or slower", 100.0)
    max_plan_accel_mps2: float = _refuse(PlanLimits.acceleration, "change of speed, faster or slower", 100.0)
    warn_plan_jerk_mps3: float = _warn(PlanLimits.jerk, "change of that acceleration", 1000.0)
    max_plan_jerk_mps3: float = _refuse(PlanLimits.jerk, "change of that acceleration", 1000.0)
    warn_plan_lateral_accel_mps2: float = _warn(PlanLimits.lateral_acceleration, "lateral acceleration", 100.0)
    max_plan_lateral_accel_mps2: float = _refuse(PlanLimits.lateral_acceleration, "lateral acceleration", 100.0)
    warn_plan_lateral_jerk_mps3: float = _warn(PlanLimits.lateral_jerk, "change of the lateral acceleration", 1000.0)
    max_plan_lateral_jerk_mps3: float = _refuse(PlanLimits.lateral_jerk, "change of the lateral acceleration", 1000.0)
    warn_plan_curvature_per_m: float = _warn(PlanLimits.curvature, "curvature of a plan", 10.0)
    max_plan_curvature_per_m: float = _refuse(PlanLimits.curvature, "curvature of a plan", 10.0)
    warn_plan_steer_rad: float = _warn(PlanLimits.steering, "steering of a bicycle model (vehicle_wheel_base_m)", 1.6)
    max_plan_steer_rad: float = _refuse(PlanLimits.steering, "steering of a bicycle model (vehicle_wheel_base_m)", 1.6)
    warn_plan_steer_rate_radps: float = _warn(PlanLimits.steering_rate, "change of that steering", 100.0)
    max_plan_steer_rate_radps: float = _refuse(PlanLimits.steering_rate, "change of that steering", 100.0)
    warn_plan_yaw_rate_radps: float = _warn(PlanLimits.yaw_rate, "yaw rate of a plan", 100.0)
    max_plan_yaw_rate_radps: float = _refuse(PlanLimits.yaw_rate, "yaw rate of a plan", 100.0)
    warn_plan_reverse_m: float = _warn(PlanLimits.direction, "distance against the direction of motion", 1000.0)
    max_plan_reverse_m: float = _refuse(PlanLimits.direction, "distance against the direction of motion", 1000.0)
    warn_plan_jump_m: float = _warn(PlanLimits.continuity, "distance from the last plan, up to 1 s after t0", 1000.0)
    max_plan_jump_m: float = _refuse(PlanLimits.continuity, "distance from the last plan, up to 1 s after t0", 1000.0)
    plan_tolerance_m: float = fixed(
        PlanLimits.tolerance_m,
        "error of a coordinate that the checks allow for; half of the answer's last digit where that is more",
        0.0,
        10.0,
    )
    plan_curvature_min_step_m: float = fixed(
        PlanLimits.min_step_m, "shorter steps of a plan have no direction, and are joined", 0.1, 20.0
    )

    def plan_limits(self, wheel_base_m: float) -> PlanLimits:
        return PlanLimits(
            speed=Band(self.warn_plan_speed_mps, self.max_plan_speed_mps),
            start=Band(self.warn_plan_start_mps2, self.max_plan_start_mps2),
            acceleration=Band(self.warn_plan_accel_mps2, self.max_plan_accel_mps2),
            jerk=Band(self.warn_plan_jerk_mps3, self.max_plan_jerk_mps3),
            lateral_acceleration=Band(self.warn_plan_lateral_accel_mps2, self.max_plan_lateral_accel_mps2),
            lateral_jerk=Band(self.warn_plan_lateral_jerk_mps3, self.max_plan_lateral_jerk_mps3),
            curvature=Band(self.warn_plan_curvature_per_m, self.max_plan_curvature_per_m),
            steering=Band(self.warn_plan_steer_rad, self.max_plan_steer_rad),
            steering_rate=Band(self.warn_plan_steer_rate_radps, self.max_plan_steer_rate_radps),
            yaw_rate=Band(self.warn_plan_yaw_rate_radps, self.max_plan_yaw_rate_radps),
            direction=Band(self.warn_plan_reverse_m, self.max_plan_reverse_m),
            continuity=Band(self.warn_plan_jump_m, self.max_plan_jump_m),
            tolerance_m=self.plan_tolerance_m,
            min_step_m=self.plan_curvature_min_step_m,
            wheel_base_m=wheel_base_m,
        )


class InputCheckSettings(BaseModel):
    """Limits of the inputs, and what is done where one is exceeded; ``sync.health`` checks them."""

    odometry_speed_check: Action = fixed(
        InputLimits.odometry_speed,
        "where the odometry's speed is above max_odometry_speed_mps",
        section="Input checks (docs/node.md)",
    )
    max_odometry_speed_mps: float = fixed(
        InputLimits.max_speed_mps, "largest speed of the vehicle; more is a fault of the odometry", 1.0, 200.0
    )
    odometry_motion_check: Action = fixed(
        InputLimits.odometry_motion,
        "where the odometry's poses and its speeds tell different motions over half a second",
    )
    odometry_motion_tolerance_m: float = fixed(
        InputLimits.motion_tolerance_m, "difference of distances that is allowed, and 20 % of them", 0.01, 100.0
    )
    odometry_turn_tolerance_rad: float = fixed(
        InputLimits.turn_tolerance_rad, "difference of turns that is allowed", 0.01, 7.0
    )
    odometry_frame_check: Action = fixed(
        InputLimits.odometry_frame, "for 3 s after the odometry's frame_id or child_frame_id has changed"
    )
    stamp_ahead_check: Action = fixed(
        InputLimits.stamp_ahead, "where an image is stamped later than it arrived, by more than max_stamp_ahead_s"
    )
    max_stamp_ahead_s: float = fixed(
        InputLimits.max_ahead_s, "of a stamp ahead of the image's arrival; a clock that is right gives none", 0.0, 10.0
    )
    stamps_jump_check: Action = fixed(
        FrameLimits.stamps_jump, "where the stamps of a camera jump back three times within 5 s"
    )
    publishers_check: Action = fixed(
        InputLimits.publishers, "where more than one node publishes a camera's topic, or that of the odometry"
    )
    frame_id_check: Action = fixed(
        InputLimits.frame_id, "where an image has another frame_id than its camera, as that of a swapped one"
    )
    camera_frame_ids: str = fixed(
        "",
        "frame_id of each camera's images, like CAM_FRONT=front_optical CAM_BACK=back_optical; those that are not here "
        "are learnt from the first images",
    )
    camera_info_check: Action = fixed(
        InputLimits.camera_info,
        "where an image has another size or frame_id than the CameraInfo on the topic beside it; off: not subscribed",
    )

    image_dark_check: Action = fixed(ImageLimits.dark_check, "where an image is dark")
    image_dark: float = fixed(ImageLimits.dark, "mean of 0 to 255 below which an image is dark", 0.0, 255.0)
    image_saturated_check: Action = fixed(ImageLimits.saturated_check, "where an image is saturated")
    image_saturated: float = fixed(
        ImageLimits.saturated, "fraction of pixels at the top above which an image is saturated", 0.0, 1.0
    )
    image_flat_check: Action = fixed(ImageLimits.flat_check, "where an image shows one color")
    image_flat: float = fixed(
        ImageLimits.flat, "standard deviation, of 0 to 255, below which an image shows one color", 0.0, 255.0
    )
    image_noise_check: Action = fixed(ImageLimits.noise_check, "where an image is noise")
    image_noise: float = fixed(
        ImageLimits.noise,
        "variance of the differences of neighbouring pixels over twice the variance, above which an image is noise",
        0.0,
        2.0,
    )
    image_frozen_check: Action = fixed(ImageLimits.frozen_check, "where images are equal while the vehicle moves")
    image_frozen_sets: int = fixed(
        ImageLimits.frozen_sets, "equal images in a row, while the vehicle moves, that are frozen", 2, 1000
    )
    image_size_check: Action = fixed(
        ImageLimits.size_check, "where an image has another size than the one before, once for each change"
    )

    @field_validator("camera_frame_ids")
    @classmethod
    def _are_frame_ids(cls, value: str) -> str:
        try:
            parse_frame_ids(value)
        except InputError as error:
            raise ValueError(str(error)) from error
        return value

    def image_limits(self) -> ImageLimits:
        return ImageLimits(
            dark_check=self.image_dark_check,
            dark=self.image_dark,
            saturated_check=self.image_saturated_check,
            saturated=self.image_saturated,
            flat_check=self.image_flat_check,
            flat=self.image_flat,
            noise_check=self.image_noise_check,
            noise=self.image_noise,
            frozen_check=self.image_frozen_check,
            frozen_sets=self.image_frozen_sets,
            size_check=self.image_size_check,
            camera_info_check=self.camera_info_check,
        )

    def input_limits(self) -> InputLimits:
        return InputLimits(
            odometry_speed=self.odometry_speed_check,
            max_speed_mps=self.max_odometry_speed_mps,
            odometry_motion=self.odometry_motion_check,
            motion_tolerance_m=self.odometry_motion_tolerance_m,
            turn_tolerance_rad=self.odometry_turn_tolerance_rad,
            odometry_frame=self.odometry_frame_check,
            stamp_ahead=self.stamp_ahead_check,
            max_ahead_s=self.max_stamp_ahead_s,
            publishers=self.publishers_check,
            frame_id=self.frame_id_check,
            camera_info=self.camera_info_check,
            frame_ids=parse_frame_ids(self.camera_frame_ids),
        )
