"""Autoware's trajectories, with stand-ins for its messages: these come with Autoware only."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e .[ros]")

from std_msgs.msg import Header

from fastdrive_node.errors import ModelError
from fastdrive_node.ros.messages import stamp_ns
from fastdrive_node.ros.parameters import Settings
from fastdrive_node.ros.trajectories import trajectory_output
from fastdrive_node.sync.compensation import BRAKE_MODE
from fastdrive_node.types import EgoState
from tests.ros.test_messages import ARC, T0, plan, yaw_of

EGO = EgoState(T0, 100.0, -50.0, math.pi / 2, 6.5, accel_mps2=0.4, yaw_rate_radps=0.3, z_m=7.0, frame="map")


def with_id(**fields) -> SimpleNamespace:
    return SimpleNamespace(generator_id=SimpleNamespace(uuid=None), **fields)


@pytest.fixture
def autoware(monkeypatch):
    """Packages with the messages that their sources define."""
    planning = {"Trajectory": SimpleNamespace, "TrajectoryPoint": SimpleNamespace}
    internal = {
        "CandidateTrajectories": lambda **fields: SimpleNamespace(**{"candidate_trajectories": [], **fields}),
        "CandidateTrajectory": with_id,
        "GeneratorInfo": with_id,
    }
    for package, members in (("autoware_planning_msgs", planning), ("autoware_internal_planning_msgs", internal)):
        module = ModuleType(f"{package}.msg")
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
        monkeypatch.setitem(sys.modules, f"{package}.msg", module)
    return sys.modules["autoware_internal_planning_msgs.msg"]


def output(kind: str, **settings):
    return trajectory_output(Settings(trajectory_type=kind, **settings))


def seconds(point) -> float:
    return point.time_from_start.sec + point.time_from_start.nanosec * 1e-9


def test_autowares_trajectory_is_in_the_frame_of_the_odometry_and_starts_at_the_vehicle(autoware):
    trajectory = output("autoware", vehicle_wheel_base_m=2.0).message(plan(), EGO)
    assert (stamp_ns(trajectory.header.stamp), trajectory.header.frame_id) == (T0, "map")
    first, *others = trajectory.points
    assert (first.pose.position.x, first.pose.position.y, first.pose.position.z) == (100.0, -50.0, 7.0)
    assert yaw_of(first.pose.orientation) == pytest.approx(math.pi / 2)
    assert (first.longitudinal_velocity_mps, first.acceleration_mps2, first.heading_rate_rps) == (6.5, 0.4, 0.3)
    assert first.time_from_start.sec == first.time_from_start.nanosec == 0
    assert [point.time_from_start.sec for point in others[1::2]] == [1, 2, 3]
    # the ego looks along +y of the map: forward is +y, left is -x
    assert others[2].pose.position.x == pytest.approx(100.0 - ARC[2, 1])
    assert others[2].pose.position.y == pytest.approx(-50.0 + ARC[2, 0])
    assert others[2].pose.position.z == 7.0
    assert yaw_of(others[2].pose.orientation) == pytest.approx(math.pi / 2 + 0.45)
    assert others[2].longitudinal_velocity_mps == pytest.approx(6.0, rel=0.01)
    assert others[2].heading_rate_rps == pytest.approx(0.3)
    assert others[2].front_wheel_angle_rad == pytest.approx(math.atan(2.0 * 0.3 / 6.0), rel=0.01)


def test_candidates_are_resampled_in_the_map_frame_and_start_at_the_vehicle(autoware):
    message = output("candidates").message(plan(), EGO)
    (candidate,), (info,) = message.candidate_trajectories, message.generator_info
    assert (stamp_ns(candidate.header.stamp), candidate.header.frame_id) == (T0, "map")
    first, *others = candidate.points
    assert (first.pose.position.x, first.pose.position.y, first.pose.position.z) == (100.0, -50.0, 7.0)
    assert (first.longitudinal_velocity_mps, yaw_of(first.pose.orientation)) == (6.5, pytest.approx(math.pi / 2))
    assert [seconds(point) for point in candidate.points] == pytest.approx(np.arange(31) * 0.1)
    assert others[14].pose.position.x == pytest.approx(100.0 - ARC[2, 1])
    assert others[14].pose.position.y == pytest.approx(-50.0 + ARC[2, 0])
    headings = np.unwrap([yaw_of(point.pose.orientation) for point in candidate.points])
    assert headings == pytest.approx(math.pi / 2 + 0.3 * np.arange(31) * 0.1, abs=0.05)
    assert [point.longitudinal_velocity_mps for point in others] == pytest.approx([6.0] * 30, rel=0.08)
    assert info.generator_name.data == "fastdrive"
    assert bytes(info.generator_id.uuid) == bytes(candidate.generator_id.uuid) and len(info.generator_id.uuid) == 16


def test_two_nodes_are_two_generators_and_one_node_stays_one(autoware):
    one, other = output("candidates"), output("candidates")
    ids = [bytes(each.message(plan(), EGO).generator_info[0].generator_id.uuid) for each in (one, one, other)]
    assert ids[0] == ids[1] != ids[2]


def test_a_stop_that_no_model_made_has_another_generators_name(autoware):
    stop = replace(plan(), mode=BRAKE_MODE)
    assert output("candidates").message(stop, EGO).generator_info[0].generator_name.data == "fastdrive brake"


def test_the_later_name_of_the_generators_type_is_taken_too(autoware):
    autoware.TrajectoryGeneratorInfo = autoware.__dict__.pop("GeneratorInfo")
    assert output("candidates").message(plan(), EGO).generator_info[0].generator_name.data == "fastdrive"


def test_without_a_plan_there_is_no_candidate_and_without_an_ego_state_no_message(autoware):
    candidates = output("candidates")
    assert candidates.empty(Header()).candidate_trajectories == []
    for each in (candidates, output("autoware")):
        assert each.message(plan(), None) is None


@pytest.mark.parametrize("kind", ["autoware", "candidates"])
def test_steering_angles_of_a_standing_vehicle_are_finite(autoware, kind):
    ego = EgoState(T0, 0.0, 0.0, 0.0, 0.0, yaw_rate_radps=0.01)
    message = output(kind).message(plan(waypoints_m=np.zeros((6, 2))), ego)
    points = message.points if kind == "autoware" else message.candidate_trajectories[0].points
    assert all(abs(point.front_wheel_angle_rad) < 0.1 for point in points)


@pytest.mark.parametrize("kind", ["autoware", "candidates"])
def test_missing_messages_are_an_error_with_the_fix(monkeypatch, kind):
    monkeypatch.setitem(sys.modules, "autoware_planning_msgs.msg", None)
    with pytest.raises(ModelError, match=f"trajectory_type: '{kind}' needs the ROS package autoware_planning_msgs"):
        output(kind)
