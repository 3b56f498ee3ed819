"""The rosbag2 of a recorded run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sim_fakes
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore

from fastdrive_node.errors import InputError, SimError
from fastdrive_sim.drive import film
from fastdrive_sim.drive.command import DriveOptions, drive_suite
from fastdrive_sim.drive.families import FAMILIES
from fastdrive_sim.drive.loop import drive
from fastdrive_sim.drive.planners import expert_planner
from fastdrive_sim.drive.run_bag import OBJECTS_TOPIC, PATH_TOPIC, read_run_lines, write_run_bag
from fastdrive_sim.drive.storage import lines
from fastdrive_sim.drive.types import DriveRow, RunRecord
from fastdrive_sim.rig import DEFAULT_RIG, RIGS

STORE = get_typestore(Stores.ROS2_JAZZY)


@pytest.fixture(scope="module")
def run() -> RunRecord:
    return drive(FAMILIES["bend"].scene(3), expert_planner(0.7), DriveRow("expert", latency_s=0.7))


@pytest.fixture(scope="module")
def bag(run, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bags") / "run"
    write_run_bag(run, path)
    return path


def messages(bag: Path, topic: str) -> list:
    with Reader(bag) as reader:
        chosen = [each for each in reader.connections if each.topic == topic]
        return [STORE.deserialize_cdr(raw, each.msgtype) for each, _, raw in reader.messages(connections=chosen)]


def test_a_bag_holds_the_record_of_its_run(run, bag):
    assert {plan.outcome for plan in run.plans} >= {"planned", "superseded"}
    assert read_run_lines(bag) == list(lines(run))


def test_odometry_begins_in_the_origin_and_tells_the_way(run, bag):
    poses = [message.pose.pose.position for message in messages(bag, "/odom")]
    assert len(poses) == len(run.steps)
    assert (poses[0].x, poses[0].y) == (0.0, 0.0)
    first, last = run.steps[0].ego, run.steps[-1].ego
    assert np.hypot(poses[-1].x, poses[-1].y) == pytest.approx(np.hypot(last.x - first.x, last.y - first.y))


def test_paths_are_the_plans_that_came_into_use(run, bag):
    used = [plan for plan in run.plans if plan.used_from_s is not None]
    paths = messages(bag, PATH_TOPIC)
    assert [len(path.poses) for path in paths] == [6] * len(used)
    seconds = [path.header.stamp.sec % 1000 + path.header.stamp.nanosec * 1e-9 for path in paths]
    assert seconds == pytest.approx([plan.time_s for plan in used])


def test_others_are_boxes_of_their_size(run, bag):
    markers = [marker for message in messages(bag, OBJECTS_TOPIC) for marker in message.markers]
    others = [other for step in run.steps for other in step.others]
    assert [(marker.id, marker.scale.x) for marker in markers] == [(each.instance, each.length) for each in others]


def test_cameras_are_written_at_the_planning_ticks(run, tmp_path, monkeypatch):
    monkeypatch.setattr(film, "Renderer", sim_fakes.FakeRenderer)
    write_run_bag(run, tmp_path / "run", RIGS[DEFAULT_RIG][:2], (32, 24))
    images = messages(tmp_path / "run", "/CAM_FRONT_RIGHT/image_raw")
    assert len(images) == len({plan.time_s for plan in run.plans})
    assert (images[0].width, images[0].height, images[0].encoding) == (32, 24, "rgb8")


def test_a_folder_that_exists_and_a_bag_without_a_run_are_refused(run, bag, tmp_path):
    with pytest.raises(SimError, match="exists already"):
        write_run_bag(run, bag)
    with pytest.raises(InputError, match="not a readable rosbag2"):
        read_run_lines(tmp_path)


def test_bags_get_images_when_they_are_asked_for_later(tmp_path, monkeypatch, capsys):
    pytest.importorskip("fastdrive_sim.drive.node_session", reason="rclpy is not installed")

    def refuse(*_):
        raise SimError("no OpenGL here")

    options = DriveOptions(tmp_path / "out", families=("bend",), runs=1, pruners=(), bags="state")
    bag = options.out / "bags" / "expert" / "bend-0"

    def written() -> list[str]:
        """The bags that the call has told."""
        drive_suite(options)
        return [line for line in capsys.readouterr().err.splitlines() if " bag " in line]

    both = ["expert  bend-0  bag 1 of 2", "constant-velocity  bend-0  bag 2 of 2"]
    assert written() == both and written() == []
    options = replace(options, bags="cameras")
    monkeypatch.setattr(film, "Renderer", refuse)
    with pytest.raises(SimError, match="no OpenGL here"):
        drive_suite(options)
    assert read_run_lines(bag), "the bag without images is gone"
    monkeypatch.setattr(film, "Renderer", sim_fakes.FakeRenderer)
    assert written() == both and written() == []
    with Reader(bag) as reader:
        images = {each.topic: each.msgcount for each in reader.connections if each.topic.endswith("image_raw")}
    assert len(images) == 6 and min(images.values()) > 10
    options = replace(options, bags="state")
    assert written() == []
