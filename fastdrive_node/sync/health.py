"""Whether the inputs can be true: odometry against itself, stamps against arrival, publishers. No ROS.

Each check has an action: "warn" adds a line "code: text" to the plan's warnings, "refuse" ends the frame set with an
error that has the code and blames the input, "off" does not look.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from fastdrive_node.errors import EgoStateError, FrameSetError, ImageError, InputError
from fastdrive_node.geometry import wrap_angle
from fastdrive_node.types import CameraFrame, EgoHistory, EgoState

Action = Literal["warn", "refuse", "off"]
ACTIONS: tuple[str, ...] = get_args(Action)
REPEATED, REPEATED_S = 3, 5.0  # jumps back of stamps within this time are no bag that starts again
TOLD_S = 3.0  # for which something that happened once is told


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
    odometry_frame: Action = "warn"
    publishers: Action = "warn"
    frame_id: Action = "warn"
    camera_info: Action = "warn"  # its frame_id; ``planning.image_health`` compares the size
    frame_ids: Mapping[str, str] = field(default_factory=dict)  # by camera; those of the others are learnt


def check_odometry(history: EgoHistory, limits: InputLimits, frame_change: str = "") -> tuple[str, ...]:
    """Compare the last states with each other.

    Args:
        frame_change: that the odometry's frames changed a short time ago, see ``OdometryBuffer.frame_change``.

    Returns:
        The warnings, each "code: text".

    Raises:
        EgoStateError: a check whose action is "refuse" failed; ``code`` is "odometry.frame", "odometry.speed" or
            "odometry.motion".
    """
    now, warnings = history.now, []
    if frame_change:
        warnings += told(limits.odometry_frame, "odometry.frame", frame_change, EgoStateError)
    if limits.odometry_speed != "off" and abs(now.speed_mps) > limits.max_speed_mps:
        text = f"the odometry tells {now.speed_mps:.1f} m/s, the limit is {limits.max_speed_mps:g} m/s"
        warnings += told(limits.odometry_speed, "odometry.speed", text, EgoStateError)
    if limits.odometry_motion != "off":
        problem = next(filter(None, map(_mismatch, history.states[1:3], history.states, [limits] * 2)), None)
        if problem is not None:
            warnings += told(limits.odometry_motion, "odometry.motion", problem, EgoStateError)
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
    return told(limits.stamp_ahead, "frames.stamp_ahead", text, FrameSetError)


def told(action: Action, code: str, text: str, error: type[InputError]) -> tuple[str, ...]:
    """What a check that failed gives: a warning "code: text", nothing where it is off, or, to refuse, ``error``."""
    if action == "refuse":
        part = code.partition(".")[0]
        raise error(text if part == "image" else f"{part}: {text}", code=code)  # that of an image names the camera
    return () if action == "off" else (f"{code}: {text}",)


def check_publishers(publishers: Mapping[str, int], cameras: Iterable[str], limits: InputLimits) -> tuple[str, ...]:
    """Whether cameras and odometry have one publisher each.

    Args:
        publishers: matched ones, by input.

    Raises:
        ImageError, EgoStateError: as ``check_odometry``, with the code "image.publishers" or "odometry.publishers".
    """
    warnings: tuple[str, ...] = ()
    for name in (*cameras, "odometry"):
        if (count := publishers.get(name, 0)) > 1:
            text = f"{count} nodes publish its topic"
            if name == "odometry":
                warnings += told(limits.publishers, "odometry.publishers", text, EgoStateError)
            else:
                warnings += told(limits.publishers, "image.publishers", f"{name}: {text}", ImageError)
    return warnings


class Notice:
    """Something that happened, which is told for ``TOLD_S``."""

    def __init__(self) -> None:
        self._text, self._at_ns = "", 0

    def set(self, text: str, at_ns: int) -> None:
        self._text, self._at_ns = text, at_ns

    def at(self, now_ns: int) -> str:
        """The text, or an empty one where it was too long ago."""
        return self._text if abs(now_ns - self._at_ns) <= TOLD_S * 1e9 else ""


class RepeatedJumps:
    """Jumps back of stamps that come again and again: a camera with two clocks, or two publishers of one topic."""

    def __init__(self) -> None:
        self._at_ns: deque[int] = deque(maxlen=REPEATED)
        self.notice = Notice()

    def add(self, camera: str, now_ns: int) -> str:
        """Note a jump at ``now_ns``. A text where it is one of ``REPEATED`` in ``REPEATED_S``, else an empty one."""
        self._at_ns.append(now_ns)
        if len(self._at_ns) < REPEATED or not 0 <= now_ns - self._at_ns[0] <= REPEATED_S * 1e9:
            return ""
        text = f"{camera}: its stamps jump back again and again: two clocks, or two publishers?"
        self.notice.set(text, now_ns)
        return text
