"""The objects of a scene's last 3 s, which no later keyframe annotates."""

from __future__ import annotations

import numpy as np
import pytest
import sim_fakes
from sim_tables import chain, ego_pose, in_frame, read

from fastdrive_sim.dataset import DatasetSpec, write_dataset
from fastdrive_sim.nuscenes_schema import VERSION


def test_boxes_of_the_last_seconds_are_those_that_later_keyframes_would_annotate(tmp_path):
    """A long scene of the same world annotates what the keyframes of a short one must say."""
    nuscenes = pytest.importorskip("nuscenes", reason="nuscenes-devkit is not installed")
    for size in (4, 12):
        spec = DatasetSpec(keyframes=size, seed=5, split="train", width=32, height=16, scene_keyframes=size)
        write_dataset(tmp_path / str(size), spec, 0, sim_fakes.fake_sources, progress=False)
    long = nuscenes.NuScenes(version=VERSION, dataroot=str(tmp_path / "12"), verbose=False)
    samples, compared = chain(long, long.scene[0]), 0
    for index, entry in enumerate(read(tmp_path / "4", "extras.json").values()):
        assert len(entry["future_boxes"]) == 6
        steps = zip(samples[index + 1 :], entry["future_boxes"], entry["future_vehicles"], strict=False)
        for later, boxes, flags in steps:
            rows = [long.get("sample_annotation", token) for token in later["anns"]]
            now, then = ego_pose(long, samples[index]), ego_pose(long, later)
            places = [(*in_frame(now, *row["translation"][:2]), row["size"][1], row["size"][0]) for row in rows]
            found = [(box[0], box[1], box[3], box[4]) for box in boxes]
            cars = [row for row in rows if row["category_name"].startswith("vehicle.")]
            assert len(flags) == len(boxes) and sum(flags) == len(cars)
            assert np.allclose(sorted(found), sorted(places), atol=2e-3)
            assert then[0] > now[0]
            compared += len(boxes)
    assert compared


def test_only_keyframes_whose_future_is_not_annotated_have_boxes(tmp_path):
    spec = DatasetSpec(keyframes=8, seed=5, split="train", width=32, height=16, scene_keyframes=8)
    write_dataset(tmp_path / "d", spec, 0, sim_fakes.fake_sources, progress=False)
    entries = read(tmp_path / "d", "extras.json").values()
    assert ["future_boxes" in entry for entry in entries] == [False, False] + [True] * 6
