"""Angles, headings and planar frames."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastdrive_node.geometry import step_headings, to_parent_frame, wrap_angle, yaw_of_quaternion


def test_angles_are_wrapped_to_the_half_open_interval():
    assert wrap_angle(math.pi) == -math.pi and wrap_angle(-math.pi) == -math.pi
    assert wrap_angle(np.array([3 * math.pi / 2, 7.0])) == pytest.approx([-math.pi / 2, 7.0 - 2 * math.pi])


def test_a_short_step_has_the_heading_of_the_one_before():
    steps = np.array([[0.1, 0.1], [0.0, 2.0], [-0.1, 0.0], [-2.0, 0.0]])
    assert step_headings(steps, 1.0) == pytest.approx([0.0, math.pi / 2, math.pi / 2, math.pi])
    assert step_headings(steps) == pytest.approx(np.arctan2(steps[:, 1], steps[:, 0]))


def test_points_are_turned_and_then_moved():
    points = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    moved = to_parent_frame(points, 10.0, 20.0, math.pi / 2)
    assert moved == pytest.approx(np.array([[10.0, 20.0], [10.0, 22.0], [9.0, 20.0]]))


@pytest.mark.parametrize("roll_pitch", [(0.0, 0.0), (0.1, -0.05)])
def test_the_yaw_of_a_quaternion_is_that_of_scipy(roll_pitch):
    rotation = pytest.importorskip("scipy.spatial.transform").Rotation
    for yaw in (-3.0, -0.5, 0.0, 2.5):
        x, y, z, w = rotation.from_euler("ZYX", [yaw, *roll_pitch]).as_quat()
        assert yaw_of_quaternion(x, y, z, w) == pytest.approx(yaw)
