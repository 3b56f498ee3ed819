"""Plans moved on by odometry: the rest of a plan, and a stop along the last path."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fastdrive_node.errors import EgoStateError
from fastdrive_node.geometry import to_parent_frame
from fastdrive_node.sync.compensation import BRAKE_MODE, shift_plan, stop_plan
from fastdrive_node.types import EgoState, Plan

START = EgoState(10**9, 5.0, -3.0, 0.7, 8.0)


def arc(times, speed: float = 8.0, curvature: float = 0.05) -> np.ndarray:
    angles = speed * np.asarray(times) * curvature
    return np.stack([np.sin(angles), 1 - np.cos(angles)], axis=1) / curvature


def plan_of(waypoints, **values) -> Plan:
    return Plan(START.stamp_ns, np.asarray(waypoints, float), 0.5, "text", **values)


def ego_on_arc(seconds: float) -> EgoState:
    """The ego of a vehicle that follows the arc exactly."""
    place = to_parent_frame(arc([seconds]), START.x_m, START.y_m, START.yaw_rad)[0]
    yaw = START.yaw_rad + 8.0 * 0.05 * seconds
    return replace(START, stamp_ns=START.stamp_ns + round(seconds * 1e9), x_m=place[0], y_m=place[1], yaw_rad=yaw)


@pytest.mark.parametrize("seconds", [0.15, 0.5, 1.3])
def test_the_rest_of_an_arc_that_is_followed_is_the_same_arc(seconds):
    times = 0.5 * np.arange(1, 7)
    plan = plan_of(arc(times), headings_rad=0.4 * times, speeds_mps=np.full(6, 8.0))
    shifted = shift_plan(plan, START, ego_on_arc(seconds))
    left = len(shifted.waypoints_m)
    assert left == 6 - int(np.ceil(seconds / 0.5)) and shifted.t0_ns == START.stamp_ns
    assert shifted.stamp_ns == START.stamp_ns + round(seconds * 1e9)
    np.testing.assert_allclose(shifted.waypoints_m, arc(times[:left]), atol=0.03)
    assert shifted.headings_rad is not None
    np.testing.assert_allclose(shifted.headings_rad, 0.4 * times[:left], atol=1e-6)


def test_a_plan_that_has_ended_and_another_frame_are_refused():
    plan = plan_of(arc(0.5 * np.arange(1, 7)))
    with pytest.raises(EgoStateError, match=r"the plan ended .* 3.00 s after t0"):
        shift_plan(plan, START, ego_on_arc(3.0))
    with pytest.raises(EgoStateError, match="frame was map at t0 and is odom now"):
        shift_plan(plan, START, replace(ego_on_arc(0.1), frame="odom"))


def test_a_stop_decelerates_evenly_along_the_last_path():
    plan = plan_of(arc(0.5 * np.arange(1, 7)))
    stop = stop_plan(plan, START, ego_on_arc(0.4), decel_mps2=2.0)
    times = np.minimum(0.5 * np.arange(1, 9), 4.0)
    np.testing.assert_allclose(stop.waypoints_m, arc((8 * times - times**2) / 8.0), atol=0.15)
    assert (stop.mode, stop.t0_ns) == (BRAKE_MODE, START.stamp_ns + 400_000_000)
    steps = np.linalg.norm(np.diff(stop.waypoints_m, axis=0, prepend=np.zeros((1, 2))), axis=1)
    assert np.abs(np.diff(steps / 0.5) / 0.5).max() < 2.3


def test_a_stop_longer_than_the_path_goes_on_straight():
    plan = plan_of([[4.0 * k, 0.0] for k in range(1, 7)])
    stop = stop_plan(plan, START, replace(START, speed_mps=20.0), decel_mps2=2.0)
    assert stop.waypoints_m[-1] == pytest.approx([100.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("speed", [0.0, 0.05, -3.0])
def test_a_vehicle_that_stands_stays_where_it_is(speed):
    stop = stop_plan(plan_of(arc(0.5 * np.arange(1, 7))), START, replace(START, speed_mps=speed), 1.5)
    assert stop.waypoints_m.tolist() == [[0.0, 0.0]]


def test_an_offset_from_the_path_fades_out_and_a_large_one_is_refused():
    plan = plan_of([[4.0 * k, 0.0] for k in range(1, 7)])
    ego = replace(START, yaw_rad=0.0)
    stop = stop_plan(plan, replace(ego), replace(ego, y_m=START.y_m + 1.0), 2.0)
    lateral = stop.waypoints_m[:, 1]
    assert -0.5 < lateral[0] <= 0 and lateral[-1] == pytest.approx(-1.0) and (np.diff(lateral) <= 1e-9).all()
    with pytest.raises(EgoStateError, match=r"4.0 m from the last path"):
        stop_plan(plan, replace(ego), replace(ego, y_m=START.y_m + 4.0), 2.0)


def test_a_plan_to_stand_becomes_a_straight_stop():
    stop = stop_plan(plan_of(np.zeros((6, 2))), START, replace(START, speed_mps=2.0), 2.0)
    assert stop.waypoints_m[-1] == pytest.approx([1.0, 0.0])
