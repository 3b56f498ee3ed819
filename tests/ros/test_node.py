"""The node over real topics: sets in, stamped plans out; refusals that leave it running."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests.ros.conftest import jpeg_image, stamp_message
from tests.ros.fake_planner import FakePlanner

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e .[ros]")

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import AccelWithCovarianceStamped
from lifecycle_msgs.msg import Transition as TransitionMessage
from lifecycle_msgs.srv import ChangeState
from nav_msgs.msg import Odometry, Path
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.utilities import get_rmw_implementation_identifier
from sensor_msgs.msg import Image
from std_msgs.msg import Float64, String
from trajectory_msgs.msg import MultiDOFJointTrajectory
from visualization_msgs.msg import MarkerArray

from fastdrive_node.ros.messages import stamp_ns
from fastdrive_node.ros.transport import VARIABLES
from fastdrive_node.types import Command

RECORDS = "/fastdrive/output/plan_json"


def records_of(rig) -> list[dict]:
    """Records of frame sets, without those of mode changes."""
    return [record for message in rig.messages[RECORDS] if (record := json.loads(message.data))["kind"] != "mode"]


def next_record(rig, count: int) -> dict:
    rig.wait(lambda: len(records_of(rig)) >= count, f"record {count}")
    return records_of(rig)[count - 1]


def connected(rig):
    rig.listen(String, RECORDS)
    rig.connect_inputs()
    rig.wait(lambda: rig.node._outputs.readers() > 0, "the records to be matched")
    return rig


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


def test_messages_that_are_cut_short_are_counted_by_input_and_the_node_plans_on(rig):
    rig = connected(rig(diagnostics_period_s=0.1))
    rig.listen(DiagnosticArray, "/diagnostics")
    for name in ("odometry", "command", "cam_front/image"):
        rig._publishers[f"/fastdrive/input/{name}"].publish(b"\x00\x01\x00\x00\x09\x00\x00\x00ab")
    keys = ("unusable_odometry", "unusable_command", "unusable_cam_front")

    def counts() -> list[str | None]:
        values = {pair.key: pair.value for pair in diagnostics(rig)["topics"].values}
        return [values.get(key) for key in keys]

    rig.wait(lambda: rig.messages["/diagnostics"] and counts() == ["1", "1", "1"], "the counts")
    rig.send_set(rig.now_ns())
    assert next_record(rig, 1)["kind"] == "plan"


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


def diagnostics(rig) -> dict:
    messages = rig.messages["/diagnostics"]
    rig.wait(lambda: messages, "diagnostics")
    return {status.name.split(": ")[1]: status for status in messages[-1].status}


def values(status) -> dict[str, str]:
    return {pair.key: pair.value for pair in status.values}


def test_diagnostics_have_the_age_and_rate_of_every_camera_and_the_model(rig):
    rig = connected(rig(diagnostics_period_s=0.1))
    for count in range(1, 4):
        rig.send_set(rig.now_ns())
        next_record(rig, count)
    rig.listen(DiagnosticArray, "/diagnostics")
    parts = diagnostics(rig)
    front = values(parts["CAM_FRONT"])
    assert float(front["age_s"]) >= 0 and float(front["rate_hz"]) > 0 and front["publishers"] == "1"
    assert values(parts["model"])["vla"] == "fake"
    assert values(parts["planner"])["lifecycle"] == "active"


def test_diagnostics_of_a_node_that_nobody_activated_say_so(rig):
    rig = rig(start=False, diagnostics_period_s=0.1)
    rig.listen(DiagnosticArray, "/diagnostics")
    assert diagnostics(rig)["planner"].message == "unconfigured: not activated"


def test_a_publisher_of_an_incompatible_qos_is_in_the_diagnostics(rig):
    rig = rig(diagnostics_period_s=0.1)
    rig.advertise(String, "/fastdrive/input/command", QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
    rig.listen(DiagnosticArray, "/diagnostics")
    rig.wait(lambda: "incompatible reliability" in diagnostics(rig)["topics"].message, "the QoS problem")


def test_large_images_without_shared_memory_are_warned_of_with_their_size(rig, monkeypatch):
    if "fastrtps" not in get_rmw_implementation_identifier():
        pytest.skip("the middleware is not Fast DDS")
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    rig = connected(rig(diagnostics_period_s=0.1))
    rig.listen(DiagnosticArray, "/diagnostics")
    rig.wait(lambda: "loss of raw images" in diagnostics(rig)["topics"].message, "a warning before the first image")
    rig.send_image("CAM_FRONT", rig.now_ns())
    rig.wait(lambda: diagnostics(rig)["topics"].message == "ok", "no warning of small images")
    rig.send_image("CAM_FRONT", rig.now_ns(), bytes(600 * 900), height=300, width=600, step=1800)
    rig.wait(lambda: "loss of images of 0.5 MB" in diagnostics(rig)["topics"].message, "a warning")


# Another process: within one, a second type is refused at once, and Fast DDS can lock when a second participant ends.
PUBLISHER = """
import sys
import rclpy
from sensor_msgs.msg import CompressedImage
rclpy.init()
node = rclpy.create_node("other")
node.create_publisher(CompressedImage, "/fastdrive/input/cam_back/image", 10)
sys.stdin.read()
"""


def test_a_publisher_of_another_type_is_in_the_diagnostics(rig, ros):
    rig = rig(diagnostics_period_s=0.1)
    rig.listen(DiagnosticArray, "/diagnostics")
    expected = "/fastdrive/input/cam_back/image: a publisher sends sensor_msgs/msg/CompressedImage"
    other = subprocess.Popen([sys.executable, "-c", PUBLISHER], stdin=subprocess.PIPE)
    try:
        rig.wait(lambda: expected in diagnostics(rig)["topics"].message, "the type problem")
    finally:
        other.kill()
        other.communicate()


def test_parameters_change_while_running_and_bad_values_are_refused_with_a_reason(rig):
    node = rig().node

    def attempt(name, value):
        return node.set_parameters([Parameter(name, value=value)])[0]

    assert attempt("drop", 0.25).successful and node._loaded.planner.drop == 0.25
    assert attempt("max_set_age_s", 0.5).successful and node._worker._frames.limits.max_age_s == 0.5
    assert attempt("max_set_age_s", 1).successful and node._worker._frames.limits.max_age_s == 1.0, "an integer"
    assert "of type bool, not float" in attempt("max_set_age_s", True).reason
    assert "drop" in attempt("drop", 0.99).reason
    node._loaded.planner.least_drop = 0.2
    assert attempt("drop", 0.1).reason == "drop: 0.1 is less than the engine's 0.2"
    assert attempt("image_transport", "compressed").reason
    assert attempt("max_missing_cameras", "two").reason
    assert node._loaded.planner.drop == 0.25


def test_an_integer_at_start_is_taken_for_a_double(rig):
    settings = rig(max_set_age_s=1, max_plan_age_s=2).node.settings
    assert (settings.max_set_age_s, settings.max_plan_age_s) == (1.0, 2.0)
    assert type(settings.max_set_age_s) is float


def test_a_set_of_changes_is_applied_as_a_whole_or_not_at_all(rig):
    node = rig().node

    def attempt(age_s: float):
        changes = [Parameter("drop", value=0.25), Parameter("max_set_age_s", value=age_s)]
        return node.set_parameters_atomically(changes)

    assert not attempt(-1.0).successful
    assert node._loaded.planner.drop == node.get_parameter("drop").value == 0.5
    assert attempt(0.75).successful
    assert (node._loaded.planner.drop, node._worker._frames.limits.max_age_s) == (0.25, 0.75)


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


def test_a_change_that_cannot_be_applied_leaves_the_node_running_and_is_in_the_diagnostics(rig, monkeypatch):
    rig = connected(rig(diagnostics_period_s=0.1))
    rig.listen(DiagnosticArray, "/diagnostics")

    def fail(*arguments):
        raise RuntimeError("a fault of the planner")

    with monkeypatch.context() as patch:
        patch.setattr(rig.node._worker, "configure", fail)
        assert rig.node.set_parameters([Parameter("drop", value=0.25)])[0].successful
    expected = "drop: accepted but not applied: RuntimeError: a fault of the planner"
    rig.wait(lambda: diagnostics(rig)["planner"].message == expected, "the problem in the diagnostics")
    rig.send_set(rig.now_ns())
    assert next_record(rig, 1)["kind"] == "plan"
    rig.node.set_parameters([Parameter("drop", value=0.25)])
    rig.wait(lambda: diagnostics(rig)["planner"].message != expected, "the diagnostics without it")


def test_a_check_that_fails_refuses_the_change(rig, monkeypatch):
    made = rig()
    monkeypatch.setattr(made.planner, "check_drop", lambda value: 1 / 0)
    result = made.node.set_parameters([Parameter("drop", value=0.25)])[0]
    assert not result.successful and "ZeroDivisionError" in result.reason


def test_a_wrong_choice_is_refused_at_the_start(ros):
    from fastdrive_node.ros.node import FastDriveNode

    with pytest.raises(Exception, match="image_transport: 'jpeg': should be 'raw' or 'compressed'"):
        FastDriveNode(parameter_overrides=[Parameter("image_transport", value="jpeg")])


@pytest.mark.parametrize("name", ["dropp", "max_spread", "qos_override./odom.subscription.depth"])
def test_an_unknown_parameter_is_refused_at_the_start_by_name(ros, name):
    from fastdrive_node.ros.node import FastDriveNode

    with pytest.raises(Exception, match=f"{name}: no such parameter; "):
        FastDriveNode(parameter_overrides=[Parameter(name, value=0.5)])


def test_the_executable_refuses_an_unknown_parameter_with_the_names_that_are_close(ros):
    words = ["-m", "fastdrive_node.ros", "--ros-args", "-p", "use_sim_time:=true", "-p", "dropp:=0.5"]
    ended = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "fastdrive_node: dropp: no such parameter; did you mean drop?" in ended.stderr


def test_parameters_of_every_ros_node_are_taken(rig):
    qos = {"qos_overrides./fastdrive/input/odometry.subscription.depth": 5}
    made = rig(start=False, use_sim_time=False, start_type_description_service=False, **qos)
    assert made.node.start()


def test_drop_minus_one_is_the_loaded_models_default_also_while_running(rig):
    node = rig(drop=0.25).node
    node._loaded.planner.default_drop = 0.6
    assert node.set_parameters([Parameter("drop", value=-1.0)])[0].successful
    assert node._loaded.planner.drop == node.get_parameter("drop").value == node.settings.drop == 0.6


def test_autoware_without_its_messages_is_refused_with_the_fix(rig):
    made = rig(start=False, trajectory_type="autoware")
    try:
        import autoware_planning_msgs  # noqa: F401
    except ImportError:
        assert not made.node.start()
        assert made.node._label == "unconfigured"
    else:
        pytest.skip("autoware_planning_msgs is installed")


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
