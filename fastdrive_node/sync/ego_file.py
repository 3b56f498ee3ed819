"""Ego states from a JSON file, for commands that plan without a vehicle. No ROS."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from fastdrive_node.errors import EgoStateError, ModelError
from fastdrive_node.sync.odometry import OdometryBuffer
from fastdrive_node.types import EgoHistory, EgoState
from fastdrive_node.validation import STRICT, parse_json

_LIMIT = 1e6


@dataclass(frozen=True, config=STRICT)
class StoredState:
    """One state of the file; metres and radians in a fixed frame, x and y of the rear axle."""

    t_s: Annotated[float, Field(ge=-100, le=0)]  # relative to the images
    x: Annotated[float, Field(ge=-_LIMIT, le=_LIMIT)]
    y: Annotated[float, Field(ge=-_LIMIT, le=_LIMIT)]
    yaw: Annotated[float, Field(ge=-_LIMIT, le=_LIMIT)]
    speed: float  # m/s
    yaw_rate: float = 0.0  # rad/s
    ax: float | None = None  # m/s2
    ay: float | None = None
    vy: float | None = None  # m/s
    steer: float | None = None  # of the front wheels, rad, positive to the left


_STATES = TypeAdapter(Annotated[list[StoredState], Field(min_length=1, max_length=10_000)])


def read_history(path: Path, steps: int, interval_s: float) -> EgoHistory:
    """The states at 0, -interval, ... -steps * interval that a file tells; states between its own are interpolated.

    Args:
        path: a JSON list of states, newest last; the newest is at 0.

    Raises:
        EgoStateError: the file cannot be read, a field is wrong (the text names it), or times do not rise to 0.
    """
    try:
        stored = parse_json(_STATES, path.read_bytes(), path, "see `fastdrive plan --help`")
    except ModelError as error:
        raise EgoStateError(str(error)) from None
    except OSError as error:
        raise EgoStateError(f"{path}: not readable ({error.strerror})") from error
    times = [state.t_s for state in stored]
    if times != sorted(set(times)) or times[-1] < -1e-3:
        raise EgoStateError(f"{path}: t_s: must rise from state to state and end at 0 s, the time of the images")
    buffer = OdometryBuffer(steps, interval_s)
    for state in stored:
        buffer.add(_ego_state(state))
    return buffer.history(round(times[-1] * 1e9))


def _ego_state(state: StoredState) -> EgoState:
    return EgoState(
        stamp_ns=round(state.t_s * 1e9),
        x_m=state.x,
        y_m=state.y,
        yaw_rad=state.yaw,
        speed_mps=state.speed,
        accel_mps2=state.ax or 0.0,
        yaw_rate_radps=state.yaw_rate,
        accel_measured=state.ax is not None,
        accel_y_mps2=state.ay,
        speed_y_mps=state.vy,
        steer_rad=state.steer,
    )
