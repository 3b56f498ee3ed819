"""``fastdrive score --pictures``: score maps of datasets, of bags and of the real keyframes."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from fastdrive_node.cli import main
from fastdrive_node.families import load_vla
from fastdrive_node.pruning.checkpoint import load_pruner
from fastdrive_node.types import CAMERAS
from fastdrive_training.data.image_sets import BagSets, is_bag
from fastdrive_training.scoring.pictures import file_name, write_score_maps
from fastdrive_training.scoring.score import score_sets
from tests.generation import SHALLOW, untrained_vla
from tests.training.tiny_nuscenes import write_dataset

HERE = Path(__file__).resolve()
REAL = HERE.parents[4] / "shared" / "data" / "nuscenes_scene0103_mcap"
TOPICS = HERE.parents[3] / "config" / "topics_nuscenes.yaml"
STORE = get_typestore(Stores.ROS2_JAZZY)
START_NS = 1_700_000_000_000_000_000


@pytest.fixture(scope="module")
def vla_dir(tmp_path_factory):
    return untrained_vla(tmp_path_factory.mktemp("vla") / "tiny", replace(SHALLOW, layers=1))


def write_bag(path: Path, sets: int = 3, late: str = "") -> Path:
    """The simulator's topics: odometry, and JPEG images whose shade is 20 x set + 5 x camera.

    ``late`` is a camera whose images are 10 s after the others'.
    """
    types = STORE.types

    def header(stamp_ns):
        stamp = types["builtin_interfaces/msg/Time"](sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
        return types["std_msgs/msg/Header"](stamp=stamp, frame_id="x")

    def geometry(name, *values):
        return types[f"geometry_msgs/msg/{name}"](*values)

    zero = geometry("Vector3", 0.0, 0.0, 0.0)
    pose = geometry("Pose", geometry("Point", 0.0, 0.0, 0.0), geometry("Quaternion", 0.0, 0.0, 0.0, 1.0))
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        image_type, odometry_type = "sensor_msgs/msg/CompressedImage", "nav_msgs/msg/Odometry"
        topics = {camera: f"/{camera}/image_raw/compressed" for camera in CAMERAS}
        images = {camera: writer.add_connection(topic, image_type, typestore=STORE) for camera, topic in topics.items()}
        odometry = writer.add_connection("/odom", odometry_type, typestore=STORE)
        for index in range(sets):
            stamp_ns = START_NS + index * 500_000_000
            message = types[odometry_type](
                header(stamp_ns),
                "base_link",
                geometry("PoseWithCovariance", pose, np.zeros(36)),
                geometry("TwistWithCovariance", geometry("Twist", zero, zero), np.zeros(36)),
            )
            writer.write(odometry, stamp_ns, STORE.serialize_cdr(message, odometry_type))
            for number, camera in enumerate(CAMERAS):
                exposed_ns = stamp_ns + (10**10 if camera == late else 0)
                message = types[image_type](header(exposed_ns), "jpeg", jpeg(20 * index + 5 * number))
                writer.write(images[camera], exposed_ns + number, STORE.serialize_cdr(message, image_type))
    return path


def jpeg(shade: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(np.full((24, 32, 3), shade, np.uint8)).save(buffer, "JPEG")
    return np.frombuffer(buffer.getvalue(), np.uint8)


def score(tmp_path, *arguments) -> dict:
    assert main(["score", *map(str, arguments), "--json", str(tmp_path / "figures.json")]) == 0
    return json.loads((tmp_path / "figures.json").read_text())


def test_pictures_of_a_dataset_beside_its_figures(tmp_path, vla_dir):
    root = write_dataset(tmp_path / "data", scenes=2, keyframes=4)
    plain = score(tmp_path, root, "--vla", vla_dir)
    figures = score(tmp_path, root, "--vla", vla_dir, "--pictures", tmp_path / "maps", "--picture-count", 3)
    pictures = figures.pop("pictures")
    assert figures == plain and figures["keyframes"] == 8
    assert [Path(name).name for name in pictures] == [
        "000000_scene-0_s0k0.png",
        "000002_scene-0_s0k2.png",
        "000005_scene-1_s1k1.png",
    ]
    assert all(Image.open(name).size == (1480, 48 + 2 * 250 + 56) for name in pictures)


def test_data_without_masks_has_pictures_and_no_ranking(tmp_path, vla_dir):
    root = write_dataset(tmp_path / "data", scenes=1, keyframes=2, masks=False)
    figures = score(tmp_path, root, "--vla", vla_dir, "--pictures", tmp_path / "maps")
    assert figures["auroc"] is None and figures["recall"] == {} and figures["foreground_share"] is None
    assert 0 <= figures["positive_share"] <= 1 and len(figures["pictures"]) == figures["keyframes"] == 2


def test_a_plain_folder_of_six_cameras_has_pictures(tmp_path, vla_dir):
    for number, camera in enumerate(CAMERAS):
        (tmp_path / "data" / "images" / camera).mkdir(parents=True)
        Image.new("RGB", (64, 32), (40 * number, 90, 90)).save(tmp_path / "data" / "images" / camera / "drive.png")
    figures = score(tmp_path, tmp_path / "data", "--vla", vla_dir, "--pictures", tmp_path / "maps")
    assert len(figures["pictures"]) == 1 and figures["pictures"][0].endswith("_drive.png")


def test_pictures_of_a_bag_show_its_sets(tmp_path, vla_dir):
    bag = write_bag(tmp_path / "drive")
    figures = score(tmp_path, bag, "--vla", vla_dir, "--pictures", tmp_path / "maps", "--limit", 2)
    assert figures["keyframes"] == 2 and figures["auroc"] is None
    assert [Path(name).name for name in figures["pictures"]] == [
        f"000000_drive_{START_NS}.png",
        f"000001_drive_{START_NS + 500_000_000}.png",
    ]


def test_sets_of_a_bag_are_read_by_position_and_camera(tmp_path):
    bag = BagSets.open(write_bag(tmp_path / "drive"), None, CAMERAS[::-1])
    assert len(bag) == 3 and is_bag(tmp_path / "drive") and not is_bag(tmp_path)
    read = list(bag.read([0, 2]))
    assert [name for name, _ in read] == [f"drive {START_NS}", f"drive {START_NS + 10**9}"]
    for (_, images), index in zip(read, (0, 2), strict=True):
        shades = [int(image.mean()) for image in images]
        np.testing.assert_allclose(shades, [20 * index + 5 * number for number in range(5, -1, -1)], atol=2)


def test_scores_are_those_of_the_pruner_for_each_camera(tmp_path, vla_dir):
    vla = load_vla(vla_dir)
    pruner = load_pruner(vla_dir / "reconpruner.safetensors", vla)
    sets = BagSets.open(write_bag(tmp_path / "drive", sets=18), None, CAMERAS)  # more than a chunk
    scores = score_sets(sets, range(18), vla, pruner)
    assert scores.shape == (18, vla.tokens) and np.isfinite(scores).all()
    np.testing.assert_allclose(scores[[3, 17]], score_sets(sets, [3, 17], vla, pruner), atol=1e-5)
    assert not np.allclose(scores[3], scores[17])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{bag}"], "no masks folder"),
        (["{bag}", "--pictures", "{out}", "--split", "val"], "--split: "),
        (["{bag}", "--pictures", "{out}", "--masks", "x"], "--masks: "),
        (["{bag}", "--pictures", "{out}", "--topics", str(TOPICS)], "is not in the bag"),
        (["{data}", "--topics", str(TOPICS)], "--topics: "),
        (["{data}", "--pictures", "{out}", "--picture-count", "0"], "--picture-count 0: must be at least 1"),
        (["{data}", "--limit", "0"], "--limit 0: must be at least 1"),
        (["{broken}", "--pictures", "{out}"], "no set with an image of each of CAM_FRONT"),
        (["{nothing}", "--pictures", "{out}"], "no such folder"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, vla_dir, capsys, arguments, message):
    places = {
        "bag": write_bag(tmp_path / "bag", sets=1),
        "broken": write_bag(tmp_path / "broken", sets=2, late="CAM_BACK"),
        "data": write_dataset(tmp_path / "data", scenes=1, keyframes=1),
        "out": tmp_path / "maps",
        "nothing": tmp_path / "nothing",
    }
    code = 2 if "0" in arguments else 1
    assert main(["score", *(argument.format(**places) for argument in arguments), "--vla", str(vla_dir)]) == code
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "maps").exists()


@pytest.mark.parametrize("name", ["../../etc/x", "a/b\\c\0d", "", "ü" * 300, "scene-1 token_2", "con:.png"])
def test_a_sets_name_cannot_leave_the_folder(tmp_path, name):
    class OneSet:
        cameras = ("camera",)

        def __len__(self):
            return 1

        def read(self, positions):
            yield name, [np.zeros((8, 8, 3), np.uint8)]

    files = write_score_maps(tmp_path / "maps", OneSet(), [0], np.zeros((1, 1, 2, 2)))
    assert [path.name for path in (tmp_path / "maps").iterdir()] == [files[0].name]
    assert os.sep not in file_name(name) and len(file_name(name)) <= 80


@pytest.mark.skipif(not REAL.is_dir(), reason="the real keyframes (shared/data beside the checkout) are not here")
def test_real_keyframes_have_pictures(tmp_path, vla_dir):
    figures = score(tmp_path, REAL, "--topics", TOPICS, "--vla", vla_dir, "--pictures", tmp_path / "maps", "--limit", 2)
    assert figures["keyframes"] == 2
    for name in figures["pictures"]:
        assert Image.open(name).size == (1480, 48 + 2 * 280 + 56)  # 16:9
