"""The live node's /diagnostics: inputs, model, and endpoints that do not fit."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.ros.conftest import (
    connected,
    diagnostics,
    next_record,
    values,
)

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e .[ros]")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.utilities import get_rmw_implementation_identifier
from std_msgs.msg import String

from fastdrive_node.ros.qos import STATUS
from fastdrive_node.ros.transport import VARIABLES
from fastdrive_node.types import CAMERAS


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


def test_a_publisher_of_an_incompatible_qos_is_in_the_diagnostics_until_it_is_mended(rig):
    rig = rig(diagnostics_period_s=0.1)
    unfit = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    publisher = rig.advertise(String, "/fastdrive/input/command", unfit)
    rig.listen(DiagnosticArray, "/diagnostics")
    rig.wait(lambda: "incompatible reliability" in diagnostics(rig)["topics"].message, "the QoS problem")
    rig.call(lambda: rig.peer.destroy_publisher(publisher))
    rig.advertise(String, "/fastdrive/input/command", 1)
    rig.wait(lambda: "incompatible" not in diagnostics(rig)["topics"].message, "the end of the problem")


def test_another_node_of_this_name_is_told_until_it_ends(rig):
    rig = connected(rig(diagnostics_period_s=0.1))
    rig.listen(DiagnosticArray, "/diagnostics")
    rig.send_set(rig.now_ns())
    assert next_record(rig, 1)["kind"] == "plan"
    other = rig.advertise(DiagnosticStatus, "/fastdrive/output/status", STATUS)
    rig.wait(lambda: "another node of this name" in diagnostics(rig)["topics"].message, "the problem")
    rig.send_set(rig.now_ns())
    assert next_record(rig, 2)["kind"] == "plan"
    rig.wait(lambda: rig.node._status.mode.text.startswith("degraded: node_name: "), "the mode")
    rig.call(lambda: rig.peer.destroy_publisher(other))
    rig.wait(lambda: "another node" not in diagnostics(rig)["topics"].message, "the end of the problem")


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


def test_no_loss_is_expected_where_all_images_are_reliable_and_an_override_is_of_one_topic(rig, monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    topics = [f"/fastdrive/input/{camera.lower()}/image" for camera in CAMERAS]
    reliable = {f"qos_overrides.{topic}.subscription.reliability": "reliable" for topic in topics}
    one = dict([next(iter(reliable.items()))])
    first = rig(**one).node
    kinds = [first._inputs._subscriptions[camera].qos_profile.reliability for camera in CAMERAS]
    assert kinds == [ReliabilityPolicy.RELIABLE] + 5 * [ReliabilityPolicy.BEST_EFFORT]
    assert rig(**reliable).node._inputs.loss_expected() == ""


# Another process: within one, a second type is refused at once, and Fast DDS can lock when a second participant ends.
PUBLISHER = """
import sys
import rclpy
from sensor_msgs.msg import CompressedImage
rclpy.init()
node = rclpy.create_node("other")
node.create_publisher(CompressedImage, "/fastdrive/input/cam_back/image", 10)
sys.stdin.read()
rclpy.shutdown()
"""


def test_a_publisher_of_another_type_is_in_the_diagnostics(rig, ros):
    rig = rig(diagnostics_period_s=0.1)
    rig.listen(DiagnosticArray, "/diagnostics")
    expected = "/fastdrive/input/cam_back/image: a publisher sends sensor_msgs/msg/CompressedImage"
    other = subprocess.Popen([sys.executable, "-c", PUBLISHER], stdin=subprocess.PIPE)
    try:
        rig.wait(lambda: expected in diagnostics(rig)["topics"].message, "the type problem")
        other.communicate()  # which ends it
        rig.wait(lambda: "a publisher sends" not in diagnostics(rig)["topics"].message, "the end of the problem")
    finally:
        other.kill()
        other.communicate()
