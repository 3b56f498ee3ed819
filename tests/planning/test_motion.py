"""Headings, speeds and rates along a plan."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastdrive_node.planning.motion import motion_of, resampled

TIMES = 0.5 * np.arange(1, 7)


def test_straight_and_steady():
    motion = motion_of(np.stack([4.0 * TIMES, 0 * TIMES], axis=1), 0.5)
    assert motion.times_s.tolist() == TIMES.tolist()
    assert motion.speeds_mps == pytest.approx([4.0] * 6)
    for values in (motion.headings_rad, motion.accels_mps2, motion.yaw_rates_radps):
        assert values == pytest.approx([0.0] * 6)


def test_a_circle_has_its_yaw_rate_and_speed():
    radius, rate = 20.0, 0.3
    points = np.stack([radius * np.sin(rate * TIMES), radius * (1 - np.cos(rate * TIMES))], axis=1)
    motion = motion_of(points, 0.5)
    assert motion.headings_rad[:5] == pytest.approx(rate * TIMES[:5])
    assert motion.yaw_rates_radps[:5] == pytest.approx([rate] * 5)
    assert motion.speeds_mps[:5] == pytest.approx([radius * rate] * 5, rel=0.01)


def test_braking_is_a_negative_acceleration():
    points = np.stack([8 * TIMES - TIMES**2, 0 * TIMES], axis=1)
    assert motion_of(points, 0.5).accels_mps2[1:5] == pytest.approx([-2.0] * 4)


def test_a_standing_vehicle_keeps_its_heading():
    points = np.array([[0, 2.0], [0, 2.0], [0, 2.0]])
    motion = motion_of(points, 0.5)
    assert motion.headings_rad == pytest.approx([math.pi / 2] * 3)
    assert motion_of(np.zeros((6, 2)), 0.5).headings_rad == pytest.approx([0.0] * 6)


def test_a_reversal_of_heading_is_taken_the_short_way():
    motion = motion_of(np.array([[-1.0, 0.1], [-2.0, 0.1], [-3.0, -0.1]]), 1.0)
    assert np.abs(motion.yaw_rates_radps[1:]).max() < 0.5


def test_one_waypoint_is_enough():
    motion = motion_of(np.array([[1.0, 1.0]]), 0.5)
    assert motion.headings_rad == pytest.approx([math.pi / 4])
    assert motion.accels_mps2 == pytest.approx([0.0])


def arc(radius: float = 20.0, rate: float = 0.3, times: np.ndarray = TIMES) -> np.ndarray:
    return np.stack([radius * np.sin(rate * times), radius * (1 - np.cos(rate * times))], axis=1)


def test_resampling_passes_through_the_waypoints_and_keeps_speed_and_turn():
    waypoints, motion = resampled(arc(), 0.5, 6.0, 0.1)
    assert motion.times_s == pytest.approx(0.1 * np.arange(1, 31))
    assert waypoints[4::5] == pytest.approx(arc())
    assert np.abs(waypoints - arc(times=motion.times_s)).max() < 0.02
    assert motion.speeds_mps == pytest.approx([6.0] * 30, rel=0.02)
    assert motion.headings_rad == pytest.approx(0.3 * motion.times_s, abs=0.02)
    assert motion.yaw_rates_radps == pytest.approx([0.3] * 30, abs=0.15)


def test_resampling_begins_with_the_vehicles_speed():
    braking = np.stack([8 * TIMES - TIMES**2, 0 * TIMES], axis=1)
    _, motion = resampled(braking, 0.5, 8.0, 0.1)
    assert motion.speeds_mps == pytest.approx(8 - 2 * motion.times_s, abs=0.05)
    assert motion.accels_mps2 == pytest.approx([-2.0] * 30, abs=0.3)


def test_resampling_of_a_stop_does_not_swing():
    stop = np.array([[2.0, 0.0], [2.5, 0.0], [2.5, 0.0], [2.5, 0.0]])
    waypoints, motion = resampled(stop, 0.5, 7.0, 0.1)
    assert np.diff(waypoints[:, 0]).min() >= -1e-9 and waypoints[:, 0].max() <= 2.5 + 1e-9
    assert motion.speeds_mps[10:] == pytest.approx([0.0] * 10) and motion.headings_rad == pytest.approx([0.0] * 20)


@pytest.mark.parametrize("speed", [0.0, -0.5, 3.0])
def test_resampling_of_a_vehicle_that_stands_stands(speed):
    waypoints, motion = resampled(np.zeros((1, 2)), 0.5, speed, 0.1)
    assert waypoints == pytest.approx(np.zeros((5, 2))) and motion.headings_rad == pytest.approx(np.zeros(5))


@pytest.mark.parametrize(("dt_s", "count"), [(0.5, 30), (0.25, 15), (0.1, 6), (0.07, 4)])
def test_resampling_ends_within_the_plan(dt_s, count):
    waypoints, motion = resampled(np.stack([np.arange(1.0, 7.0), np.zeros(6)], axis=1), dt_s, 1 / dt_s, 0.1)
    assert len(waypoints) == len(motion.times_s) == count
