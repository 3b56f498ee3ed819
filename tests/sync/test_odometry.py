"""Odometry to the ego history at t0."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdrive_node.errors import InputError
from fastdrive_node.sync.odometry import OdometryBuffer, OdometryLimits
from fastdrive_node.types import EgoState, VehicleSignal

MS = 1_000_000
START = 1_533_151_603_000 * MS


def at(ms: float) -> int:
    return START + round(ms * MS)


def driven(seconds: float, hz: float, speed: float = 10.0, accel: float = 0.0) -> OdometryBuffer:
    """Straight along x from 0 s to ``seconds``."""
    buffer = OdometryBuffer()
    for k in range(round(seconds * hz) + 1):
        t = k / hz
        buffer.add(EgoState(at(t * 1e3), speed * t + accel * t * t / 2, 0.0, 0.0, speed + accel * t))
    return buffer


def test_the_history_has_seven_states_half_a_second_apart_newest_first():
    history = driven(5, 20, accel=1.0).history(at(4000))
    assert [state.stamp_ns for state in history.states] == [at(4000 - 500 * k) for k in range(7)]
    assert history.now.speed_mps == pytest.approx(14.0)
    assert history.now.accel_mps2 == pytest.approx(1.0)
    assert history.states[6].x_m == pytest.approx(10.5)


def test_states_between_samples_are_interpolated():
    state = driven(2, 2).history(at(1250)).now
    assert state.x_m == pytest.approx(12.5)
    assert state.stamp_ns == at(1250)


def test_later_odometry_does_not_change_a_state_that_is_covered():
    buffer = driven(2, 20, accel=2.0)
    assert buffer.covers(at(2000)) and not buffer.covers(at(2001))
    before = buffer.history(at(1990))
    buffer.add(EgoState(at(2050), 99.0, 9.0, 1.0, 50.0))
    assert buffer.history(at(1990)) == before


def test_the_heading_is_interpolated_over_the_short_way():
    buffer = OdometryBuffer()
    buffer.add(EgoState(at(0), 0, 0, math.pi - 0.1, 1.0))
    buffer.add(EgoState(at(100), 0, 0, -math.pi + 0.1, 1.0))
    assert abs(buffer.history(at(50)).now.yaw_rad) == pytest.approx(math.pi)


def test_a_history_that_has_just_begun_is_short():
    assert len(driven(0.6, 20).history(at(600)).states) == 2
    single = OdometryBuffer()
    single.add(EgoState(at(43), 5.0, 1.0, 0.0, 10.0))
    history = single.history(at(0))
    assert len(history.states) == 1
    assert history.now.x_m == pytest.approx(5.0 - 0.43)
    assert history.now.accel_mps2 == 0.0


def test_old_odometry_is_refused_with_its_age():
    with pytest.raises(InputError, match=r"odometry: the newest is 0\.25 s before t0, the limit is 0\.20 s"):
        driven(1, 20).history(at(1250))
    assert driven(1, 20).history(at(1199)).now.x_m == pytest.approx(11.99)


def test_odometry_that_begins_long_after_t0_is_refused():
    buffer = OdometryBuffer()
    buffer.add(EgoState(at(1000), 0, 0, 0, 1.0))
    with pytest.raises(InputError, match=r"the oldest is 1\.00 s after t0"):
        buffer.history(at(0))


def test_no_odometry_at_all_names_the_topic():
    with pytest.raises(InputError, match="~/input/odometry"):
        OdometryBuffer().history(at(0))


def test_a_long_gap_is_not_bridged():
    buffer = OdometryBuffer(limits=OdometryLimits(max_gap_s=0.6))
    for ms in (0, 1000):
        buffer.add(EgoState(at(ms), 0, 0, 0, 1.0))
    with pytest.raises(InputError, match=r"a gap of more than 0\.60 s around t0"):
        buffer.history(at(500))
    assert len(buffer.history(at(1000)).states) == 1


def test_a_jump_back_forgets_and_a_late_sample_is_ignored():
    buffer = driven(5, 20)
    buffer.add(EgoState(at(4900), 0.0, 0, 0, 1.0))
    assert buffer.history(at(4900)).now.x_m == pytest.approx(49.0)
    buffer.add(EgoState(at(0), 7.0, 0, 0, 1.0))
    assert len(buffer.history(at(0)).states) == 1


def test_a_clock_jump_keeps_the_samples_of_the_new_time_only():
    buffer = driven(5, 20)
    buffer.reset(keep_until_ns=at(1000))
    assert buffer.newest_ns == at(1000)
    buffer.reset()
    assert buffer.newest_ns is None


def test_odometry_of_another_frame_forgets_what_came_before(caplog):
    buffer = driven(5, 20)
    buffer.add(EgoState(at(5050), 900.0, 9.0, 1.0, 2.0, frame="odom"))
    history = buffer.history(at(5050))
    assert [state.frame for state in history.states] == ["odom"]
    assert "frame_id 'odom' after 'map'" in caplog.text


def test_a_change_of_frames_is_told_for_three_seconds_and_logged_once(caplog):
    buffer = driven(5, 20)
    assert not buffer.frame_change(at(5000))
    for ms, child in ((5050, "base_link"), (5100, ""), (5150, "base_link")):
        buffer.add(EgoState(at(ms), 50.0, 0.0, 0.0, 10.0, child_frame=child))
    assert buffer.frame_change(at(8000)).startswith("child_frame_id 'base_link' after ''")
    assert not buffer.frame_change(at(8200)) and len(caplog.records) == 1


def test_height_is_interpolated():
    buffer = OdometryBuffer()
    for ms, z in ((0, 10.0), (100, 12.0)):
        buffer.add(EgoState(at(ms), 0, 0, 0, 1.0, z_m=z))
    assert buffer.history(at(50)).now.z_m == pytest.approx(11.0)


def test_a_turn_is_extrapolated_along_the_arc():
    buffer = OdometryBuffer()
    buffer.add(EgoState(at(0), 0, 0, 0, 10.0, yaw_rate_radps=0.5))
    state = buffer.history(at(200)).now
    assert (state.x_m, state.y_m) == pytest.approx((20 * math.sin(0.1), 20 * (1 - math.cos(0.1))), abs=1e-3)
    assert state.yaw_rad == pytest.approx(0.1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_an_input_error(value):
    with pytest.raises(InputError, match="not finite"):
        OdometryBuffer().add(EgoState(at(0), value, 0, 0, 0))


def test_only_the_seconds_that_are_needed_are_held():
    assert len(driven(60, 100)._states) < 600


@given(st.floats(0.0, 4.0), st.floats(-3.0, 3.0))
def test_uniform_acceleration_is_found_at_any_time(t, accel):
    history = driven(5, 50, speed=20.0, accel=accel).history(at(1000 + t * 1e3))
    assert history.now.accel_mps2 == pytest.approx(accel, abs=1e-6)
    assert history.now.x_m == pytest.approx(20 * (1 + t) + accel * (1 + t) ** 2 / 2, abs=1e-3)


def test_steering_and_acceleration_go_into_the_states_that_are_near_them():
    buffer = driven(5, 20)
    for ms, angle in ((3500, 0.1), (3980, 0.2), (4010, 0.3)):
        buffer.add_signal(VehicleSignal(at(ms), steer_rad=angle))
    buffer.add_signal(VehicleSignal(at(4050), accel_mps2=1.5, accel_y_mps2=-0.5))
    states = buffer.history(at(4000)).states
    assert [state.steer_rad for state in states[:3]] == [0.3, 0.1, None]
    assert (states[0].accel_mps2, states[0].accel_y_mps2, states[0].accel_measured) == (1.5, -0.5, True)
    assert not states[1].accel_measured and states[1].accel_y_mps2 is None


@pytest.mark.parametrize("value", [math.nan, math.inf, 3.0])
def test_a_steering_angle_that_no_vehicle_has_is_an_input_error(value):
    buffer = driven(5, 20)
    with pytest.raises(InputError, match=r"steer_rad: .* the message is ignored"):
        buffer.add_signal(VehicleSignal(at(4000), steer_rad=value))
    assert buffer.history(at(4000)).now.steer_rad is None


def test_signals_of_before_a_jump_back_are_forgotten():
    buffer = driven(5, 20)
    buffer.add_signal(VehicleSignal(at(5000), steer_rad=0.1))
    buffer.add_signal(VehicleSignal(at(2000), steer_rad=0.2))
    assert buffer.history(at(5000)).now.steer_rad is None and buffer.history(at(2000)).now.steer_rad == 0.2
