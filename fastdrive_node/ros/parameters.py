"""The node's parameters: one table gives the descriptors, the checks and the JSON schema of parameter files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import yaml

from fastdrive_node.errors import InputError
from fastdrive_node.sync.frames import FrameLimits
from fastdrive_node.sync.odometry import OdometryLimits
from fastdrive_node.sync.worker import WorkerLimits
from fastdrive_node.types import ONNX_PROVIDERS, VISION_BACKENDS

if TYPE_CHECKING:
    from fastdrive_node.pruning.score_options import ScoreOptions

Value = bool | int | float | str
_JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}


@dataclass(frozen=True)
class Parameter:
    """One parameter. A float or integer has a range, a string may have choices."""

    name: str
    default: Value
    description: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    read_only: bool = True

    @property
    def kind(self) -> type:
        return type(self.default)


PARAMETERS = (
    Parameter("vla", "", "VLA directory; empty: the shipped models/tiny"),
    Parameter("pruner", "", "pruner file; empty: reconpruner.safetensors in the VLA directory, where it is"),
    Parameter("drop", -1.0, "pruning ratio p; -1: 0.5 with a pruner, 0 without", -1.0, 0.95, read_only=False),
    Parameter("vision_backend", "torch", "what runs vision encoder and pruner", choices=VISION_BACKENDS),
    Parameter("engine", "", "engine file for vision_backend onnxruntime or tensorrt, from `fastdrive export build`"),
    Parameter("language_engine", "", "engine file of the language model, run by onnxruntime; empty: torch"),
    Parameter(
        "onnx_provider",
        "auto",
        "what onnxruntime runs on; auto: cuda where the model is on a GPU and onnxruntime has it, else cpu",
        choices=ONNX_PROVIDERS,
    ),
    Parameter("device", "auto", "where the model runs; auto: cuda where there is one", choices=("auto", "cpu", "cuda")),
    Parameter("dtype", "float32", "of weights and activations", choices=("float32", "bfloat16", "float16")),
    Parameter("warm_up", True, "plan once on black images before the node is ready"),
    Parameter("calibrated_scores", False, "rank the tokens of all cameras by their chance of being foreground"),
    Parameter(
        "keep_threshold",
        0.0,
        "keep tokens of at least this chance of being foreground, at most as many as drop leaves; 0: always as many",
        0.0,
        0.999,
    ),
    Parameter("k_min", 16, "with keep_threshold, tokens that are kept at least", 1, 100_000),
    Parameter("temporal_change", 0.0, "weight of what is new since the set before; 0: none", 0.0, 10.0),
    Parameter("temporal_memory", 0.0, "share of the set before in a score; 0: none", 0.0, 0.95),
    Parameter("temporal_max_gap_s", 0.25, "between two sets that know of each other", 0.01, 2.0),
    Parameter("autostart", True, "configure and activate at start; false: wait for a lifecycle manager"),
    Parameter("image_transport", "raw", "type of the image topics", choices=("raw", "compressed")),
    Parameter("base_frame", "base_link", "frame of the outputs: x forward, y left, origin under the rear axle"),
    Parameter(
        "trajectory_type",
        "multi_dof",
        "type of ~/output/trajectory: trajectory_msgs/MultiDOFJointTrajectory or autoware_planning_msgs/Trajectory",
        choices=("multi_dof", "autoware"),
    ),
    Parameter("max_spread_s", 0.15, "between the exposures of one set", 0.001, 1.0, read_only=False),
    Parameter("max_set_age_s", 1.0, "of a set's oldest image when planning begins", 0.05, 60.0, read_only=False),
    Parameter("missing_timeout_s", 0.3, "after which an incomplete set is given up", 0.02, 10.0, read_only=False),
    Parameter(
        "max_missing_cameras", 0, "cameras that may be replaced by black; plans say so", 0, 5, read_only=False
    ),
    Parameter("max_odometry_age_s", 0.2, "of the newest odometry at a set's time", 0.0, 5.0, read_only=False),
    Parameter("odometry_wait_s", 0.2, "that a set waits for odometry of its time", 0.0, 2.0, read_only=False),
    Parameter("max_command_age_s", 0.0, "of the driving command; 0: no limit", 0.0, 3600.0, read_only=False),
    Parameter("diagnostics_period_s", 1.0, "between two messages on /diagnostics", 0.1, 10.0),
)  # fmt: skip
BY_NAME = {parameter.name: parameter for parameter in PARAMETERS}


@dataclass(frozen=True)
class Settings:
    """The values of ``PARAMETERS``; see there."""

    vla: str
    pruner: str
    drop: float
    vision_backend: str
    engine: str
    language_engine: str
    onnx_provider: str
    device: str
    dtype: str
    warm_up: bool
    calibrated_scores: bool
    keep_threshold: float
    k_min: int
    temporal_change: float
    temporal_memory: float
    temporal_max_gap_s: float
    autostart: bool
    image_transport: str
    base_frame: str
    trajectory_type: str
    max_spread_s: float
    max_set_age_s: float
    missing_timeout_s: float
    max_missing_cameras: int
    max_odometry_age_s: float
    odometry_wait_s: float
    max_command_age_s: float
    diagnostics_period_s: float

    @classmethod
    def defaults(cls) -> Settings:
        return cls(**{parameter.name: parameter.default for parameter in PARAMETERS})

    @property
    def compressed(self) -> bool:
        return self.image_transport == "compressed"

    def score_options(self) -> ScoreOptions:
        """Raises InputError for a value out of range."""
        from fastdrive_node.pruning.score_options import (
            ScoreOptions,  # torch, which checking a parameter file does not need
        )
        from fastdrive_node.pruning.temporal import TemporalSettings

        temporal = None
        if self.temporal_change or self.temporal_memory:
            temporal = TemporalSettings(self.temporal_change, self.temporal_memory, max_gap_s=self.temporal_max_gap_s)
        return ScoreOptions(self.calibrated_scores, self.keep_threshold, self.k_min, temporal)

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
        return WorkerLimits(odometry_wait_s=self.odometry_wait_s, max_command_age_s=self.max_command_age_s)


def problem(name: str, value: Any) -> str | None:
    """Why a value is not one for this parameter, or None."""
    parameter = BY_NAME.get(name)
    if parameter is None:
        return f"{name}: no such parameter; there are {', '.join(BY_NAME)}"
    if type(value) is not parameter.kind:
        return f"{name}: {value!r} is of type {type(value).__name__}, not {parameter.kind.__name__}"
    if parameter.choices and value not in parameter.choices:
        return f"{name}: {value!r} is not one of {', '.join(parameter.choices)}"
    if parameter.low is not None and not parameter.low <= value <= parameter.high:
        return f"{name}: {value!r} is not in {parameter.low:g} ... {parameter.high:g}"
    return None


def descriptor(parameter: Parameter):
    """rcl_interfaces/ParameterDescriptor."""
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

    message = ParameterDescriptor(
        name=parameter.name,
        description=parameter.description,
        read_only=parameter.read_only,
        additional_constraints=f"one of {', '.join(parameter.choices)}" if parameter.choices else "",
    )
    if parameter.kind is float and parameter.low is not None:
        message.floating_point_range = [FloatingPointRange(from_value=parameter.low, to_value=parameter.high)]
    if parameter.kind is int and parameter.low is not None:
        message.integer_range = [IntegerRange(from_value=int(parameter.low), to_value=int(parameter.high))]
    return message


def json_schema() -> dict:
    """JSON schema of a ROS 2 parameter file for this node; ``config/fastdrive.schema.json`` is its dump."""
    node = {
        "type": "object",
        "additionalProperties": False,
        "required": ["ros__parameters"],
        "properties": {
            "ros__parameters": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "use_sim_time": {"type": "boolean", "description": "take the time from /clock"},
                    **{parameter.name: _value_schema(parameter) for parameter in PARAMETERS},
                },
            }
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Parameters of fastdrive_node",
        "type": "object",
        "minProperties": 1,
        "patternProperties": {r"^(/\*\*|/?([A-Za-z_*][A-Za-z0-9_*]*/)*[A-Za-z_][A-Za-z0-9_]*)$": node},
        "additionalProperties": False,
    }


def _value_schema(parameter: Parameter) -> dict:
    schema: dict[str, Any] = {"type": _JSON_TYPES[parameter.kind], "description": parameter.description}
    schema["default"] = parameter.default
    if parameter.choices:
        schema["enum"] = list(parameter.choices)
    if parameter.low is not None:
        schema.update(minimum=parameter.low, maximum=parameter.high)
    if parameter.read_only:
        schema["readOnly"] = True
    return schema


def check_parameter_file(path: str | Path) -> Mapping:
    """Read a ROS 2 parameter file and check it against the schema; the node itself ignores names it does not know.

    Raises:
        InputError: it cannot be read, or a name or value is wrong; the text names it.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not readable as YAML ({' '.join(str(error).split())[:160]})") from error
    fault = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(json_schema()).iter_errors(content))
    if fault is not None:
        where = ".".join(str(part) for part in fault.absolute_path) or "the file"
        raise InputError(f"{path}: {where}: {fault.message[:200]}; config/fastdrive.schema.json has the parameters")
    return content


def schema_text() -> str:
    """The content of ``config/fastdrive.schema.json``."""
    return json.dumps(json_schema(), indent=2) + "\n"
