"""Tokens on disk: the same as the tower's, built once, resumed where they were cut off, never stale."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from tests.training.tiny_nuscenes import write_dataset

from fastdrive_node.families.loading import load_vla
from fastdrive_node.errors import InputError
from fastdrive_node.types import CAMERAS
from fastdrive_node.families.qwen2_5_vl.tower import TorchVision
from fastdrive_training.data import token_cache
from fastdrive_training.data.adapters import ImageSource, open_source
from fastdrive_node.errors import TrainingError
from fastdrive_training.pruner.data import ReconBatches
from fastdrive_training.vla.tiny_model import build_tiny_vla
from fastdrive_training.data.token_cache import build_token_cache, camera_order, pixel_encoder


@pytest.fixture(scope="module")
def vla(tmp_path_factory):
    return load_vla(build_tiny_vla(tmp_path_factory.mktemp("vla"), seed=0))


@pytest.fixture
def source(tmp_path) -> ImageSource:
    return open_source(write_dataset(tmp_path / "d", scenes=1, keyframes=3), "train")


def test_cache_holds_the_towers_tokens(tmp_path, vla, source):
    cache = build_token_cache(source, vla, tmp_path / "cache")
    assert cache.tokens.shape == (3, 6, 32, vla.width) and cache.tokens.dtype == np.float16
    vision = TorchVision(vla.model.model.visual, vla.spec.image_size)
    images = [source[2].load_image(camera) for camera in CAMERAS]
    with torch.inference_mode():
        expected = vision.encode(images).numpy()
    np.testing.assert_allclose(cache.tokens[2], expected, atol=2e-3, rtol=2e-3)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    np.testing.assert_allclose(pixel_encoder(vla)(pixels).numpy(), expected, atol=1e-6)


def test_cache_is_read_not_computed_the_second_time(tmp_path, vla, source, monkeypatch):
    first = build_token_cache(source, vla, tmp_path / "cache")
    monkeypatch.setattr(token_cache, "encode_keyframes", None)
    again = build_token_cache(source, vla, tmp_path / "cache")
    np.testing.assert_array_equal(first.tokens, again.tokens)


def test_interrupted_build_goes_on_where_it_stopped(tmp_path, vla, source, monkeypatch):
    monkeypatch.setattr(token_cache, "CHUNK", 1)
    whole = np.array(build_token_cache(source, vla, tmp_path / "whole").tokens)
    image = source.dataset[2].images[5]
    content = image.read_bytes()
    image.unlink()
    with pytest.raises(InputError, match="is missing"):
        build_token_cache(source, vla, tmp_path / "cut")
    image.write_bytes(content)
    encoded = []
    encode = token_cache.encode_keyframes
    monkeypatch.setattr(token_cache, "encode_keyframes", lambda *a: encoded.append(1) or encode(*a))
    np.testing.assert_array_equal(build_token_cache(source, vla, tmp_path / "cut").tokens, whole)
    assert len(encoded) == 1


def test_truncated_cache_file_is_built_again(tmp_path, vla, source):
    first = build_token_cache(source, vla, tmp_path / "cache")
    expected, path = np.array(first.tokens), first.folder / "tokens.f16"
    path.write_bytes(path.read_bytes()[:100])
    np.testing.assert_array_equal(build_token_cache(source, vla, tmp_path / "cache").tokens, expected)


def test_another_encoder_or_dataset_has_another_key(tmp_path, vla, source):
    other = load_vla(build_tiny_vla(tmp_path / "other", seed=1))
    half = load_vla(vla.path, dtype=torch.bfloat16)
    another = open_source(write_dataset(tmp_path / "e", scenes=1, keyframes=3), "train")
    front = open_source(source.root, "train", cameras=("CAM_FRONT",))
    pairs = [(source, vla), (source, other), (source, half), (another, vla), (front, vla)]
    assert len({token_cache.cache_key(*pair) for pair in pairs}) == len(pairs)


def test_cameras_are_found_by_name(vla):
    backwards = replace(vla, spec=replace(vla.spec, cameras=CAMERAS[::-1]))
    assert camera_order(backwards) == [5, 4, 3, 2, 1, 0]
    unknown = replace(vla, spec=replace(vla.spec, cameras=("CAM_ROOF",)))
    with pytest.raises(InputError, match=r"vla\.json: camera CAM_ROOF is none of nuScenes'"):
        camera_order(unknown)


def _batches(source, size=(112, 224), batch=4, seed=0, **options) -> ReconBatches:
    count = len(source)
    numbers = np.arange(count * 6, dtype=np.float16).reshape(count, 6, 1, 1)
    return ReconBatches(source, np.broadcast_to(numbers, (count, 6, 32, 2)), size, batch, seed, **options)


def test_an_epoch_has_every_image_once_in_an_order_of_the_seed(source):
    batches = _batches(source, batch=6)
    names = [name for (batch,) in batches.steps(0, 3) for name in batch.names]
    assert len(set(names)) == 18
    assert "s0k1/CAM_BACK" in names
    second = [name for (batch,) in batches.steps(3, 6) for name in batch.names]
    assert sorted(second) == sorted(names) and second != names
    assert batches.at(1).names == tuple(names[6:12]) == tuple(batches.names(1))
    assert _batches(source, batch=6, seed=1).at(0).names != tuple(names[:6])


def test_the_parts_of_a_batch_are_the_whole(source):
    whole = _batches(source, batch=6).at(1)
    split = _batches(source, batch=6, parts=3, workers=2)
    (first, last), *_ = split.steps(1, 2, (0, 2))
    assert first.places == (0, 3) and last.places == (2, 5)
    for part in (first, last, split.at(1, 1)):
        places = list(part.places)
        assert part.names == tuple(whole.names[place] for place in places)
        for name in ("tokens", "pixels", "foreground", "ignore"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[places]), name


def test_a_batch_that_cannot_be_split_is_refused(source):
    with pytest.raises(TrainingError, match=r"schedule\.batch: 6 images cannot be split into 4 equal parts"):
        _batches(source, batch=6, parts=4)
    with pytest.raises(InputError, match="18 images are too few for 20 parts"):
        _batches(source, batch=20, parts=20)
    assert _batches(source, batch=40, parts=4).batch == 16  # fewer images than asked for, in equal parts


def test_tokens_image_and_mask_of_a_batch_belong_together(source):
    names = list(source.names)
    for (batch,) in _batches(source, size=(56, 112)).steps(0, 2):
        assert batch.pixels.shape == (4, 3, 56, 112) and batch.foreground.shape == (4, 1, 56, 112)
        for name, tokens, pixels, mask in zip(batch.names, batch.tokens, batch.pixels, batch.foreground, strict=True):
            token, camera = name.split("/")
            index, column = names.index(token), CAMERAS.index(camera)
            assert float(tokens[0, 0]) == index * 6 + column
            image = cv2.imread(str(source.dataset[index].images[column]))
            assert abs(float(pixels[0, 10, 10]) - float(image[20, 20, 0])) < 6
            assert mask[0, :, 80:].all() and not mask[0, :, :70].any()
        assert not batch.ignore.any()


def test_doubtful_pixels_come_with_the_batch(tmp_path):
    root = write_dataset(tmp_path / "d", scenes=1, keyframes=1)
    table = json.loads((root / "sim.json").read_text())
    (root / "sim.json").write_text(json.dumps({**table, "ignore": [255]}))
    for camera in CAMERAS:
        mask = cv2.imread(str(root / "masks" / camera / "s0k0.png"), cv2.IMREAD_UNCHANGED)
        mask[:, :28] = 255
        cv2.imwrite(str(root / "masks" / camera / "s0k0.png"), mask)
    batch = _batches(open_source(root, "train")).at(0)
    assert batch.ignore[..., :28].all() and not batch.ignore[..., 28:].any()
    assert not batch.foreground[..., :28].any()


def test_dataset_without_masks_cannot_be_reconstructed(tmp_path):
    source = open_source(write_dataset(tmp_path / "d", scenes=1, keyframes=2, masks=False), "train")
    with pytest.raises(InputError, match="no foreground masks"):
        _batches(source)


def test_a_mask_of_another_size_names_its_file(source):
    path = source.root / "masks" / "CAM_BACK" / "s0k1.png"
    cv2.imwrite(str(path), np.zeros((56, 112), np.uint8))
    with pytest.raises(InputError, match=r"CAM_BACK/s0k1\.png is 112x56, its image 224x112"):
        list(_batches(source, batch=6).steps(0, 3))
