"""The SROS 2 policy allows what the live node has, and nothing else."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e .[ros]")

from fastdrive_node.ros.security_policy import main, policy

LOOK_UPS = {
    ("topic", "publish"): "get_publisher_names_and_types_by_node",
    ("topic", "subscribe"): "get_subscriber_names_and_types_by_node",
    ("service", "reply"): "get_service_names_and_types_by_node",
    ("service", "request"): "get_client_names_and_types_by_node",
}


def rules(text: str) -> dict[tuple[str, str], set[str]]:
    """Names that are allowed, by kind and rule."""
    profile = ElementTree.fromstring(text.encode()).find("enclaves/enclave/profiles/profile")
    return {
        (group.tag.removesuffix("s"), rule): {each.text for each in group}
        for group in profile
        for rule, qualifier in group.attrib.items()
        if qualifier == "ALLOW"
    }


def test_every_topic_and_service_that_another_node_sees_is_allowed_and_no_other(rig):
    rig = rig(acceleration_input=True, steering_input="float64")

    def seen() -> dict[tuple[str, str], set[str]]:
        found = {key: {name for name, _ in getattr(rig.peer, look)("fastdrive", "/")} for key, look in LOOK_UPS.items()}
        return {key: names for key, names in found.items() if names}

    allowed = rules(policy(rig.node))
    rig.wait(lambda: seen() == allowed, "the same names in the peer's graph")
    assert "/fastdrive/input/cam_front/image" in allowed["topic", "subscribe"]
    assert {"/fastdrive/input/steering", "/fastdrive/input/acceleration"} <= allowed["topic", "subscribe"]
    assert {"/fastdrive/output/path", "/fastdrive/output/status", "/diagnostics"} <= allowed["topic", "publish"]
    assert {"/fastdrive/set_parameters", "/fastdrive/change_state"} <= allowed["service", "reply"]


def test_the_program_knows_remappings_namespace_and_the_topic_map(ros, tmp_path, capsys):
    topics = tmp_path / "topics.yaml"
    cameras = "".join(f"  CAM_{name}: /vehicle/{name.lower()}\n" for name in ("FRONT", "FRONT_RIGHT", "BACK_RIGHT"))
    cameras += "".join(f"  CAM_{name}: /vehicle/{name.lower()}\n" for name in ("BACK", "BACK_LEFT", "FRONT_LEFT"))
    topics.write_text(f"cameras:\n{cameras}odometry: /vehicle/odometry\nacceleration: /vehicle/acceleration\n")
    ros_words = ["--ros-args", "-p", "vla:=tiny", "-r", "__ns:=/car", "-r", "~/output/path:=/planning/path"]
    assert main(["--enclave", "/car/fastdrive", "--topics", str(topics), *ros_words]) == 0
    text = capsys.readouterr().out
    allowed = rules(text)
    assert {"/vehicle/front", "/vehicle/odometry", "/vehicle/acceleration"} <= allowed["topic", "subscribe"]
    assert "/planning/path" in allowed["topic", "publish"]
    assert "/car/fastdrive/set_parameters" in allowed["service", "reply"]
    root = ElementTree.fromstring(text.encode())
    assert (root.tag, root.get("version")) == ("policy", "0.2.0")
    assert root.find("enclaves/enclave").get("path") == "/car/fastdrive"
    assert root.find("enclaves/enclave/profiles/profile").attrib == {"ns": "/car", "node": "fastdrive"}


@pytest.mark.parametrize("words", [["-p", "vla:=/no/such/vla"], ["-p", "vlaa:=tiny"]])
def test_a_node_that_cannot_be_activated_gives_no_policy(ros, capsys, words):
    assert main(["--ros-args", *words]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("security_policy: ")
