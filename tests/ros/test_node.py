"""The node over real topics: sets in, stamped plans out; refusals that leave it running."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from tests.ros.conftest import (
    RECORDS,
    connected,
    jpeg_image,
    next_record,
    records_of,
    stamp_message,
)
from tests.ros.fake_planner import FakePlanner

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e .[ros]")

from geometry_msgs.msg import AccelWithCovarianceStamped
from lifecycle_msgs.msg import Transition as TransitionMessage
from lifecycle_msgs.srv import ChangeState
from nav_msgs.msg import Odometry, Path
from sensor_msgs.msg import Image
from std_msgs.msg import Float64, String
from trajectory_msgs.msg import MultiDOFJointTrajectory
from visualization_msgs.msg import MarkerArray

from fastdrive_node.ros.messages import stamp_ns
from fastdrive_node.types import Command


@pytest.mark.parametrize("transport", ["raw", "compressed"])
def test_a_set_becomes_outputs_that_are_stamped_with_its_time(rig, transport):
    rig = connected(rig(image_transport=transport))
    paths = rig.listen(Path, "/fastdrive/output/path")
    trajectories = rig.listen(MultiDOFJointTrajectory, "/fastdrive/output/trajectory")
    latencies = rig.listen(Float64, "/fastdrive/debug/pipeline_latency_ms")
    t0 = rig.now_ns()
    rig.send_set(t0)
    record = next_record(rig, 1)
    rig.wait(lambda: paths and trajectories and latencies, "the outputs")
    assert (record["kind"], record["t0_ns"], record["dt_s"], len(record["waypoints"])) == ("plan", t0, 0.5, 6)
    for message in (paths[0], trajectories[0]):
        assert stamp_ns(message.header.stamp) == t0
        assert message.header.frame_id == "base_link"
    assert paths[0].poses[0].pose.position.x == pytest.approx(4.0)
    assert trajectories[0].points[5].time_from_start.sec == 3
    assert record["latency_ms"] > 0 and record["stage_ms"]["encode"] == 4.0
    assert record["tokens"]["grid"] == [6, 4, 8] and len(record["tokens"]["kept"]) == 96


def test_the_command_and_the_odometry_reach_the_planner(rig):
    rig = connected(rig())
    commands = rig._publishers["/fastdrive/input/command"]
    commands.publish(String(data="right"))
    rig.wait(lambda: rig.node._worker.status().command == Command.RIGHT, "the first command")
    commands.publish(String(data="sideways"))  # no command: the one before must not stay in force
    rig.wait(lambda: rig.node._worker.status().command == Command.NONE, "no command")
    commands.publish(String(data=" Left "))
    rig.wait(lambda: rig.node._worker.status().command == Command.LEFT, "the command")
    t0 = rig.now_ns()
    rig.send_odometry(t0 - 500_000_000, speed=6.0)
    rig.send_set(t0)
    assert next_record(rig, 1)["command"] == "left"
    _, history, command = rig.planner.seen[0]
    assert command == Command.LEFT
    assert [state.speed_mps for state in history.states] == [8.0, 6.0]


@pytest.mark.parametrize("value", [1e200, float("inf"), float("nan"), 3.0])
def test_an_orientation_that_is_none_is_ignored_and_the_node_plans_on(rig, value):
    rig = connected(rig())
    message = Odometry()
    message.header.stamp = stamp_message(rig.now_ns())
    message.pose.pose.orientation.x = value
    rig._publishers["/fastdrive/input/odometry"].publish(message)
    rig.send_set(rig.now_ns())
    assert next_record(rig, 1)["kind"] == "plan" and rig.is_spinning()


@pytest.mark.parametrize("transition", [TransitionMessage.TRANSITION_ACTIVATE, 1, 250])
def test_a_transition_that_the_state_does_not_have_is_answered_and_the_node_plans_on(rig, transition):
    rig = connected(rig())
    client = rig.peer.create_client(ChangeState, "/fastdrive/change_state")
    rig.wait(client.service_is_ready, "the lifecycle service")
    future = client.call_async(ChangeState.Request(transition=TransitionMessage(id=transition)))
    rig.wait(lambda: future.done() or not rig.is_spinning(), "the answer")
    assert rig.is_spinning() and not future.result().success
    rig.send_set(rig.now_ns())
    assert next_record(rig, 1)["kind"] == "plan"


def test_a_fault_of_ours_in_a_callback_does_not_end_the_node(rig, monkeypatch):
    rig = connected(rig())
    broken = []

    def fail(state):
        broken.append(state)
        raise RuntimeError("a fault")

    monkeypatch.setattr(rig.node._worker, "add_odometry", fail)
    rig.send_odometry(rig.now_ns())
    rig.wait(lambda: broken, "the odometry")
    monkeypatch.undo()
    rig.send_set(rig.now_ns())
    assert next_record(rig, 1)["kind"] == "plan" and rig.is_spinning()


def test_steering_and_acceleration_reach_the_planner(rig):
    rig = rig(steering_input="float64", acceleration_input=True, max_odometry_age_s=2.0)
    steering = rig.advertise(Float64, "/fastdrive/input/steering")
    acceleration = rig.advertise(AccelWithCovarianceStamped, "/fastdrive/input/acceleration")
    connected(rig)
    steering.publish(Float64(data=float("nan")))
    steering.publish(Float64(data=0.12))
    t0 = rig.now_ns()
    told = AccelWithCovarianceStamped()
    told.header.stamp = stamp_message(t0)
    told.accel.accel.linear.x, told.accel.accel.linear.y = 0.7, -0.2
    acceleration.publish(told)
    rig.wait(lambda: len(rig.node._worker._odometry._signals) == 2, "both signals, without the one that is no number")
    rig.send_set(t0)
    next_record(rig, 1)
    now = rig.planner.seen[0][1].now
    assert (now.steer_rad, now.accel_mps2, now.accel_y_mps2, now.accel_measured) == (0.12, 0.7, -0.2, True)


def test_a_truncated_jpeg_is_refused_by_name_and_the_next_set_is_planned(rig):
    rig = connected(rig(image_transport="compressed"))
    rig.send_set(rig.now_ns(), bad={"CAM_BACK": {"data": jpeg_image()[:200]}})
    refused = next_record(rig, 1)
    assert (refused["kind"], refused["stage"]) == ("refused", "image")
    assert refused["reason"].startswith("CAM_BACK: data: 200 bytes are not a complete JPEG or PNG")
    rig.send_set(rig.now_ns())
    assert next_record(rig, 2)["kind"] == "plan"


def test_an_image_with_a_wrong_step_is_refused_by_name_and_the_next_set_is_planned(rig):
    rig = connected(rig())
    rig.send_set(rig.now_ns(), bad={"CAM_FRONT_LEFT": {"step": 90}})
    refused = next_record(rig, 1)
    assert refused["reason"] == "CAM_FRONT_LEFT: step: 90, but 32 pixels of rgb8 need 96 bytes"
    rig.send_set(rig.now_ns())
    assert next_record(rig, 2)["kind"] == "plan"


def test_a_missing_camera_is_refused_by_name_and_the_next_set_is_planned(rig):
    rig = connected(rig())
    rig.send_set(rig.now_ns(), skip=("CAM_BACK_RIGHT",))
    refused = next_record(rig, 1)
    assert refused["stage"] == "frames" and "CAM_BACK_RIGHT missing" in refused["reason"]
    rig.send_set(rig.now_ns())
    assert next_record(rig, 2)["kind"] == "plan"


def test_the_degraded_mode_says_which_camera_is_missing(rig):
    rig = connected(rig(max_missing_cameras=1))
    rig.send_set(rig.now_ns(), skip=("CAM_BACK_RIGHT",))
    assert next_record(rig, 1)["mode"] == "degraded: no image of CAM_BACK_RIGHT"


@pytest.mark.parametrize(("fault", "stage"), [("refuse", "answer"), ("crash", "internal")])
def test_a_planner_that_fails_leaves_the_node_running(rig, fault, stage):
    rig = connected(rig())
    setattr(rig.planner, fault, True)
    rig.send_set(rig.now_ns())
    assert next_record(rig, 1)["stage"] == stage
    setattr(rig.planner, fault, False)
    rig.send_set(rig.now_ns())
    assert next_record(rig, 2)["kind"] == "plan"


def test_sets_without_odometry_are_refused(rig):
    rig = connected(rig(odometry_wait_s=0.05))
    t0 = rig.now_ns()
    rig.send_odometry(t0 - 3_000_000_000)
    rig.wait(lambda: rig.node._worker.status().odometry_age_s is not None, "the odometry")
    for camera in rig.planner.cameras:
        rig.send_image(camera, t0)
    record = next_record(rig, 1)
    assert record["stage"] == "odometry" and "s before t0" in record["reason"]


def test_a_busy_planner_gets_the_newest_set_and_the_others_are_reported_as_superseded(rig):
    rig = connected(rig())
    rig.planner.hold.clear()
    stamps = [rig.now_ns() + k * 1_000_000 for k in range(3)]
    rig.send_set(stamps[0])
    assert rig.planner.started.wait(30)
    for count, stamp in enumerate(stamps[1:], start=2):
        rig.send_set(stamp)
        rig.wait(lambda count=count: rig.node._worker.status().frames.sets == count, "the set")
    rig.planner.hold.set()
    next_record(rig, 3)
    outcome = {record["t0_ns"]: record["kind"] for record in records_of(rig)}
    assert outcome == {stamps[0]: "plan", stamps[1]: "superseded", stamps[2]: "plan"}


def test_a_stale_set_is_not_planned(rig):
    rig = connected(rig())
    rig.send_set(rig.now_ns() - 2_000_000_000)
    record = next_record(rig, 1)
    assert record["kind"] == "refused" and record["reason"].startswith("stale: ")
    assert not rig.planner.seen


def test_overlays_and_markers_come_when_somebody_listens(rig):
    rig = connected(rig())
    overlays = rig.listen(Image, "/fastdrive/debug/overlay/cam_front")
    markers = rig.listen(MarkerArray, "/fastdrive/debug/markers")
    rig.wait(lambda: rig.node._outputs._overlays["CAM_FRONT"].get_subscription_count(), "the overlay to be matched")
    rig.wait(lambda: rig.node._outputs._markers.get_subscription_count(), "the markers to be matched")
    t0 = rig.now_ns()
    rig.send_set(t0)
    rig.wait(lambda: overlays and markers, "overlay and markers")
    assert (overlays[0].height, overlays[0].width, overlays[0].encoding) == (24, 32, "rgb8")
    assert stamp_ns(overlays[0].header.stamp) == t0
    assert [marker.ns for marker in markers[0].markers] == ["path", "waypoints", "vehicle", "text"]


def test_a_bond_lasts_as_long_as_the_node_is_active(rig, monkeypatch):
    events = []

    class Bond:
        def __init__(self, topic, name, node, on_broken):
            events.append((topic, name))

        def __getattr__(self, name):
            return lambda *values: events.append((name, *values))

    monkeypatch.setitem(sys.modules, "bondpy", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "bondpy.bondpy", SimpleNamespace(Bond=Bond))
    made = rig()
    begun = [("bond", "fastdrive"), ("set_heartbeat_period", 0.1), ("set_heartbeat_timeout", 4.0), ("start",)]
    assert events == begun
    made.call(made.node.trigger_deactivate)
    assert events == [*begun, ("shutdown",)]
    assert rig(bond=False).node._bond is None


def test_cameras_of_any_name_and_number_are_planned(rig):
    names = ("wide", *(f"Tele_{index}" for index in range(7)))
    rig = rig(planner=FakePlanner(names))
    rig.listen(String, RECORDS)
    rig.connect_inputs(names)
    rig.send_set(rig.now_ns(), cameras=names)
    assert next_record(rig, 1)["kind"] == "plan"
    assert [frame.camera for frame in rig.planner.seen[0][0].frames] == list(names)


def test_cameras_that_would_share_a_topic_are_refused(rig):
    made = rig(planner=FakePlanner(("wide", "Wide")), start=False)
    assert not made.node.start() and made.node._label == "unconfigured"


def test_the_lifecycle_goes_round(rig):
    rig = connected(rig())
    node = rig.node
    for _ in range(2):
        rig.send_set(rig.now_ns())
        rig.wait(lambda: rig.node._worker.status().plans > 0, "the plan")
        rig.call(node.trigger_deactivate)
        assert node._inputs is None and node._label == "inactive"
        rig.call(node.trigger_cleanup)
        assert node._label == "unconfigured"
        assert rig.call(node.start)
        rig.wait(rig.is_connected, "the inputs to be matched again")
    assert [record["kind"] for record in records_of(rig)] == ["plan", "plan"]


def test_odometry_that_is_not_finite_is_ignored(rig):
    rig = connected(rig())
    bad = Odometry()
    bad.header.stamp = rig.node.get_clock().now().to_msg()
    bad.pose.pose.orientation.w = 1.0
    bad.pose.pose.position.x = float("nan")
    rig._publishers["/fastdrive/input/odometry"].publish(bad)
    rig.send_set(rig.now_ns())
    assert next_record(rig, 1)["kind"] == "plan"
    assert len(rig.planner.seen[0][1].states) == 1
