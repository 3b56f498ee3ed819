"""The vehicle's own measurements, from nuScenes' CAN bus expansion: ``can_bus/<scene>_<message>.json``.

A file is a list of messages of one kind, each with ``utime``, the time of the measurement in µs. Read are

- ``pose`` (50 Hz): ``accel``, ``vel`` and ``rotation_rate`` in the ego frame, x forward, y left (m/s2, m/s, rad/s);
- ``steeranglefeedback`` (100 Hz): ``value``, the angle of the steering wheel in rad. Positive is left: the maintainers
  corrected the expansion's first description, nuscenes-devkit issue 371;
- ``vehicle_monitor`` (2 Hz): ``vehicle_speed`` in km/h, where no pose message is near.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, FiniteFloat, TypeAdapter, ValidationError

from fastdrive_node.errors import InputError
from fastdrive_node.families.templates import NUSCENES_STEERING_RATIO
from fastdrive_node.types import EgoHistory, EgoState
from fastdrive_node.validation import first_fault

REACH_S = 0.1  # a message further away in time is not of the state
_KMH = 3.6
_Vector = tuple[FiniteFloat, FiniteFloat, FiniteFloat]


class _Message(BaseModel):
    utime: Annotated[int, Field(ge=0, lt=1 << 53)]


class _PoseMessage(_Message):
    accel: _Vector
    vel: _Vector
    rotation_rate: _Vector


class _SteeringMessage(_Message):
    value: FiniteFloat


class _MonitorMessage(_Message):
    vehicle_speed: FiniteFloat


_FILES: dict[str, TypeAdapter[Any]] = {
    "pose": TypeAdapter(list[_PoseMessage]),
    "steeranglefeedback": TypeAdapter(list[_SteeringMessage]),
    "vehicle_monitor": TypeAdapter(list[_MonitorMessage]),
}


@dataclass(frozen=True)
class _Track:
    """The messages of one kind in a scene, in time order."""

    stamps_us: np.ndarray  # int64 [n]
    messages: Sequence[Any]

    def near(self, stamp_ns: int) -> Any:
        """The nearest message, None where it is further away than ``REACH_S``."""
        if not len(self.stamps_us):
            return None
        apart_s = np.abs(self.stamps_us - stamp_ns // 1000) * 1e-6
        nearest = int(apart_s.argmin())
        return self.messages[nearest] if apart_s[nearest] <= REACH_S else None


class CanBus:
    """The messages of a dataset's scenes; each file is read when a state of its scene is asked for."""

    def __init__(self, root: Path):
        self._folder = root / "can_bus"
        self._tracks = lru_cache(maxsize=8)(self._read_scene)

    def files(self, scenes: Iterable[str]) -> list[Path]:
        """The files that are there for some scenes."""
        if not self._folder.is_dir():
            return []
        paths = (self._path(scene, name) for scene in sorted(set(scenes)) for name in _FILES)
        return [path for path in paths if path is not None and path.is_file()]

    def measured(self, scene: str, history: EgoHistory) -> EgoHistory:
        """A history whose states hold what the vehicle measured, where it did.

        Raises InputError: a file is damaged; the text names it and the field.
        """
        tracks = self._tracks(scene)
        if not tracks:
            return history
        return replace(history, states=tuple(_with_messages(state, tracks) for state in history.states))

    def _path(self, scene: str, name: str) -> Path | None:
        return self._folder / f"{scene}_{name}.json" if re.fullmatch(r"[\w-]+", scene) else None

    def _read_scene(self, scene: str) -> dict[str, _Track]:
        paths = {name: self._path(scene, name) for name in _FILES}
        return {name: _read(path, _FILES[name]) for name, path in paths.items() if path is not None and path.is_file()}


def _read(path: Path, adapter: TypeAdapter[Any]) -> _Track:
    try:
        messages = adapter.validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        raise InputError(f"{path}: {first_fault(error)}; unpack the CAN bus expansion again") from None
    except OSError as error:
        raise InputError(f"{path}: not readable ({error})") from error
    messages.sort(key=lambda message: message.utime)
    return _Track(np.array([message.utime for message in messages], np.int64), messages)


def _with_messages(state: EgoState, tracks: dict[str, _Track]) -> EgoState:
    pose, steering, monitor = (tracks[name].near(state.stamp_ns) if name in tracks else None for name in _FILES)
    if pose is not None:
        state = replace(
            state,
            accel_mps2=pose.accel[0],
            accel_y_mps2=pose.accel[1],
            accel_measured=True,
            speed_mps=pose.vel[0],
            speed_y_mps=pose.vel[1],
            yaw_rate_radps=pose.rotation_rate[2],
        )
    elif monitor is not None:  # has no sign
        state = replace(state, speed_mps=math.copysign(monitor.vehicle_speed / _KMH, state.speed_mps))
    if steering is not None:
        state = replace(state, steer_rad=steering.value / NUSCENES_STEERING_RATIO)
    return state
