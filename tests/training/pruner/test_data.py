"""Batches of the reconstruction: their order, equal parts, and what belongs together in them."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch

from fastdrive_node.errors import InputError, TrainingError
from fastdrive_node.types import CAMERAS
from fastdrive_training.data.adapters import ImageSource, open_source
from fastdrive_training.pruner.data import ReconBatches
from tests.training.tiny_nuscenes import write_dataset


@pytest.fixture
def source(tmp_path) -> ImageSource:
    return open_source(write_dataset(tmp_path / "d", scenes=1, keyframes=3), "train")


def _batches(source, size=(112, 224), batch=4, seed=0, **options) -> ReconBatches:
    count = len(source)
    numbers = np.arange(count * 6, dtype=np.float16).reshape(count, 6, 1, 1)
    return ReconBatches(
        source, np.broadcast_to(numbers, (count, 6, 32, 2)), [size] * 6, [(4, 8)] * 6, batch, seed, **options
    )


def test_an_epoch_has_every_image_once_in_an_order_of_the_seed(source):
    batches = _batches(source, batch=6)
    names = [name for step in range(3) for name in batches.names(step)]
    assert len(set(names)) == 18
    assert "s0k1/CAM_BACK" in names
    second = [name for step in range(3, 6) for name in batches.names(step)]
    assert sorted(second) == sorted(names) and second != names
    assert _batches(source, batch=6, seed=1).names(0) != names[:6]


def test_the_parts_of_a_batch_are_the_whole(source):
    (whole,) = _batches(source, batch=6)[1]
    first, last = _batches(source, batch=6, parts=3, own=(0, 2))[1]
    assert first.places == (0, 3) and last.places == (2, 5)
    (middle,) = _batches(source, batch=6, parts=3, own=(1,))[1]
    for part in (first, middle, last):
        places = list(part.places)
        for name in ("tokens", "pixels", "foreground", "ignore"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[places]), name


def test_a_batch_that_cannot_be_split_is_refused(source):
    with pytest.raises(TrainingError, match=r"batch: 6 samples cannot be split into 4 equal parts"):
        _batches(source, batch=6, parts=4)
    with pytest.raises(InputError, match="18 samples are too few for 20 parts"):
        _batches(source, batch=20, parts=20)
    assert _batches(source, batch=40, parts=4).batch == 16  # fewer images than asked for, in equal parts


def test_tokens_image_and_mask_of_a_batch_belong_together(source):
    names = list(source.names)
    batches = _batches(source, size=(56, 112))
    for step in range(2):
        (batch,) = batches[step]
        assert batch.pixels.shape == (4, 3, 56, 112) and batch.foreground.shape == (4, 1, 56, 112)
        for name, tokens, pixels, mask in zip(
            batches.names(step), batch.tokens, batch.pixels, batch.foreground, strict=True
        ):
            token, camera = name.split("/")
            index, place = names.index(token), CAMERAS.index(camera)
            assert float(tokens[0, 0]) == index * 6 + place
            image = source[index].load_image(camera)
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
    (batch,) = _batches(open_source(root, "train"))[0]
    assert batch.ignore[..., :28].all() and not batch.ignore[..., 28:].any()
    assert not batch.foreground[..., :28].any()


def test_dataset_without_masks_cannot_be_reconstructed(tmp_path):
    source = open_source(write_dataset(tmp_path / "d", scenes=1, keyframes=2, masks=False), "train")
    with pytest.raises(InputError, match="no foreground masks"):
        _batches(source)


def test_a_mask_of_another_size_names_its_file(source):
    path = source.root / "masks" / "CAM_BACK" / "s0k1.png"
    cv2.imwrite(str(path), np.zeros((56, 112), np.uint8))
    batches = _batches(source, batch=6)
    errors = [str(batch) for batch in map(batches.__getitem__, range(3)) if isinstance(batch, InputError)]
    assert len(errors) == 1 and "CAM_BACK/s0k1.png is 112x56, its image 224x112" in errors[0]
