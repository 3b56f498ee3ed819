"""Whether the inputs can be true: odometry against itself, stamps against arrival. No ROS.

Each check has an action: "warn" adds a line "code: text" to the plan's warnings, "refuse" ends the frame set with an
error that has the code and blames the input, "off" does not look.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from fastdrive_node.errors import EgoStateError, FrameSetError
from fastdrive_node.geometry import wrap_angle
from fastdrive_node.types import CameraFrame, EgoHistory, EgoState

Action = Literal["warn", "refuse", "off"]
ACTIONS: tuple[str, ...] = get_args(Action)
REPEATED, REPEATED_S = 3, 5.0  # jumps back of stamps within this time are no bag that starts again


@dataclass(frozen=True)
class InputLimits:
    """Limits and actions of the checks."""

    odometry_speed: Action = "refuse"
    max_speed_mps: float = 70.0  # of the vehicle; more is a fault of the odometry
    odometry_motion: Action = "warn"
    motion_tolerance_m: float = 1.0  # between the distance of two poses and that of their speeds, and 20 %
    turn_tolerance_rad: float = 0.3  # between the turn of two poses and that of their yaw rates
    stamp_ahead: Action = "refuse"
    max_ahead_s: float = 0.2  # of an image's stamp ahead of its arrival, which no camera with a right clock has


def check_odometry(history: EgoHistory, limits: InputLimits) -> tuple[str, ...]:
    """Compare the last states with each other.

    Returns:
        The warnings, each "code: text".

    Raises:
        EgoStateError: a check whose action is "refuse" failed; ``code`` is "odometry.speed" or "odometry.motion".
    """
    now, warnings = history.now, []
    if limits.odometry_speed != "off" and abs(now.speed_mps) > limits.max_speed_mps:
        text = f"the odometry tells {now.speed_mps:.1f} m/s, the limit is {limits.max_speed_mps:g} m/s"
        warnings += _told(limits.odometry_speed, "odometry.speed", text, EgoStateError)
    if limits.odometry_motion != "off":
        problem = next(filter(None, map(_mismatch, history.states[1:3], history.states, [limits] * 2)), None)
        if problem is not None:
            warnings += _told(limits.odometry_motion, "odometry.motion", problem, EgoStateError)
    return tuple(warnings)


def _mismatch(before: EgoState, after: EgoState, limits: InputLimits) -> str | None:
    """How the poses of two states differ from their speeds; None: they agree."""
    passed_s = (after.stamp_ns - before.stamp_ns) * 1e-9
    moved = math.hypot(after.x_m - before.x_m, after.y_m - before.y_m)
    driven = passed_s * abs(after.speed_mps + before.speed_mps) / 2
    if abs(moved - driven) > limits.motion_tolerance_m + 0.2 * min(moved, driven):
        return f"its pose moved by {moved:.1f} m in {passed_s:.1f} s, and its speeds tell {driven:.1f} m"
    turned = float(wrap_angle(after.yaw_rad - before.yaw_rad))
    expected = passed_s * (after.yaw_rate_radps + before.yaw_rate_radps) / 2
    if abs(wrap_angle(turned - expected)) > limits.turn_tolerance_rad:
        return f"its pose turned by {turned:.2f} rad in {passed_s:.1f} s, and its yaw rates tell {expected:.2f} rad"
    return None


def check_stamps(frames: Iterable[CameraFrame], missing: Sequence[str], limits: InputLimits) -> tuple[str, ...]:
    """Compare the stamps of a set with the times of arrival.

    Returns:
        The warnings, each "code: text".

    Raises:
        FrameSetError: as ``check_odometry``, with the code "frames.stamp_ahead".
    """
    if limits.stamp_ahead == "off":
        return ()
    ahead = {
        frame.camera: (frame.stamp_ns - frame.received_ns) * 1e-9 for frame in frames if frame.camera not in missing
    }
    worst = max(ahead, key=ahead.__getitem__, default=None)
    if worst is None or ahead[worst] <= limits.max_ahead_s:
        return ()
    text = f"{worst} is stamped {ahead[worst]:.2f} s after it arrived: check its clock, and use_sim_time"
    return _told(limits.stamp_ahead, "frames.stamp_ahead", text, FrameSetError)


def _told(action: Action, code: str, text: str, error: type[EgoStateError] | type[FrameSetError]) -> tuple[str, ...]:
    if action == "refuse":
        raise error(f"{code.partition('.')[0]}: {text}", code=code)
    return (f"{code}: {text}",)


class RepeatedJumps:
    """Jumps back of stamps that come again and again: a camera with two clocks, or two publishers of one topic."""

    def __init__(self) -> None:
        self._at_ns: deque[int] = deque(maxlen=REPEATED)

    def add(self, now_ns: int) -> bool:
        """Note a jump at ``now_ns``. True where it is one of ``REPEATED`` in ``REPEATED_S``."""
        self._at_ns.append(now_ns)
        return len(self._at_ns) == REPEATED and 0 <= now_ns - self._at_ns[0] <= REPEATED_S * 1e9
