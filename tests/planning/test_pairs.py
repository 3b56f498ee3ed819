"""Kinds of pairs: round trips on smooth drives, and the path of the rear axle behind another point."""

from typing import get_args

import numpy as np
import pytest

from fastdrive_node.families.spec import PairKind
from fastdrive_node.geometry import wrap_angle
from fastdrive_node.planning.pairs import pairs_of, rear_axle_path, trajectory_of

DT_S = 0.5
KINDS = get_args(PairKind)


def drive(speed=6.0, curvature=0.03, points=6):
    """Waypoints of an arc that starts straight ahead, and its headings."""
    headings = speed * curvature * DT_S * np.arange(1, points + 1)
    chord = speed * DT_S * np.sinc(speed * DT_S * curvature / (2 * np.pi))
    middles = headings - headings[0] / 2
    return (chord * np.stack([np.cos(middles), np.sin(middles)], axis=1)).cumsum(axis=0), headings


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("curvature", [0.0, 0.05, -0.05])
def test_pairs_state_the_waypoints_that_they_were_made_of(kind, curvature):
    waypoints, _ = drive(curvature=curvature)
    assert np.allclose(trajectory_of(pairs_of(waypoints, kind, DT_S), kind, DT_S).waypoints_m, waypoints, atol=1e-9)


def test_each_kind_has_its_own_meaning():
    def points(kind, pairs):
        return trajectory_of(np.array(pairs), kind, 0.5).waypoints_m.round(6).tolist()

    assert points("xy", [[2, 1], [4, 2]]) == [[2, 1], [4, 2]]
    assert points("dxdy", [[2, 1], [2, 1]]) == [[2, 1], [4, 2]]
    assert points("distance_heading", [[2, 90], [2, 0]]) == [[0, 2], [2, 2]]
    assert points("distance_turn", [[2, 90], [2, -90]]) == [[0, 2], [2, 2]]
    assert points("polar", [[2, 0], [4, 90]]) == [[2, 0], [0, 4]]
    assert points("speed_curvature", [[4, 0], [4, 0]]) == [[2, 0], [4, 0]]


def test_a_curvature_in_hundredths_turns_a_hundredth():
    half_circle = np.pi * 10 / 2  # a quarter of a circle of radius 10 m
    metres = trajectory_of(np.array([[half_circle, 10.0]]), "distance_curvature", 0.5)
    assert np.allclose(metres.waypoints_m, [[10, 10]]) and np.allclose(metres.headings_rad, [np.pi / 2])
    assert np.allclose(metres.speeds_mps, [half_circle / 0.5])


def test_axes_may_be_right_and_forward():
    ahead_left = trajectory_of(np.array([[-1.0, 5.0]]), "xy", 0.5, "x_right_y_forward")
    assert ahead_left.waypoints_m.tolist() == [[5.0, 1.0]]
    assert pairs_of(ahead_left.waypoints_m, "xy", 0.5, "x_right_y_forward").tolist() == [[-1.0, 5.0]]


def test_straight_ahead_another_point_of_the_vehicle_makes_no_difference():
    straight = np.array([[2.0 * k, 0.0] for k in range(1, 7)])
    path, headings = rear_axle_path(straight, 0.94)
    assert np.allclose(path, straight) and np.allclose(headings, 0)


def test_the_rear_axle_follows_a_point_ahead_of_it_on_a_bend():
    waypoints, headings = drive(speed=6.0, curvature=0.05, points=60)
    fine = np.stack([np.cos(headings), np.sin(headings)], axis=1)
    lidar = waypoints + 0.94 * (fine - [1, 0])
    path, found = rear_axle_path(lidar, 0.94)
    assert np.abs(path - waypoints).max() < 0.05 and np.abs(wrap_angle(found - headings)).max() < 0.05
    assert np.abs(lidar - waypoints).max() > 0.5, "the points themselves are elsewhere"


def test_backing_up_keeps_the_heading():
    path, headings = rear_axle_path(np.array([[-1.0, 0.1], [-2.0, 0.2]]), 0.94)
    assert np.allclose(headings, 0) and np.allclose(path, [[-1.0, 0.1], [-2.0, 0.2]])


def test_standing_still_has_no_direction():
    assert np.allclose(trajectory_of(np.zeros((6, 2)), "xy", 0.5, origin_m=0.94).waypoints_m, 0)
    assert np.allclose(pairs_of(np.zeros((6, 2)), "speed_curvature", 0.5), 0)
