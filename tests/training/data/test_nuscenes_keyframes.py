"""The reader, against small hand-written nuScenes tables."""

from __future__ import annotations

import json
import math

import cv2
import numpy as np
import pytest

from fastdrive_node.errors import InputError
from fastdrive_node.types import CAMERAS, Command
from fastdrive_training.data.masks import LabelTable, cell_coverage
from fastdrive_training.data.nuscenes.keyframes import KeyframeDataset
from tests.training.tiny_nuscenes import write_dataset


def test_keyframes_come_scene_by_scene_in_time_order(tmp_path):
    dataset = KeyframeDataset(write_dataset(tmp_path / "d", scenes=2, keyframes=3))
    assert dataset.names == ["s0k0", "s0k1", "s0k2", "s1k0", "s1k1", "s1k2"]
    assert dataset.scenes == ["scene-0"] * 3 + ["scene-1"] * 3
    keyframe = dataset[4]
    assert (keyframe.name, keyframe.scene) == ("s1k1", "scene-1")
    assert dataset.cameras == tuple(keyframe.image_sizes) == CAMERAS
    assert keyframe.stamp_ns == (1_600_000_000_000_000 + 10**9 + 500_000) * 1000


def test_splits_of_the_dataset_select_scenes(tmp_path):
    root = write_dataset(tmp_path / "d", scenes=3, keyframes=2)
    assert set(KeyframeDataset(root, "train").scenes) == {"scene-0", "scene-1"}
    assert set(KeyframeDataset(root, "val").scenes) == {"scene-2"}
    with pytest.raises(InputError, match=r"no split 'nope'; splits\.json has test, train, val"):
        KeyframeDataset(root, "nope")
    with pytest.raises(InputError, match="split test has no keyframes"):
        KeyframeDataset(root, "test")


def test_without_splits_file_the_splits_are_the_devkits(tmp_path):
    root = write_dataset(tmp_path / "d")
    (root / "splits.json").unlink()
    with pytest.raises(InputError, match="split mini_val has no keyframes"):  # known, but none of its scenes is here
        KeyframeDataset(root, "mini_val")


def test_future_is_in_the_ego_frame_of_the_keyframe(tmp_path):
    dataset = KeyframeDataset(write_dataset(tmp_path / "d", keyframes=8, speed=4.0))
    expected = np.stack([5.0 * np.arange(1, 7) * 0.5, np.zeros(6)], axis=1)
    keyframe = dataset[8]  # of scene 1, which starts with a yaw of 0.3 rad and 5 m/s
    np.testing.assert_allclose(keyframe.future(), expected, atol=1e-6)
    assert keyframe.command is Command.STRAIGHT


def test_scene_end_leaves_no_future_and_no_command(tmp_path):
    dataset = KeyframeDataset(write_dataset(tmp_path / "d", scenes=1, keyframes=8))
    assert [keyframe.future() is not None for keyframe in dataset] == [True, True] + [False] * 6
    assert dataset[7].command is Command.NONE


@pytest.mark.parametrize(("turn", "command"), [(0.3, Command.LEFT), (-0.3, Command.RIGHT), (0.05, Command.STRAIGHT)])
def test_command_follows_from_the_final_lateral_offset(tmp_path, turn, command):
    dataset = KeyframeDataset(write_dataset(tmp_path / "d", scenes=1, keyframes=7, turn=turn))
    assert dataset[0].command is command
    assert dataset[0].future()[-1, 1] * turn > 0  # y is left, and yaw turns left


def test_history_is_newest_first_with_speed_and_yaw_rate(tmp_path):
    dataset = KeyframeDataset(write_dataset(tmp_path / "d", scenes=1, keyframes=9, speed=6.0, turn=0.2))
    history = dataset[8].history
    assert len(history.states) == 7
    assert [state.stamp_ns for state in history.states[:2]] == [dataset[8].stamp_ns, dataset[7].stamp_ns]
    assert history.now.yaw_rate_radps == pytest.approx(0.2, abs=1e-6)
    assert history.now.speed_mps == pytest.approx(6.0, rel=0.01)
    assert history.now.yaw_rad == pytest.approx(0.2 * 4.0, abs=1e-6)
    assert len(dataset[2].history.states) == 3


def test_lidar_pose_is_the_samples_where_there_is_one(tmp_path):
    dataset = KeyframeDataset(write_dataset(tmp_path / "d", scenes=1, keyframes=8, lidar=True))
    assert dataset[1].history.now.stamp_ns == dataset[1].stamp_ns - 50_000_000
    np.testing.assert_allclose(dataset[1].future()[:, 0], 4.0 * np.arange(1, 7) * 0.5, atol=1e-6)


