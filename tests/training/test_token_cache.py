"""Tokens on disk: the same as the tower's, built once, resumed where they were cut off, never stale."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from tiny_nuscenes import write_dataset

from fastdrive_node.planning.vla import load_vla
from fastdrive_node.types import CAMERAS, InputError
from fastdrive_node.vision import TorchVision
from fastdrive_training import token_cache
from fastdrive_training.nuscenes_data import KeyframeDataset
from fastdrive_training.recon_data import ReconBatches
from fastdrive_training.tiny_vla import build_tiny_vla
from fastdrive_training.token_cache import TokenCache, build_token_cache, camera_order


@pytest.fixture(scope="module")
def vla(tmp_path_factory):
    return load_vla(build_tiny_vla(tmp_path_factory.mktemp("vla"), seed=0))


@pytest.fixture
def dataset(tmp_path) -> KeyframeDataset:
    return KeyframeDataset(write_dataset(tmp_path / "d", scenes=1, keyframes=3))


def test_cache_holds_the_towers_tokens_and_the_coverage(tmp_path, vla, dataset):
    cache = build_token_cache(dataset, vla, tmp_path / "cache")
    assert cache.tokens.shape == (3, 6, 32, vla.width) and cache.tokens.dtype == np.float16
    vision = TorchVision(vla.model.model.visual, vla.spec.image_size)
    with torch.inference_mode():
        expected = vision.encode(dataset[2].load_images()).numpy()
    np.testing.assert_allclose(cache.tokens[2], expected, atol=2e-3, rtol=2e-3)
    np.testing.assert_array_equal(cache.coverage[1], dataset.coverage(dataset[1], vla.grid))


def test_cache_is_read_not_computed_the_second_time(tmp_path, vla, dataset, monkeypatch):
    first = build_token_cache(dataset, vla, tmp_path / "cache")
    monkeypatch.setattr(token_cache, "encode_keyframes", None)
    again = build_token_cache(dataset, vla, tmp_path / "cache")
    np.testing.assert_array_equal(first.tokens, again.tokens)


def test_interrupted_build_goes_on_where_it_stopped(tmp_path, vla, dataset, monkeypatch):
    monkeypatch.setattr(token_cache, "CHUNK", 1)
    whole = np.array(build_token_cache(dataset, vla, tmp_path / "whole").tokens)
    image = dataset[2].images[5]
    content = image.read_bytes()
    image.unlink()
    with pytest.raises(InputError, match="is missing"):
        build_token_cache(dataset, vla, tmp_path / "cut")
    image.write_bytes(content)
    encoded = []
    encode = token_cache.encode_keyframes
    monkeypatch.setattr(token_cache, "encode_keyframes", lambda *a: encoded.append(1) or encode(*a))
    np.testing.assert_array_equal(build_token_cache(dataset, vla, tmp_path / "cut").tokens, whole)
    assert len(encoded) == 1


def test_truncated_cache_file_is_built_again(tmp_path, vla, dataset):
    first = build_token_cache(dataset, vla, tmp_path / "cache")
    expected, path = np.array(first.tokens), first.folder / "tokens.f16"
    path.write_bytes(path.read_bytes()[:100])
    np.testing.assert_array_equal(build_token_cache(dataset, vla, tmp_path / "cache").tokens, expected)


def test_another_encoder_or_dataset_has_another_key(tmp_path, vla, dataset):
    other = load_vla(build_tiny_vla(tmp_path / "other", seed=1))
    root = write_dataset(tmp_path / "e", scenes=1, keyframes=3)
    keys = {token_cache.cache_key(*pair) for pair in ((dataset, vla), (dataset, other), (KeyframeDataset(root), vla))}
    assert len(keys) == 3


def test_cameras_are_found_by_name(vla):
    backwards = replace(vla, spec=replace(vla.spec, cameras=CAMERAS[::-1]))
    assert camera_order(backwards) == [5, 4, 3, 2, 1, 0]
    unknown = replace(vla, spec=replace(vla.spec, cameras=("CAM_ROOF",)))
    with pytest.raises(InputError, match=r"vla\.json: camera CAM_ROOF is none of nuScenes'"):
        camera_order(unknown)


def _batches(dataset, size=(112, 224), batch=4, seed=0) -> ReconBatches:
    count = len(dataset)
    numbers = np.arange(count * 6, dtype=np.float16).reshape(count, 6, 1, 1)
    cache = TokenCache(dataset.root, np.broadcast_to(numbers, (count, 6, 32, 2)), None, (4, 8))
    return ReconBatches(dataset, cache, list(range(6)), size, batch, seed)


def test_an_epoch_has_every_image_once_in_an_order_of_the_seed(dataset):
    batches = _batches(dataset, batch=6)
    names = [name for batch in batches.steps(0, 3) for name in batch.names]
    assert len(set(names)) == 18
    assert "s0k1/CAM_BACK" in names
    second = [name for batch in batches.steps(3, 6) for name in batch.names]
    assert sorted(second) == sorted(names) and second != names
    assert batches.at(1).names == tuple(names[6:12])
    assert _batches(dataset, batch=6, seed=1).at(0).names != tuple(names[:6])


def test_tokens_image_and_mask_of_a_batch_belong_together(dataset):
    for batch in _batches(dataset, size=(56, 112)).steps(0, 2):
        assert batch.pixels.shape == (4, 3, 56, 112) and batch.foreground.shape == (4, 1, 56, 112)
        for name, tokens, pixels, mask in zip(batch.names, batch.tokens, batch.pixels, batch.foreground, strict=True):
            token, camera = name.split("/")
            index, column = dataset.tokens.index(token), CAMERAS.index(camera)
            assert float(tokens[0, 0]) == index * 6 + column
            image = cv2.imread(str(dataset[index].images[column]))
            assert abs(float(pixels[0, 10, 10]) - float(image[20, 20, 0])) < 6
            assert mask[0, :, 80:].all() and not mask[0, :, :70].any()


def test_dataset_without_masks_cannot_be_reconstructed(tmp_path):
    dataset = KeyframeDataset(write_dataset(tmp_path / "d", scenes=1, keyframes=2, masks=False))
    with pytest.raises(InputError, match="no masks folder"):
        _batches(dataset)
