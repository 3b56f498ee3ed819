"""The real simulation and renderer through both writers. Needs OpenGL on EGL."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from fastdrive_node.errors import SimError
from fastdrive_sim.bag import BagSpec, write_bag
from fastdrive_sim.dataset import DatasetSpec, write_dataset
from fastdrive_sim.nuscenes_schema import VERSION
from fastdrive_sim.types import Label

SPEC = DatasetSpec(keyframes=6, seed=3, width=112, height=64, scene_keyframes=2)


@pytest.fixture(scope="module", autouse=True)
def egl():
    from fastdrive_sim.render import Renderer

    try:
        Renderer(16, 16).close()
    except SimError as error:
        pytest.skip(str(error))


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, egl) -> Path:
    out = tmp_path_factory.mktemp("real") / "dataset"
    write_dataset(out, SPEC, workers=1, progress=False)
    return out


def test_two_workers_render_the_same_bytes_as_one(dataset, tmp_path):
    write_dataset(tmp_path / "dataset", SPEC, workers=2, progress=False)
    assert hashes(tmp_path / "dataset") == hashes(dataset)


def test_the_ego_drives_on_the_drivable_area(dataset):
    nuscenes = pytest.importorskip("nuscenes", reason="nuscenes-devkit is not installed")
    devkit = nuscenes.NuScenes(version=VERSION, dataroot=str(dataset), verbose=False)
    for sample in devkit.sample:
        scene = devkit.get("scene", sample["scene_token"])
        location = devkit.get("map", devkit.get("log", scene["log_token"])["map_token"])
        pose_token = devkit.get("sample_data", sample["data"]["CAM_FRONT"])["ego_pose_token"]
        x, y, _ = devkit.get("ego_pose", pose_token)["translation"]
        assert location["mask"].is_on_mask([x], [y])[0]


def test_boxes_that_are_well_visible_cover_vehicle_or_pedestrian_pixels(dataset):
    nuscenes = pytest.importorskip("nuscenes", reason="nuscenes-devkit is not installed")
    from nuscenes.utils.geometry_utils import BoxVisibility, view_points

    devkit = nuscenes.NuScenes(version=VERSION, dataroot=str(dataset), verbose=False)
    checked = 0
    for sample in devkit.sample:
        for camera, token in sample["data"].items():
            mask = cv2.imread(str(dataset / "masks" / camera / f"{sample['token']}.png"), cv2.IMREAD_UNCHANGED)
            _, boxes, intrinsic = devkit.get_sample_data(token, box_vis_level=BoxVisibility.ALL)
            for box in boxes:
                if devkit.get("sample_annotation", box.token)["visibility_token"] != "4":
                    continue
                label = Label.PEDESTRIAN if box.name.startswith("human") else Label.VEHICLE
                pixels = view_points(box.corners(), intrinsic, normalize=True)[:2]
                (left, top), (right, bottom) = np.floor(pixels.min(1)).astype(int), np.ceil(pixels.max(1)).astype(int)
                assert (mask[top:bottom, left:right] == label).mean() > 0.1
                checked += 1
    assert checked > 3


def test_every_keyframe_has_a_whole_future_and_history(dataset):
    for extras in json.loads((dataset / "extras.json").read_text()).values():
        assert np.isfinite(extras["future_xy"]).all() and np.shape(extras["future_xy"]) == (6, 2)
        assert np.isfinite(extras["history"]).all() and np.shape(extras["history"]) == (6, 6)
        assert extras["command"] in ("left", "straight", "right")


def test_a_bag_of_the_real_world_holds_every_set(tmp_path):
    spec = BagSpec(seconds=2, hz=2, seed=1, transport="compressed", width=112, height=64)
    assert write_bag(tmp_path / "drive", spec, progress=False)["sets"] == 4
