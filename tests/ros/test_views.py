"""RViz's configuration and Foxglove's layout show what the node and the sample bag publish."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fastdrive_node.types import CAMERAS

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e .[ros]")

ROOT = Path(__file__).resolve().parents[2]
TYPES = {  # of displays and panels, by topic type
    "rviz_default_plugins/Image": {"sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"},
    "rviz_default_plugins/Path": {"nav_msgs/msg/Path"},
    "rviz_default_plugins/MarkerArray": {"visualization_msgs/msg/MarkerArray"},
    "Image": {"sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"},
    "3D": {"nav_msgs/msg/Path", "visualization_msgs/msg/MarkerArray"},
    "DiagnosticSummary": {"diagnostic_msgs/msg/DiagnosticArray"},
    "DiagnosticStatusPanel": {"diagnostic_msgs/msg/DiagnosticArray"},
    "RawMessages": {"diagnostic_msgs/msg/DiagnosticStatus"},
    "Plot": {"std_msgs/msg/Float64"},
}


@pytest.fixture
def published(rig) -> dict[str, str]:
    """Types by topic, of a configured node and of the shipped sample."""
    node = rig().node
    topics = dict(node.get_publisher_names_and_types_by_node(node.get_name(), node.get_namespace()))
    found = {topic: kinds[0] for topic, kinds in topics.items()}
    bag = yaml.safe_load((ROOT / "samples" / "city" / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    for entry in bag["topics_with_message_count"]:
        found[entry["topic_metadata"]["name"]] = entry["topic_metadata"]["type"]
    return found


def rviz_displays(displays: list[dict]) -> Iterator[dict]:
    for display in displays:
        yield from rviz_displays(display.get("Displays", ()))
        if "Topic" in display:
            yield display


def foxglove_topics(kind: str, config: dict) -> list[str]:
    if kind == "Image":
        return [config["imageMode"]["imageTopic"]]
    if kind == "Plot":
        return [path["value"].removesuffix(".data") for path in config["paths"]]
    return [*config.get("topics", ()), *(config[key] for key in ("topicToRender", "topicPath") if key in config)]


def panels_of(layout: object) -> list[str]:
    if isinstance(layout, str):
        return [layout]
    return [*panels_of(layout["first"]), *panels_of(layout["second"])]


def test_both_show_topics_of_the_node_and_of_the_sample_with_their_types(published):
    rviz = yaml.safe_load((ROOT / "config" / "fastdrive.rviz").read_text())["Visualization Manager"]
    shown = {"rviz": [], "foxglove": []}
    for display in rviz_displays(rviz["Displays"]):
        topic = display["Topic"]["Value"]
        assert published.get(topic) in TYPES[display["Class"]], topic
        shown["rviz"].append(topic)
    for name, config in json.loads((ROOT / "config" / "foxglove_layout.json").read_text())["configById"].items():
        kind = name.split("!")[0]
        for topic in foxglove_topics(kind, config):
            assert published.get(topic) in TYPES[kind], topic
            shown["foxglove"].append(topic)
    for topics in shown.values():
        assert {"/fastdrive/debug/markers", "/fastdrive/output/path"} <= set(topics)
        assert {f"/fastdrive/debug/overlay/{camera.lower()}" for camera in CAMERAS} <= set(topics)
        assert {f"/{camera}/image_raw/compressed" for camera in CAMERAS} <= set(topics)
    assert "/fastdrive/output/status" in shown["foxglove"]


def test_every_panel_of_the_foxglove_layout_is_placed_once():
    content = json.loads((ROOT / "config" / "foxglove_layout.json").read_text())
    placed = panels_of(content["layout"])
    for panel in list(placed):
        for tab in content["configById"][panel].get("tabs", ()):
            placed += panels_of(tab["layout"])
    assert sorted(placed) == sorted(content["configById"])
    assert all(re.fullmatch(r"[A-Za-z0-9]+![a-z_]+", panel) for panel in placed)


def test_overlays_and_markers_cost_nothing_while_nobody_looks(rig, monkeypatch):
    from fastdrive_node.ros import outputs
    from fastdrive_node.visualization import overlay
    from tests.ros.conftest import connected, next_record

    drawn = []
    monkeypatch.setattr(overlay, "overlay", lambda *_: drawn.append("overlay"))
    monkeypatch.setattr(outputs, "marker_array", lambda *_: drawn.append("markers"))
    rig = connected(rig())
    rig.send_set(rig.now_ns())
    assert next_record(rig, 1)["kind"] == "plan"
    rig.send_set(rig.now_ns())
    assert next_record(rig, 2)["kind"] == "plan"  # the first set's outputs are all published
    assert drawn == []
