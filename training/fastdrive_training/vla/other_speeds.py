"""Keyframes at other speeds of the vehicle, from the labels of ``fastdrive sim dataset --other-speeds``.

An image does not show how fast its camera moves. So one image serves several samples, whose plans differ by what is
ahead and by the speed alone: a planner that looks past the images is wrong in most of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from fastdrive_node.errors import InputError
from fastdrive_node.types import EgoHistory
from fastdrive_node.validation import first_fault
from fastdrive_training.data.adapters.base import FUTURE_INTERVAL_S, FUTURE_POINTS, Item

ENTRY = "other_speeds"  # of extras.json
Finite = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Metres = Annotated[float, Field(gt=-100, lt=100, allow_inf_nan=False, strict=True)]  # as answers write them
Points = Annotated[list[tuple[Metres, Metres]], Field(min_length=FUTURE_POINTS, max_length=FUTURE_POINTS)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class OtherSpeed:
    """A speed, and the expert's plan for it: the entry of extras.json."""

    speed_mps: Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
    yaw_rate_radps: Finite
    future_xy: Points  # m, in the ego frame of the keyframe, each 0.5 s


_ENTRIES = TypeAdapter(list[OtherSpeed])


def at_other_speeds(item: Item) -> list[Item]:
    """The item at each of its other speeds: with the same images, and only the present state known.

    Raises InputError: the entry is not one of ``fastdrive sim dataset``.
    """
    try:
        entries = _ENTRIES.validate_python(item.extras.get(ENTRY, []))
    except ValidationError as error:
        fault = first_fault(error)
        raise InputError(f"{item.name}: {ENTRY} of extras.json: {fault}; write the dataset anew") from error
    return [_at(item, entry) for entry in entries]


def _at(item: Item, entry: OtherSpeed) -> Item:
    history = item.known_history
    now = replace(
        history.now,
        speed_mps=entry.speed_mps,
        yaw_rate_radps=entry.yaw_rate_radps,
        accel_mps2=0.0,
        accel_y_mps2=None,
        speed_y_mps=None,
        steer_rad=None,
    )
    return replace(item, history=EgoHistory((now,), history.interval_s), find_future=_only(entry.future_xy))


def _only(points: list[tuple[float, float]]) -> Callable[[int, float], np.ndarray | None]:
    """The future that is known in one form alone."""
    future = np.array(points, np.float64)
    return lambda count, interval_s: future if (count, interval_s) == (FUTURE_POINTS, FUTURE_INTERVAL_S) else None
