"""Inputs that cannot be true are told, with a code that blames the right part."""

from __future__ import annotations

import pytest

from fastdrive_node.errors import EgoStateError, FrameSetError
from fastdrive_node.sync.frames import FrameBuffer, FrameLimits
from fastdrive_node.sync.health import InputLimits, check_odometry, check_stamps
from fastdrive_node.types import CameraFrame, EgoHistory, EgoState

S = 1_000_000_000
REFUSE = InputLimits(odometry_motion="refuse")


def history(*states: tuple[float, float, float, float], yaw_rate=0.0) -> EgoHistory:
    """Of (x, y, yaw, speed), newest first, half a second apart."""
    return EgoHistory(
        tuple(
            EgoState(10 * S - k * S // 2, x, y, yaw, speed, yaw_rate_radps=yaw_rate)
            for k, (x, y, yaw, speed) in enumerate(states)
        )
    )


def code_of(past: EgoHistory, limits=REFUSE) -> str:
    try:
        check_odometry(past, limits)
    except EgoStateError as error:
        return error.code
    return ""


@pytest.mark.parametrize(
    "past",
    [
        history((0, 0, 0, 0)),
        history((0, 0, 0, 0), (0, 0, 0, 0)),
        history((10, 0, 0, 20), (0, 0, 0, 20), (-10, 0, 0, 20)),
        history((11, 0, 0, 20), (0, 0, 0, 20)),  # a scale error of 10 %
        history((2, 0, 0, 0), (0, 0, 0, 8)),  # braking
        history((-1, 0, 0, -2), (0, 0, 0, -2)),
        history((4.8, 1.2, 0.5, 10), (0, 0, 0, 10), yaw_rate=1.0),
    ],
)
def test_odometry_that_agrees_with_itself_passes(past):
    assert check_odometry(past, REFUSE) == ()


@pytest.mark.parametrize(
    ("past", "code"),
    [
        (history((0, 0, 0, 80), (-40, 0, 0, 80)), "odometry.speed"),
        (history((0, 0, 0, -80)), "odometry.speed"),
        (history((5, 0, 0, 0), (0, 0, 0, 0)), "odometry.motion"),  # standing while the pose moves
        (history((0, 0, 0, 10), (0, 0, 0, 10)), "odometry.motion"),  # moving while the pose stands
        (history((25, 0, 0, 10), (0, 0, 0, 10)), "odometry.motion"),  # a jump of 20 m
        (history((10, 0, 0, 10), (5, 0, 0, 10), (-20, 0, 0, 10)), "odometry.motion"),  # half a second ago
        (history((5, 0, 1.5, 10), (0, 0, 0, 10)), "odometry.motion"),  # turned without a yaw rate
    ],
)
def test_odometry_against_itself_is_refused_and_blamed(past, code):
    assert code_of(past) == code


def test_a_check_is_a_warning_or_off():
    past = history((5, 0, 0, 0), (0, 0, 0, 0))
    (warning,) = check_odometry(past, InputLimits())
    assert warning.startswith("odometry.motion: its pose moved by 5.0 m in 0.5 s")
    assert check_odometry(past, InputLimits(odometry_motion="off")) == ()
    assert code_of(history((0, 0, 0, 80)), InputLimits(odometry_speed="off")) == ""


def frame(camera: str, stamp_ns: int, received_ns: int) -> CameraFrame:
    return CameraFrame(camera, stamp_ns, received_ns, lambda: None)


def test_a_camera_whose_clock_is_ahead_is_named():
    frames = [frame("a", 5 * S, 5 * S + 1), frame("b", 6 * S, 5 * S)]
    with pytest.raises(FrameSetError, match=r"^frames: b is stamped 1\.00 s after it arrived") as caught:
        check_stamps(frames, (), InputLimits())
    assert caught.value.code == "frames.stamp_ahead"
    (warning,) = check_stamps(frames, (), InputLimits(stamp_ahead="warn"))
    assert warning.startswith("frames.stamp_ahead: b ")
    assert check_stamps(frames, (), InputLimits(stamp_ahead="off")) == ()
    assert check_stamps(frames, ("b",), InputLimits()) == ()  # black in its place


def test_a_stamp_just_ahead_of_its_arrival_is_allowed():
    assert check_stamps([frame("a", 5 * S + S // 10, 5 * S)], (), InputLimits()) == ()


def reports_of(stamps_s, period_s=0.1) -> list[str]:
    buffer = FrameBuffer(["a", "b"])
    for number, stamp_s in enumerate(stamps_s):
        buffer.add(frame("a", round(stamp_s * S), round((100 + number * period_s) * S)))
    return [report.code for report in buffer.drain_reports()]


def test_stamps_that_jump_again_and_again_are_reported():
    alternating = [100 + 0.1 * k - (k % 2) for k in range(12)]
    assert "frames.stamps_jump" in reports_of(alternating)


def test_jumps_are_a_warning_for_some_seconds_or_off_by_the_limits():
    for action in ("warn", "off"):
        buffer = FrameBuffer(["a", "b"], FrameLimits(stamps_jump=action))
        for number in range(8):
            buffer.add(frame("a", round((100 + 0.1 * number - number % 2) * S), (100 + number) * S // 10))
        assert "frames.stamps_jump" not in [report.code for report in buffer.drain_reports()]
        expected = ["frames.stamps_jump: a"] if action == "warn" else []
        assert [line[:21] for line in buffer.warnings(12 * S)] == expected
        assert buffer.warnings(15 * S) == ()


def test_one_jump_back_is_a_bag_that_starts_again():
    assert "frames.stamps_jump" not in reports_of([100, 100.1, 100.2, 50, 50.1, 50.2])
    assert "frames.stamps_jump" not in reports_of([100, 50, 100, 50, 100, 50], period_s=3.0)
