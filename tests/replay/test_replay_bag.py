"""Bags and topic maps are checked before anything starts."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from fastdrive_node.commands.replay import ReplayOptions, open_recording
from fastdrive_node.errors import InputError
from fastdrive_node.replay.bag import Bag, Recording
from fastdrive_node.replay.frame_sets import SetCounter
from fastdrive_node.ros.topics import camera_info_topic, load_topic_map, simulator_topics
from fastdrive_node.types import CAMERAS
from tests.replay.bags import START_NS, BagPlan, without_camera, write_bag


def recording(bag, topics=None) -> Recording:
    return open_recording(ReplayOptions(bag, topics), CAMERAS)


def refusal(bag, topics=None) -> str:
    with pytest.raises(InputError) as caught:
        recording(bag, topics)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("transport", ["raw", "compressed"])
def test_the_simulators_bags_need_no_topic_map(tmp_path, storage, transport):
    found = recording(write_bag(tmp_path / "bag", BagPlan(storage=storage, transport=transport)))
    assert found.compressed == (transport == "compressed")
    assert found.topics.command == "/driving_command"
    messages = list(found.bag.messages(found.topics.topics()))
    assert len(messages) == 21 + 3 + 18
    assert messages[0].stamp_ns == START_NS == found.bag.start_ns
    assert [m.stamp_ns for m in messages] == sorted(m.stamp_ns for m in messages)


def test_a_missing_camera_topic_is_named_with_what_the_bag_has(tmp_path):
    text = refusal(write_bag(tmp_path / "bag", BagPlan(without={"/CAM_BACK/image_raw"})))
    assert "CAM_BACK: topic /CAM_BACK/image_raw of the simulator's topics is not in the bag" in text
    assert "--topics" in text and "/CAM_FRONT/image_raw (sensor_msgs/msg/Image)" in text


def test_missing_odometry_is_named(tmp_path):
    assert "odometry: topic /odom" in refusal(write_bag(tmp_path / "bag", BagPlan(without={"/odom"})))


def test_the_command_is_optional_unless_the_map_asks_for_it(tmp_path):
    bag = write_bag(tmp_path / "bag", BagPlan(without={"/driving_command"}))
    assert recording(bag).topics.command is None
    assert "command: topic /driving_command" in refusal(bag, write_map(tmp_path, "command: /driving_command\n"))


def test_a_topic_of_another_type_is_named_with_the_right_one(tmp_path):
    bag = write_bag(tmp_path / "bag", BagPlan(types={"/odom": "std_msgs/msg/String"}))
    assert "odometry: topic /odom is of type std_msgs/msg/String, but must be nav_msgs/msg/Odometry" in refusal(bag)
    bag = write_bag(tmp_path / "bag2", BagPlan(types={"/CAM_FRONT/image_raw": "sensor_msgs/msg/CompressedImage"}))
    assert "has no messages" in refusal(bag)


def test_a_near_name_is_suggested(tmp_path):
    topics = write_map(tmp_path, text_of(tmp_path).replace("/CAM_BACK/image_raw", "/CAM_BACK/image_rw"), whole=True)
    assert "did you mean /CAM_BACK/image_raw?" in refusal(write_bag(tmp_path / "bag"), topics)


def test_what_is_no_bag_is_refused(tmp_path):
    assert "no such bag" in refusal(tmp_path / "absent")
    (tmp_path / "folder").mkdir()
    assert "not a readable rosbag2" in refusal(tmp_path / "folder")
    (tmp_path / "file.mcap").write_bytes(b"not a bag" * 100)
    assert "not a readable rosbag2" in refusal(tmp_path / "file.mcap")
    (tmp_path / "notes.txt").write_text("hello")
    assert "not a readable rosbag2" in refusal(tmp_path / "notes.txt")


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_bag_that_is_cut_short_is_refused(tmp_path, storage):
    bag = write_bag(tmp_path / "bag", BagPlan(storage=storage))
    data = next(path for path in bag.iterdir() if path.suffix in (".mcap", ".db3"))
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 3])
    expected = {"mcap": "the MCAP file is cut off", "sqlite3": "not a readable rosbag2"}
    with pytest.raises(InputError, match=expected[storage]):
        list(Bag.open(bag).messages(["/odom"]))


def test_broken_metadata_is_refused(tmp_path):
    bag = write_bag(tmp_path / "bag")
    (bag / "metadata.yaml").write_text("rosbag2_bagfile_information: {version: 99}")
    assert "not a readable rosbag2" in refusal(bag)


def text_of(tmp_path) -> str:
    cameras = "".join(f"  {camera}: /{camera}/image_raw\n" for camera in CAMERAS)
    return f"cameras:\n{cameras}odometry: /odom\n"


def write_map(tmp_path, more: str = "", whole: bool = False):
    path = tmp_path / "map.yaml"
    path.write_text(more if whole else text_of(tmp_path) + more)
    return path


def test_a_topic_map_is_read(tmp_path):
    topics = load_topic_map(write_map(tmp_path, "command: /driving_command\n"))
    assert dict(topics.cameras) == dict(simulator_topics().cameras)
    assert ("~/input/cam_back_left/image", "/CAM_BACK_LEFT/image_raw") in topics.remappings()
    assert ("~/input/command", "/driving_command") in topics.remappings()
    assert topics.parameters() == {}


def test_frame_ids_of_a_topic_map_are_a_parameter(tmp_path):
    topics = load_topic_map(write_map(tmp_path, "frame_ids: {CAM_FRONT: front_optical, CAM_BACK: /rear/lens}\n"))
    assert topics.parameters() == {"camera_frame_ids": "CAM_FRONT=front_optical CAM_BACK=/rear/lens"}


@pytest.mark.parametrize(
    ("image", "info"),
    [
        ("/CAM_FRONT/image_raw", "/CAM_FRONT/camera_info"),
        ("/front/image_rect/compressed", "/front/camera_info"),
        ("/image", "/camera_info"),
    ],
)
def test_camera_info_is_beside_the_images(image, info):
    assert camera_info_topic(image) == info


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (("CAM_BACK:", "CAM BACK:"), "cameras: 'CAM BACK' is no camera name"),
        (("CAM_BACK:", "7:"), "cameras: '7' is no camera name"),
        (("CAM_BACK:", "Cam_Front:"), "cameras: Cam_Front and CAM_FRONT differ only in case"),
        (("odometry:", "odom:"), "odom: unknown key; a topic map has cameras, odometry, command"),
        (("odometry: /odom", ""), "odometry: missing"),
        (("/odom", "odom"), "odometry: 'odom' is no absolute topic name"),
        (("/odom", "/odom topic"), "no absolute topic name"),
        (("/odom", "[1, 2]"), "odometry: a list is no absolute topic name"),
        (("/odom", "/CAM_FRONT/image_raw"), "is that of cameras.CAM_FRONT too"),
        (("cameras:", "cameras: []\nx:"), "x: unknown key"),
        (("cameras:", "- cameras:"), "not YAML"),
        (("odometry:", "odometry: /a\nodometry:"), "not YAML (odometry: is there twice"),
        (("/odom", "[" * 2000), "not YAML"),
        (("odometry:", "frame_ids: [a]\nodometry:"), "frame_ids: give one frame_id a camera"),
        (("odometry:", "frame_ids: {CAM: a}\nodometry:"), "frame_ids: CAM is not one of the cameras"),
        (("odometry:", "frame_ids: {CAM_BACK: 'a b'}\nodometry:"), "frame_ids.CAM_BACK: 'a b' is no frame_id"),
    ],
)
def test_a_wrong_topic_map_names_the_key(tmp_path, edit, reason):
    path = write_map(tmp_path, text_of(tmp_path).replace(*edit), whole=True)
    with pytest.raises(InputError, match=re.escape(reason)):
        load_topic_map(path)


def test_topic_maps_that_are_no_map_or_no_file(tmp_path):
    path = write_map(tmp_path, "just text", whole=True)
    with pytest.raises(InputError, match="not a topic map"):
        load_topic_map(path)
    with pytest.raises(InputError, match="cannot be read"):
        load_topic_map(tmp_path / "absent.yaml")


def test_a_map_without_a_camera_that_the_model_reads_is_refused(tmp_path):
    bag, text = write_bag(tmp_path / "bag"), text_of(tmp_path)
    without = write_map(tmp_path, text.replace("  CAM_BACK: /CAM_BACK/image_raw\n", ""), whole=True)
    assert "CAM_BACK is missing, and the model reads it" in refusal(bag, without)
    misspelled = write_map(tmp_path, text.replace("  CAM_BACK:", "  CAM_BAK:"), whole=True)
    assert "CAM_BACK is missing, and the model reads it; did you write CAM_BAK for it?" in refusal(bag, misspelled)


@pytest.mark.parametrize("count", [1, 7, 32])
def test_cameras_have_any_names_in_any_number(tmp_path, count):
    cameras = tuple(f"roof_{index}" for index in range(count))
    bag = write_bag(tmp_path / "bag", BagPlan(cameras=cameras, spread_ms=1.0))
    lines = "".join(f"  {camera}: /{camera}/image_raw\n" for camera in (*cameras[::-1], "spare")[:32])
    topics = write_map(tmp_path, f"cameras:\n{lines}odometry: /odom\n", whole=True)
    found = open_recording(ReplayOptions(bag, topics), cameras)
    assert found.cameras == cameras
    counter = SetCounter(found.topics, found.compressed)
    for message in found.bag.messages(found.topics.topics()):
        counter.add(message)
    assert counter.complete == [START_NS + k * 500_000_000 for k in range(3)]


def test_more_cameras_than_a_node_may_have_are_refused(tmp_path):
    lines = "".join(f"  roof_{index}: /roof_{index}\n" for index in range(33))
    with pytest.raises(InputError, match="cameras: 33 of them; give at most 32"):
        load_topic_map(write_map(tmp_path, f"cameras:\n{lines}odometry: /odom\n", whole=True))


def test_for_an_external_node_the_map_says_which_cameras_there_are(tmp_path):
    bag = write_bag(tmp_path / "bag", BagPlan(cameras=("roof", "nose")))
    topics = write_map(
        tmp_path, "cameras: {nose: /nose/image_raw, roof: /roof/image_raw}\nodometry: /odom\n", whole=True
    )
    assert open_recording(ReplayOptions(bag, topics, node="external")).cameras == ("nose", "roof")


def count(bag) -> SetCounter:
    found = recording(bag)
    counter = SetCounter(found.topics, found.compressed)
    for message in found.bag.messages(found.topics.topics()):
        counter.add(message)
    counter.finish(found.bag.end_ns)
    return counter


def test_complete_sets_are_counted_by_their_oldest_stamp(tmp_path):
    counter = count(write_bag(tmp_path / "bag", BagPlan(sets=4, spread_ms=8.0)))
    assert counter.complete == [START_NS + k * 500_000_000 for k in range(4)]
    assert not counter.incomplete


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_set_without_a_camera_is_counted_as_incomplete(tmp_path, index):
    counter = count(write_bag(tmp_path / "bag", without_camera("CAM_FRONT_LEFT", index)))
    assert counter.complete == [START_NS + k * 500_000_000 for k in range(3) if k != index]
    (report,) = counter.incomplete
    assert report.t0_ns == START_NS + index * 500_000_000 and "CAM_FRONT_LEFT missing" in report.reason


def test_a_message_without_a_readable_header_belongs_to_no_set(tmp_path):
    found = recording(write_bag(tmp_path / "bag"))
    counter = SetCounter(found.topics, found.compressed)
    for message in found.bag.messages(found.topics.topics()):
        counter.add(replace(message, raw=b"\xff" * 8) if message.topic == "/CAM_BACK/image_raw" else message)
    counter.finish(found.bag.end_ns)
    assert not counter.complete and len(counter.incomplete) == 3


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rate": 0.0}, "--rate 0"),
        ({"rate": float("nan")}, "--rate nan"),
        ({"rate": 2.0, "lockstep": True}, "--rate 2: --lockstep"),
        ({"loop": 0}, "--loop 0"),
        ({"node": "external", "drop": 0.5}, "--node external"),
    ],
)
def test_wrong_options_are_named(tmp_path, changes, reason):
    with pytest.raises(InputError, match=reason):
        ReplayOptions(tmp_path, **changes)