def test_extras_win_over_the_poses(tmp_path):
    future = [[float(step), 0.25] for step in range(1, 7)]
    state = {"speed_mps": 7.5, "accel_mps2": -9.0, "yaw_rate_radps": 0.1}
    past = [[-0.5, -3.8, 0.1, -0.05, 8.0, -9.0], [-1.0, -7.8, 0.2, -0.2, 8.0, -9.0]]
    extras = {"s0k7": {**state, "command": "left", "future_xy": future, "history": past}, "s0k0": {"future_xy": None}}
    dataset = KeyframeDataset(write_dataset(tmp_path / "d", scenes=1, keyframes=8, extras=extras))
    keyframe = dataset[7]
    assert keyframe.command is Command.LEFT
    np.testing.assert_array_equal(keyframe.future(), future)
    now, before, first = keyframe.history.states
    assert (now.speed_mps, now.yaw_rate_radps, now.stamp_ns) == (7.5, 0.1, keyframe.stamp_ns)
    assert now.accel_mps2 == pytest.approx(-1.0)  # of the speeds, half a second apart
    assert (before.x_m, before.y_m, before.stamp_ns) == (-3.8, 0.1, keyframe.stamp_ns - 500_000_000)
    assert (before.yaw_rate_radps, before.accel_mps2) == (pytest.approx(0.3), 0.0)
    assert first.yaw_rad == -0.2
    assert dataset[0].future() is None


def test_scene_start_of_the_extras_has_its_own_speed_and_no_past(tmp_path):
    extras = {"s0k0": {"speed_mps": 3.0, "yaw_rate_radps": 0.0, "history": []}}
    history = KeyframeDataset(write_dataset(tmp_path / "d", scenes=1, extras=extras))[0].history
    assert [state.speed_mps for state in history.states] == [3.0]


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ({"command": "up"}, "command"),
        ({"future_xy": [[1, 2]]}, "future_xy"),
        ({"future_xy": [[1, 2]] * 5 + [[1, math.nan]]}, "future_xy"),
        ({"history": [{"speed": 1}], "speed_mps": 1, "yaw_rate_radps": 0}, "history"),
        ({"history": [[-0.5, 1, 2, 3, 4]], "speed_mps": 1}, "history"),
        ({"history": [[-0.4, 1, 2, 3, 4]], "speed_mps": 1, "yaw_rate_radps": 0}, "history"),
        ({"history": [[-0.5, 1, 2]], "speed_mps": 1, "yaw_rate_radps": 0}, "history"),
    ],
)
def test_broken_extras_are_named(tmp_path, entry, field):
    dataset = KeyframeDataset(write_dataset(tmp_path / "d", scenes=1, extras={"s0k0": entry}))
    with pytest.raises(InputError, match=rf"extras\.json: {field} of sample s0k0"):
        dataset[0]


