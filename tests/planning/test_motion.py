"""Headings, speeds and rates along a plan."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastdrive_node.planning.motion import motion_of

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
