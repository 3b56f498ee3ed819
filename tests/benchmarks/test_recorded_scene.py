"""A recorded scene with real images and a real map mask, as a dataset through ``fastdrive evaluate``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.studies import recorded_scene
from fastdrive_node.cli import main
from fastdrive_node.errors import InputError
from fastdrive_training.data.nuscenes.keyframes import KeyframeDataset
from fastdrive_training.evaluation import segments
from fastdrive_training.evaluation.metrics.judge import judge_plan
from fastdrive_training.evaluation.samples import surroundings

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
BAG, TRUTH = SHARED / "nuscenes_scene0103_mcap", SHARED / "scene0103" / "scene0103_gt.json"
TOPICS = ROOT / "config" / "topics_nuscenes.yaml"

pytestmark = pytest.mark.skipif(not TRUTH.exists(), reason="scene-0103 (../shared/data) is not on this machine")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> KeyframeDataset:
    out = tmp_path_factory.mktemp("recorded") / "d"
    assert recorded_scene.write_dataset(BAG, TRUTH, TOPICS, out) == 1
    return KeyframeDataset(out)


def test_keyframes_hold_the_recorded_images_poses_and_future(dataset):
    truth = json.loads(TRUTH.read_text())
    assert len(dataset) == 4
    first = dataset[0]
    np.testing.assert_allclose(first.future(), truth["frames"][0]["future_xy_0p5s"])
    assert [keyframe.future() is None for keyframe in dataset] == [False, True, True, True]
    assert first.history.now.speed_mps == pytest.approx(truth["frames"][0]["can_vx"], abs=0.3)
    assert all(first.load_image(camera).shape == (900, 1600, 3) for camera in dataset.cameras)


def test_recorded_can_values_agree_with_the_poses(tmp_path, dataset):
    frames = [frame for frame in json.loads(TRUTH.read_text())["frames"] if frame["lidar_timestamp_us"]]
    root = tmp_path / "d"
    shutil.copytree(dataset.root, root)
    messages = [
        {
            "utime": frame["lidar_timestamp_us"],
            "accel": frame["can_accel"],
            "vel": [frame["can_vx"], 0.0, 0.0],
            "rotation_rate": frame["can_rot_rate"],
        }
        for frame in frames
    ]
    (root / "can_bus").mkdir()
    (root / "can_bus" / f"{recorded_scene.SCENE}_pose.json").write_text(json.dumps(messages))
    measured = KeyframeDataset(root)
    for index, frame in enumerate(frames):
        now, derived = measured[index].known_history.now, dataset[index].known_history.now
        assert (now.speed_mps, now.accel_mps2) == (frame["can_vx"], frame["can_accel"][0]) and now.accel_measured
        assert now.speed_mps == pytest.approx(derived.speed_mps, abs=0.3)
        # both turn to the right, by the yaw that is to come too
        assert now.yaw_rate_radps < 0 and frame["future_yaw"][0] < 0
        assert now.yaw_rate_radps == pytest.approx(2 * frame["future_yaw"][0], abs=0.04)
        assert now.accel_y_mps2 == pytest.approx(now.speed_mps * now.yaw_rate_radps, abs=0.2)


def test_road_is_judged_on_the_recorded_mask_and_collision_is_not(dataset):
    recorded = json.loads(TRUTH.read_text())
    keyframe = dataset[0]
    around = surroundings(keyframe)
    steps = np.arange(1, 7)
    ahead = recorded["frames"][0]["can_vx"] * 0.5 * steps
    fractions = recorded["drivable"]["footprint_fraction_off_drivable_per_step_frame0"]["drift_left_1m_per_step"]
    judged = judge_plan(np.stack([ahead, steps], axis=1), around)
    assert judged.off_drivable.tolist() == [fraction > 0 for fraction in fractions]
    assert judged.collision is None
    assert not judge_plan(keyframe.future(), around).off_drivable.any()


def test_evaluation_runs_end_to_end(tmp_path, dataset, tiny_dir, monkeypatch):
    monkeypatch.setattr(segments, "measure", lambda _, rows, *__, **___: [{} for _ in rows])
    target = tmp_path / "figures.json"
    command = ["evaluate", str(dataset.root), "--vla", str(tiny_dir), "--pruners", "none,uniform", "--drop", "0.5"]
    assert main([*command, "--json", str(target)]) == 0
    figures = json.loads(target.read_text())
    assert (figures["samples"], figures["without_future"]) == (1, 3)
    straight = figures["rows"][-1]
    assert straight["off_drivable"]["3s"] == 0 and straight["collision_polygon"] is None
    assert 0 < straight["l2_avg_to_t"]["avg"] < 1


def test_truth_that_does_not_fit_is_refused(tmp_path):
    truth = json.loads(TRUTH.read_text())
    mask = TRUTH.parent / truth["drivable"]["file"]
    (tmp_path / mask.name).write_bytes(mask.read_bytes())
    cases = [
        ({**truth, "frames": truth["frames"][:2]}, "has 4 frame sets"),
        ({**truth, "drivable": {**truth["drivable"], "px_m": 0.2}}, "px_m"),
        ({**truth, "drivable": {**truth["drivable"], "file": "other.png"}}, "drivable.file"),
        ({"frames": truth["frames"]}, "drivable"),
    ]
    for content, message in cases:
        path = tmp_path / "truth.json"
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            recorded_scene.write_dataset(BAG, path, TOPICS, tmp_path / "out")