def test_folder_without_dataset_and_missing_table_are_named(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        KeyframeDataset(tmp_path / "none")
    with pytest.raises(InputError, match="no nuScenes-schema dataset"):
        KeyframeDataset(tmp_path)
    root = write_dataset(tmp_path / "d")
    (root / "v1.0-tiny" / "ego_pose.json").unlink()
    with pytest.raises(InputError, match=r"ego_pose\.json: table is missing"):
        KeyframeDataset(root)
    (root / "v1.0-tiny" / "ego_pose.json").write_text("[{]")
    with pytest.raises(InputError, match="cannot load the tables"):
        KeyframeDataset(root)


def test_missing_and_broken_images_are_named(tmp_path):
    keyframe = KeyframeDataset(write_dataset(tmp_path / "d", scenes=1))[0]
    image = tmp_path / "d" / "samples" / "CAM_BACK_RIGHT" / "s0k0.jpg"
    image.write_bytes(image.read_bytes()[:20])
    with pytest.raises(InputError, match=r"CAM_BACK_RIGHT/s0k0\.jpg is no readable image"):
        keyframe.load_image("CAM_BACK_RIGHT")
    image.unlink()
    with pytest.raises(InputError, match=r"CAM_BACK_RIGHT/s0k0\.jpg is missing"):
        keyframe.load_image("CAM_BACK_RIGHT")


def test_images_are_rgb(tmp_path):
    keyframe = KeyframeDataset(write_dataset(tmp_path / "d", scenes=1))[0]
    red = np.zeros((112, 224, 3), np.uint8)
    red[..., 2] = 255  # OpenCV writes BGR
    cv2.imwrite(str(tmp_path / "d" / "samples" / "CAM_FRONT" / "s0k0.jpg"), red)
    assert keyframe.load_image("CAM_FRONT")[50, 50].argmax() == 0


def test_mask_of_another_size_is_refused(tmp_path):
    dataset = KeyframeDataset(write_dataset(tmp_path / "d", scenes=1, size=(112, 224)))
    keyframe, mask = dataset[0], tmp_path / "d" / "masks" / "CAM_FRONT_RIGHT" / "s0k0.png"
    cv2.imwrite(str(mask), np.zeros((56, 224), np.uint8))
    with pytest.raises(InputError, match=r"CAM_FRONT_RIGHT/s0k0\.png is 224x56, its image 224x112"):
        keyframe.load_regions("CAM_FRONT_RIGHT", (112, 224))
    mask.unlink()
    with pytest.raises(InputError, match=r"s0k0\.png is missing"):
        keyframe.load_labels("CAM_FRONT_RIGHT")


def test_foreground_comes_from_the_label_table(tmp_path):
    dataset = KeyframeDataset(write_dataset(tmp_path / "d", scenes=1, size=(112, 224)))
    mask = dataset[0].load_regions("CAM_FRONT", (112, 224)).foreground
    assert mask[:, 150:].all() and not mask[:, :149].any()
    coverage = dataset[0].coverage(CAMERAS, (4, 8))
    assert coverage.shape == (6, 32)
    assert coverage[0].reshape(4, 8)[:, 7] == pytest.approx(1.0)


def test_label_table_without_groups_is_refused(tmp_path):
    path = tmp_path / "sim.json"
    with pytest.raises(InputError, match=r"sim\.json is missing"):
        LabelTable.load(path)
    path.write_text(json.dumps({"labels": {"road": 2}}))
    with pytest.raises(InputError, match="foreground_groups"):
        LabelTable.load(path)
    path.write_text(json.dumps({"labels": {"road": 2}, "foreground_groups": {"road": ["rode"]}}))
    with pytest.raises(InputError, match="rode"):
        LabelTable.load(path)


def test_dataset_without_masks_says_so(tmp_path):
    dataset = KeyframeDataset(write_dataset(tmp_path / "d", scenes=1, masks=False))
    assert dataset[0].load_labels is None
    with pytest.raises(InputError, match="no masks"):
        dataset[0].load_regions("CAM_FRONT", (112, 224))


def test_cell_coverage_counts_partial_pixels_by_area():
    mask = np.zeros((4, 6), bool)
    mask[:, :2] = True
    np.testing.assert_allclose(cell_coverage(mask, 2, 3), [1, 0, 0, 1, 0, 0])
    np.testing.assert_allclose(cell_coverage(mask, 1, 4), [1, 1 / 3, 0, 0], atol=1e-6)  # cells 1.5 px wide
    np.testing.assert_allclose(cell_coverage(mask[None], 1, 1), [[1 / 3]], atol=1e-6)


@pytest.mark.parametrize("cameras", [("CAM_ROOF", *CAMERAS), ("CAM_ROOF",)])
def test_any_number_of_cameras_of_any_name(tmp_path, cameras):
    root = write_dataset(tmp_path / "d", scenes=1, keyframes=8, cameras=cameras)
    dataset = KeyframeDataset(root)
    assert sorted(dataset.cameras) == sorted(cameras)
    keyframe = dataset[0]
    roof = cv2.imread(str(root / "samples" / "CAM_ROOF" / "s0k0.jpg"))
    np.testing.assert_array_equal(keyframe.load_image("CAM_ROOF")[..., ::-1], roof)
    assert keyframe.coverage(("CAM_ROOF",), (4, 8)).shape == (1, 32)
    assert keyframe.future() is not None and keyframe.history.now.speed_mps == pytest.approx(4.0)
    chosen = KeyframeDataset(root, cameras=("CAM_ROOF",))
    assert chosen.cameras == tuple(chosen[0].image_sizes) == ("CAM_ROOF",)
    with pytest.raises(InputError, match="no camera 'CAM_NOSE'; it has"):
        KeyframeDataset(root, cameras=("CAM_NOSE",))


def test_the_future_has_the_points_that_are_asked_for(tmp_path):
    extras = {"s0k0": {"future_xy": [[float(step), 0.25] for step in range(1, 7)]}}
    keyframe = KeyframeDataset(write_dataset(tmp_path / "d", scenes=1, keyframes=9, speed=4.0, extras=extras))[0]
    np.testing.assert_array_equal(keyframe.future(), extras["s0k0"]["future_xy"])
    np.testing.assert_allclose(keyframe.future(4, 0.25)[:, 0], [1.0, 2.0, 3.0, 4.0], atol=1e-6)  # of the poses
    assert keyframe.future(8, 0.5).shape == (8, 2) and keyframe.future(9, 0.5) is None
