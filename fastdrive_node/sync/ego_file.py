"""Ego states from a JSON file, for commands that plan without a vehicle. No ROS."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from fastdrive_node.errors import EgoStateError, ModelError
from fastdrive_node.sync.odometry import OdometryBuffer
from fastdrive_node.types import EgoHistory, EgoState
from fastdrive_node.validation import STRICT, parse_json, read_bytes

_LIMIT = 1e6
_TURN = 2 * math.pi  # rad; larger angles are degrees
_TOP_SPEED, _SLACK_M = 100.0, 2.0  # no vehicle goes farther between two states than this speed and slack
_Speed = Annotated[float, Field(ge=-_TOP_SPEED, le=_TOP_SPEED)]
_Accel = Annotated[float, Field(ge=-100, le=100)]


@dataclass(frozen=True, config=STRICT)
class StoredState:
    """One state of the file; metres and radians in a fixed frame, x and y of the rear axle."""

    t_s: Annotated[float, Field(ge=-100, le=0)]  # relative to the images
    x: Annotated[float, Field(ge=-_LIMIT, le=_LIMIT)]
    y: Annotated[float, Field(ge=-_LIMIT, le=_LIMIT)]
    yaw: Annotated[float, Field(ge=-_TURN, le=_TURN)]
    speed: _Speed  # m/s
    yaw_rate: Annotated[float, Field(ge=-_TURN, le=_TURN)] = 0.0  # rad/s
    ax: _Accel | None = None  # m/s2
    ay: _Accel | None = None
    vy: _Speed | None = None  # m/s
    steer: Annotated[float, Field(ge=-math.pi / 2, le=math.pi / 2)] | None = None  # front wheels, rad, left positive


_STATES = TypeAdapter(Annotated[list[StoredState], Field(min_length=1, max_length=10_000)])


def read_history(path: Path, steps: int, interval_s: float) -> EgoHistory:
    """The states at 0, -interval, ... -steps * interval that a file tells; states between its own are interpolated.

    Args:
        path: a JSON list of states, newest last; the newest is at 0.

    Raises:
        EgoStateError: the file cannot be read, a field is wrong (the text names it), or times do not rise to 0.
    """
    try:
        stored = parse_json(_STATES, read_bytes(path), path, "see `fastdrive plan --help`")
    except ModelError as error:
        raise EgoStateError(str(error)) from None
    except OSError as error:
        raise EgoStateError(f"{path}: not readable ({error.strerror})") from error
    except ValueError as error:
        raise EgoStateError(f"{path}: {error}; give a JSON list of states") from error
    times = [state.t_s for state in stored]
    if times != sorted(set(times)) or times[-1] < -1e-3:
        raise EgoStateError(f"{path}: t_s: must rise from state to state and end at 0 s, the time of the images")
    for before, after in pairwise(stored):
        gone = math.hypot(after.x - before.x, after.y - before.y)
        if gone > _TOP_SPEED * (after.t_s - before.t_s) + _SLACK_M:
            raise EgoStateError(
                f"{path}: x, y: {gone:.0f} m from t_s {before.t_s:g} to {after.t_s:g}; no vehicle moves so far"
            )
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
