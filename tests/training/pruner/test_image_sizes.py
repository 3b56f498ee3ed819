"""A pruner is trained, and scored, on cameras of different image sizes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fastdrive_node.cli import main
from fastdrive_node.families import load_vla
from fastdrive_node.pruning.checkpoint import load_pruner
from fastdrive_training.data.adapters import open_source
from fastdrive_training.data.token_cache import build_token_cache
from fastdrive_training.engine.logging import read_log
from fastdrive_training.pruner.data import ReconBatches
from tests.families.checks import dataset_of, train_pruner
from tests.families.tiny_vlas import CAMERAS, build_family_vla, with_sizes

SPLIT = ["--split", "train"]


@pytest.fixture(scope="module", params=("qwen2_5_vl", "qwen3_vl"))
def vla_dir(request, tmp_path_factory):
    path = build_family_vla(tmp_path_factory.mktemp("vla"), request.param)
    side = load_vla(path, parts=frozenset()).pixels_per_token
    return with_sizes(path, {"CAM_FRONT": (7 * side, 4 * side)})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return dataset_of(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def runs(vla_dir, dataset, tmp_path_factory):
    """Folders and figures of runs with cached and with live tokens."""
    found = {}
    for features in ("cached", "live"):
        folder = tmp_path_factory.mktemp(features)
        found[features] = folder, train_pruner(vla_dir, dataset, folder, steps=3, features=features)
    return found


def test_cached_and_live_tokens_give_the_same_losses(vla_dir, runs):
    cached, live = ([row["total"] for row in read_log(runs[name][0] / "run")] for name in ("cached", "live"))
    assert len(cached) == 4 and np.isfinite(cached).all()
    np.testing.assert_allclose(cached, live, rtol=0.02)
    vla = load_vla(vla_dir)
    figures = runs["cached"][1]
    assert figures["encoder"] == vla.encoder_fingerprint
    load_pruner(figures["pruner"], vla)


def test_the_cache_holds_the_tokens_that_each_camera_has_alone(vla_dir, dataset, tmp_path):
    vla, source = load_vla(vla_dir), open_source(dataset, "train", cameras=CAMERAS[::-1])
    cache = build_token_cache(source, vla, tmp_path)
    assert cache.shape == (len(source), 1, vla.set_tokens, vla.width)
    start = 0
    for camera in source.cameras:
        vision = vla.of_size(vla.spec.size_by_camera[camera]).torch_vision()
        with torch.inference_mode():
            alone = vision.encode_patches(vision.preprocess([source[1].load_image(camera)]))[0].numpy()
        np.testing.assert_allclose(cache[1, 0, start : start + len(alone)], alone, atol=5e-3, rtol=5e-3)
        start += len(alone)


def test_a_step_has_images_of_one_size_and_an_epoch_all_of_them(vla_dir, dataset):
    vla, source = load_vla(vla_dir), open_source(dataset, "train", cameras=CAMERAS)
    batches = ReconBatches(source, None, vla.spec.sizes, vla.grids, batch=2, seed=0)
    steps = len(source) * len(CAMERAS) // 2
    epochs = []
    for epoch in range(2):
        names = []
        for step in range(epoch * steps, (epoch + 1) * steps):
            (batch,) = batches[step]
            wide = {name.endswith("/CAM_FRONT") for name in batches.names(step)}
            assert len(wide) == 1 and batch.grid == vla.grids[0 if wide == {True} else 1]
            assert batch.pixels.shape[2:] == vla.spec.sizes[0 if wide == {True} else 1]
            names += batches.names(step)
        assert len(set(names)) == len(names) == 2 * steps
        epochs.append(names)
    assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1])


def test_score_ranks_the_tokens_of_all_cameras(vla_dir, dataset, runs, tmp_path):
    pruner = runs["cached"][1]["pruner"]
    files = ["--vla", str(vla_dir), "--pruner", str(pruner), "--device", "cpu"]
    out = ["--pictures", str(tmp_path / "maps"), "--json", str(tmp_path / "figures.json")]
    assert main(["score", str(dataset), *SPLIT, *files, *out]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert 0 <= figures["auroc"] <= 1 and len(figures["pictures"]) == figures["keyframes"] > 0


@pytest.mark.parametrize("command", [["score", "--temporal"], ["score", "--calibrated"], ["calibrate"]])
def test_what_needs_one_size_says_so(vla_dir, dataset, runs, capsys, command):
    files = ["--vla", str(vla_dir), "--pruner", str(runs["cached"][1]["pruner"]), "--device", "cpu"]
    assert main([command[0], str(dataset), *SPLIT, *command[1:], *files]) == 1
    assert "image_sizes: " in capsys.readouterr().err
