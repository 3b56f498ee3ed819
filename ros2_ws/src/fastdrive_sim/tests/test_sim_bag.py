"""The rosbag2 writer, read back with rosbags."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import sim_fakes
from rosbags.interfaces import QosDurability
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore

from fastdrive_node.errors import SimError, UsageError
from fastdrive_sim.bag import EPOCH_NS, STORAGES, TRANSPORTS, BagSpec, write_bag
from fastdrive_sim.rig import DEFAULT_RIG, RIGS
from fastdrive_sim.sources import Sources

RIG = RIGS[DEFAULT_RIG]
STORE = get_typestore(Stores.ROS2_JAZZY)
WIDTH, HEIGHT = 64, 36
SECONDS, HZ, SEED = 2.0, 4.0, 11
SUFFIX = {"raw": "image_raw", "compressed": "image_raw/compressed"}


def spec(**change) -> BagSpec:
    return BagSpec(**{"seconds": SECONDS, "hz": HZ, "seed": SEED, "width": WIDTH, "height": HEIGHT, **change})


def write(out: Path, **change) -> dict:
    return write_bag(out, spec(**change), sim_fakes.fake_sources, progress=False)


def messages(bag: Path) -> list[tuple[str, int, object]]:
    with Reader(bag) as reader:
        return [
            (connection.topic, time, STORE.deserialize_cdr(data, connection.msgtype))
            for connection, time, data in reader.messages()
        ]


def stamp_ns(message) -> int:
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


def rendered(step: int) -> np.ndarray:
    simulation = sim_fakes.FakeSimulation(SEED, SECONDS)
    renderer = sim_fakes.FakeRenderer(WIDTH, HEIGHT, RIG)
    renderer.load(simulation.world)
    return renderer.render(simulation.snapshot(step / 20)).rgb


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, int, object]]:
    out = tmp_path_factory.mktemp("bag") / "drive"
    write(out)
    return messages(out)


def of(drive: list, topic: str) -> list:
    return [message for name, _, message in drive if name == topic]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_counts_are_those_of_the_bag(tmp_path, storage, transport):
    counts = write(tmp_path / "drive", storage=storage, transport=transport)
    expected = {"/odom": 40, "/driving_command": 8, "/tf_static": 1}
    expected |= {f"/{camera.name}/{SUFFIX[transport]}": 8 for camera in RIG}
    expected |= {f"/{camera.name}/camera_info": 8 for camera in RIG}
    with Reader(tmp_path / "drive") as reader:
        assert {name: topic.msgcount for name, topic in reader.topics.items()} == expected
    assert counts == {"sets": 8, "messages": 145, "topics": expected}


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_images_decode_to_the_rendered_pixels(tmp_path, storage, transport):
    write(tmp_path / "drive", storage=storage, transport=transport)
    read = messages(tmp_path / "drive")
    for index, camera in enumerate(RIG):
        for number, message in enumerate(of(read, f"/{camera.name}/{SUFFIX[transport]}")):
            rgb = rendered(number * 5)[index]
            if transport == "raw":
                assert (message.encoding, message.step) == ("rgb8", 3 * WIDTH)
                assert np.array_equal(message.data.reshape(message.height, message.width, 3), rgb)
            else:
                encoded = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
                assert message.format == "jpeg" and np.array_equal(message.data, encoded.reshape(-1))


def test_record_times_rise_strictly_and_stay_at_their_stamp(drive):
    times = [time for _, time, _ in drive]
    assert times[0] == EPOCH_NS and all(earlier < later for earlier, later in pairwise(times))
    stamped = [(time, stamp_ns(message)) for _, time, message in drive if hasattr(message, "header")]
    assert all(0 <= time - stamp < 1000 for time, stamp in stamped)


def test_a_set_shares_one_stamp_and_follows_its_odometry(drive):
    odometry = {stamp_ns(message) for message in of(drive, "/odom")}
    stamps = [{stamp_ns(m) for m in of(drive, f"/{camera.name}/image_raw")} for camera in RIG]
    assert all(stamp == stamps[0] for stamp in stamps) and stamps[0] <= odometry
    seen = set()
    for topic, _, message in drive:
        if topic == "/odom":
            seen.add(stamp_ns(message))
        elif topic.endswith("image_raw"):
            assert stamp_ns(message) in seen


def test_odometry_runs_at_20_hz_from_the_start_of_the_drive(drive):
    odometry = of(drive, "/odom")
    assert set(np.diff([stamp_ns(message) for message in odometry])) == {50_000_000}
    first, last = odometry[0], odometry[-1]
    assert (first.header.frame_id, first.child_frame_id) == ("odom", "base_link")
    assert (first.pose.pose.position.x, first.pose.pose.orientation.w) == (0.0, 1.0)
    ego = sim_fakes.FakeSimulation(SEED, SECONDS).pose(1.95)
    assert last.pose.pose.position.x == pytest.approx(ego.x) and last.pose.pose.position.y == pytest.approx(ego.y)
    assert 2 * np.arcsin(last.pose.pose.orientation.z) == pytest.approx(ego.yaw)
    assert last.twist.twist.linear.x == ego.speed and last.twist.twist.angular.z == ego.yaw_rate


def test_camera_info_is_the_scaled_pinhole_of_the_image(drive):
    for camera in RIG:
        infos, images = of(drive, f"/{camera.name}/camera_info"), of(drive, f"/{camera.name}/image_raw")
        for info, image in zip(infos, images, strict=True):
            assert info.header == image.header and info.header.frame_id == camera.name
            assert (info.width, info.height) == (WIDTH, HEIGHT)
            assert np.allclose(info.k.reshape(3, 3), camera.scaled(WIDTH, HEIGHT))
            assert np.allclose(info.p.reshape(3, 4)[:, :3], camera.scaled(WIDTH, HEIGHT))


def test_the_rig_hangs_on_base_link(drive):
    (message,) = of(drive, "/tf_static")
    for transform, camera in zip(message.transforms, RIG, strict=True):
        assert (transform.header.frame_id, transform.child_frame_id) == ("base_link", camera.name)
        q = transform.transform.rotation
        axis = np.array([[0, -q.z, q.y], [q.z, 0, -q.x], [-q.y, q.x, 0]])
        assert np.allclose(np.eye(3) + 2 * q.w * axis + 2 * axis @ axis, camera.rotation)
        t = transform.transform.translation
        assert np.allclose((t.x, t.y, t.z), camera.translation)


def test_tf_static_is_offered_to_late_joiners(tmp_path):
    write(tmp_path / "drive")
    with Reader(tmp_path / "drive") as reader:
        durability = {c.topic: c.ext.offered_qos_profiles[0].durability for c in reader.connections}
    assert durability.pop("/tf_static") == QosDurability.TRANSIENT_LOCAL
    assert set(durability.values()) == {QosDurability.VOLATILE}


def test_the_command_is_the_simulation_s(tmp_path):
    write(tmp_path / "drive", seconds=8.0, hz=1.0)
    commands = [message.data for message in of(messages(tmp_path / "drive"), "/driving_command")]
    assert commands == ["straight"] * 6 + ["left"] * 2


@pytest.mark.parametrize("storage", STORAGES)
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path, storage):
    for folder, seed in (("a", SEED), ("b", SEED), ("c", SEED + 1)):
        write(tmp_path / folder / "drive", storage=storage, seed=seed)
    first, again, other = (
        [path.read_bytes() for path in sorted((tmp_path / folder / "drive").iterdir())] for folder in "abc"
    )
    assert first == again and first != other


def test_an_existing_folder_is_refused(tmp_path):
    (tmp_path / "drive").mkdir()
    with pytest.raises(SimError, match="exists already"):
        write(tmp_path / "drive")


class _FailingRenderer(sim_fakes.FakeRenderer):
    def render(self, snapshot):
        if snapshot.time_s > 1:
            raise SimError("the lights went out")
        return super().render(snapshot)


def test_a_failed_bag_leaves_nothing_behind(tmp_path):
    sources = Sources(sim_fakes.FakeSimulation, _FailingRenderer)
    with pytest.raises(SimError, match="lights"):
        write_bag(tmp_path / "drive", spec(), lambda: sources, progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seconds": 0}, "--seconds"),
        ({"seconds": float("nan")}, "--seconds"),
        ({"hz": 3}, "--hz"),
        ({"hz": 0}, "--hz"),
        ({"hz": 40}, "--hz"),
        ({"hz": float("nan")}, "--hz"),
        ({"seed": -1}, "--seed"),
        ({"storage": "bag"}, "--storage"),
        ({"transport": "theora"}, "--transport"),
        ({"height": 5000}, "--size"),
        ({"jpeg_quality": 0}, "--jpeg-quality"),
    ],
)
def test_impossible_arguments_are_named(change, name):
    with pytest.raises(UsageError, match=name):
        spec(**change)
