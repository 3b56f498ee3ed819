"""Plans to messages and messages to states."""

from __future__ import annotations

import math
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e .[ros]")

from builtin_interfaces.msg import Time
from nav_msgs.msg import Odometry
from std_msgs.msg import Float64

from fastdrive_node.errors import InputError
from fastdrive_node.planning.motion import Motion, motion_of
from fastdrive_node.ros import messages
from fastdrive_node.ros.markers import marker_array
from fastdrive_node.types import Command, Plan, Refusal, Vehicle

T0 = 1_533_151_603_999_999_999
TIMES = 0.5 * np.arange(1, 7)
ARC = np.stack([20 * np.sin(0.3 * TIMES), 20 * (1 - np.cos(0.3 * TIMES))], axis=1)


def plan(**changes) -> Plan:
    return Plan(**{"t0_ns": T0, "waypoints_m": ARC, "dt_s": 0.5, "text": "...", "stage_ms": {"total": 7.0}, **changes})


def motion(plan: Plan) -> Motion:
    return motion_of(plan.waypoints_m, plan.dt_s)


def yaw_of(q) -> float:
    return 2 * math.atan2(q.z, q.w)


def test_the_path_has_a_pose_and_stamp_for_each_waypoint():
    path = messages.path_message(plan(), motion(plan()), "base_link")
    assert messages.stamp_ns(path.header.stamp) == T0
    assert [messages.stamp_ns(pose.header.stamp) for pose in path.poses] == [T0 + k * 500_000_000 for k in range(1, 7)]
    assert path.poses[2].pose.position.x == pytest.approx(ARC[2, 0])
    assert yaw_of(path.poses[2].pose.orientation) == pytest.approx(0.45)


def test_the_trajectory_has_times_and_velocities():
    trajectory = messages.multi_dof_message(plan(), motion(plan()), "base_link")
    point = trajectory.points[2]
    assert (point.time_from_start.sec, point.time_from_start.nanosec) == (1, 500_000_000)
    velocity = point.velocities[0].linear
    assert math.hypot(velocity.x, velocity.y) == pytest.approx(6.0, rel=0.01)
    assert point.velocities[0].angular.z == pytest.approx(0.3)
    assert trajectory.joint_names == ["base_link"]


def test_times_have_autowares_type_where_it_is_installed(monkeypatch):
    kind, make = messages.time_messages()
    assert kind is Float64 and make(12.5, Time(sec=3)).data == 12.5
    module = ModuleType("autoware_internal_debug_msgs.msg")
    module.Float64Stamped = SimpleNamespace
    monkeypatch.setitem(sys.modules, "autoware_internal_debug_msgs", ModuleType("autoware_internal_debug_msgs"))
    monkeypatch.setitem(sys.modules, "autoware_internal_debug_msgs.msg", module)
    kind, make = messages.time_messages()
    assert kind is SimpleNamespace
    assert (make(12.5, Time(sec=3)).data, make(12.5, Time(sec=3)).stamp.sec) == (12.5, 3)


def odometry(**changes) -> Odometry:
    message = Odometry()
    message.header.stamp = messages.time_message(T0)
    message.pose.pose.position.x, message.pose.pose.position.y = 3.0, -4.0
    message.pose.pose.orientation = messages.yaw_quaternion(changes.get("yaw", 2.5))
    message.twist.twist.linear.x, message.twist.twist.angular.z = 8.0, 0.2
    return message


@pytest.mark.parametrize("yaw", [-3.0, -1.0, 0.0, 2.5])
def test_odometry_is_planar_motion(yaw):
    state = messages.ego_state(odometry(yaw=yaw))
    assert (state.stamp_ns, state.x_m, state.y_m) == (T0, 3.0, -4.0)
    assert (state.speed_mps, state.yaw_rate_radps) == (8.0, 0.2)
    assert state.yaw_rad == pytest.approx(yaw)


def test_odometry_names_its_frame_and_height():
    message = odometry()
    assert messages.ego_state(message).frame == "map"
    message.header.frame_id = "odom"
    message.pose.pose.position.z = 12.5
    assert (messages.ego_state(message).frame, messages.ego_state(message).z_m) == ("odom", 12.5)


def test_odometry_without_a_rotation_or_with_nan_is_refused():
    message = odometry()
    message.pose.pose.orientation.z = message.pose.pose.orientation.w = 0.0
    with pytest.raises(InputError, match="unit quaternion"):
        messages.ego_state(message)
    message = odometry()
    message.twist.twist.linear.x = math.nan
    with pytest.raises(InputError, match="not finite"):
        messages.ego_state(message)


def test_commands_are_words():
    assert messages.driving_command(" LEFT\n") == Command.LEFT
    with pytest.raises(InputError, match="command: 'u-turn' is none of left, straight, right, none"):
        messages.driving_command("u-turn")


def test_images_keep_their_pixels():
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    message = messages.image_message(image, T0, "CAM_BACK")
    assert (message.height, message.width, message.step, message.encoding) == (4, 6, 18, "rgb8")
    assert bytes(message.data) == image.tobytes()


def test_markers_are_amber_for_a_degraded_plan_and_red_for_a_refusal():
    nominal, degraded = (
        marker_array(plan(mode=mode), "base_link", Vehicle(), motion(plan())).markers
        for mode in ("nominal", "degraded: x")
    )
    assert nominal[0].color != degraded[0].color
    assert degraded[3].text == "degraded: x"
    assert len(nominal[0].points) == 7 and len(nominal[1].points) == 6
    (refusal,) = marker_array(Refusal(T0, "stale", "frames"), "base_link", Vehicle()).markers
    assert refusal.text == "frames: stale" and refusal.color.r == 1.0


def test_the_marker_of_the_vehicle_has_its_size_and_is_centered():
    straight = plan(waypoints_m=np.stack([4.0 * TIMES, 0 * TIMES], axis=1))
    vehicle = Vehicle(length_m=12.0, width_m=2.5, rear_overhang_m=3.0)
    body = marker_array(straight, "base_link", vehicle, motion(straight)).markers[2]
    assert (body.ns, body.scale.x, body.scale.y) == ("vehicle", 12.0, 2.5)
    assert body.pose.position.x == pytest.approx(12.0 + 12.0 / 2 - 3.0)
