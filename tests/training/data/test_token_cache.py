"""Tokens on disk: the same as the tower's, built once, resumed where they were cut off, never stale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdrive_node.errors import InputError
from fastdrive_node.families import load_vla
from fastdrive_node.types import CAMERAS
from fastdrive_training.data import token_cache
from fastdrive_training.data.adapters import ImageSource, open_source
from fastdrive_training.data.token_cache import FeatureStore, build_token_cache, pixel_encoder, require_cameras
from fastdrive_training.vla.tiny_model import build_tiny_vla
from tests.families import tiny_vlas as family_vlas
from tests.generation import SHALLOW
from tests.training.tiny_nuscenes import write_dataset


@pytest.fixture(scope="module")
def vla(tmp_path_factory):
    return load_vla(build_tiny_vla(tmp_path_factory.mktemp("vla"), seed=0, size=SHALLOW))


@pytest.fixture
def source(tmp_path) -> ImageSource:
    return open_source(write_dataset(tmp_path / "d", scenes=1, keyframes=3), "train")


def test_cache_holds_the_towers_tokens(tmp_path, vla, source):
    cache = build_token_cache(source, vla, tmp_path / "cache")
    assert cache.shape == (3, 6, 32, vla.width) and cache.dtype == np.float16
    vision = vla.torch_vision()
    images = [source[2].load_image(camera) for camera in CAMERAS]
    with torch.inference_mode():
        expected = vision.encode_patches(vision.preprocess(images)).numpy()
    np.testing.assert_allclose(cache[2], expected, atol=2e-3, rtol=2e-3)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    np.testing.assert_allclose(pixel_encoder(vla)(pixels).numpy(), expected, atol=1e-6)


def test_cache_is_read_not_computed_the_second_time(tmp_path, vla, source, monkeypatch):
    first = build_token_cache(source, vla, tmp_path / "cache")
    monkeypatch.setattr(token_cache, "encode_keyframes", None)
    again = build_token_cache(source, vla, tmp_path / "cache")
    np.testing.assert_array_equal(first, again)


def test_interrupted_build_goes_on_where_it_stopped(tmp_path, vla, source, monkeypatch):
    monkeypatch.setattr(token_cache, "CHUNK", 1)
    whole = np.array(build_token_cache(source, vla, tmp_path / "whole"))
    image = source.root / "samples" / "CAM_FRONT_LEFT" / "s0k2.jpg"
    content = image.read_bytes()
    image.unlink()
    with pytest.raises(InputError, match="is missing"):
        build_token_cache(source, vla, tmp_path / "cut")
    image.write_bytes(content)
    encoded = []
    encode = token_cache.encode_keyframes
    monkeypatch.setattr(token_cache, "encode_keyframes", lambda *a: encoded.append(1) or encode(*a))
    np.testing.assert_array_equal(build_token_cache(source, vla, tmp_path / "cut"), whole)
    assert len(encoded) == 1


def test_truncated_cache_file_is_built_again(tmp_path, vla, source):
    first = build_token_cache(source, vla, tmp_path / "cache")
    expected, path = np.array(first), Path(str(first.filename))
    path.write_bytes(path.read_bytes()[:100])
    np.testing.assert_array_equal(build_token_cache(source, vla, tmp_path / "cache"), expected)


def test_another_encoder_or_dataset_has_another_key(tmp_path, vla, source):
    other = load_vla(build_tiny_vla(tmp_path / "other", seed=1, size=SHALLOW))
    half = load_vla(vla.path, dtype=torch.bfloat16)
    another = open_source(write_dataset(tmp_path / "e", scenes=1, keyframes=3), "train")
    front = open_source(source.root, "train", cameras=("CAM_FRONT",))
    pairs = [(source, vla), (source, other), (source, half), (another, vla), (front, vla)]
    keys = {token_cache.cache_key(images, encoder, images.cameras) for images, encoder in pairs}
    assert len(keys) == len(pairs)


def test_a_dataset_without_a_camera_of_the_vla_is_refused(vla, source):
    require_cameras(source, replace(vla, spec=replace(vla.spec, cameras=CAMERAS[::-1])))
    unknown = replace(vla, spec=replace(vla.spec, cameras=("CAM_ROOF",)))
    with pytest.raises(InputError, match=r"vla\.json: camera CAM_ROOF is none of the dataset's"):
        require_cameras(source, unknown)


def test_features_of_later_layers_are_stored_with_the_tokens(tmp_path):
    source = open_source(write_dataset(tmp_path / "d", scenes=1, keyframes=1, cameras=family_vlas.CAMERAS), "train")
    vla = load_vla(family_vlas.build_family_vla(tmp_path / "vla", "qwen3_vl"))
    stores = [FeatureStore(source, vla, tmp_path / "features", attention=False) for _ in range(2)]
    computed, read = (store.load([0])[0].visual(vla.grid) for store in stores)
    assert len(list((tmp_path / "features").rglob("*.safetensors"))) == 1
    vision = vla.torch_vision()
    with torch.inference_mode():
        expected = vision.encode(vision.preprocess([source[0].load_image(name) for name in vla.spec.cameras]))
    for visual in (computed, read):
        assert len(visual.layer_features) == 2
        for ours, theirs in zip(visual.layer_features, expected.layer_features, strict=True):
            assert torch.equal(ours, theirs)
