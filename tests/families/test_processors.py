"""Pixels as Hugging Face's image processor of a family makes them, at the VLA's size."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from fastdrive_node.errors import ModelError
from fastdrive_node.families import MODEL_TYPES, Vla, load_vla
from fastdrive_node.families.images import CLIP, HALF, IMAGENET, Normalisation
from tests.families.checks import images_of
from tests.families.tiny_vlas import build_family_vla

DEFAULTS = {
    "qwen2_5_vl": CLIP,
    "qwen3_vl": HALF,
    "llava": CLIP,
    "llava_onevision": CLIP,
    "internvl": IMAGENET,
}


def processor_of(vla: Vla, normalisation: Normalisation) -> Any:
    """Hugging Face's image processor of a VLA, set to the VLA's image size."""
    side = vla.spec.image_size[0]
    colors: dict[str, Any] = {"image_mean": list(normalisation.mean), "image_std": list(normalisation.std)}
    square = {"height": side, "width": side}
    if vla.family.model_type.startswith("qwen"):
        any_size = {"shortest_edge": 1, "longest_edge": 10**8}
        return Qwen2VLImageProcessorPil(size=any_size, patch_size=vla.config.vision_config.patch_size, **colors)
    if vla.family.model_type == "llava":
        return LlavaImageProcessorPil(size={"shortest_edge": side}, crop_size=square, **colors)
    if vla.family.model_type == "llava_onevision":
        return LlavaOnevisionImageProcessorPil(size=square, **colors)
    return GotOcr2ImageProcessorPil(size=square, **colors)


@pytest.fixture(scope="module", params=MODEL_TYPES)
def vla(request, tmp_path_factory) -> Vla:
    return load_vla(build_family_vla(tmp_path_factory.mktemp("vla"), request.param))


def expected_pixels(processor: Any, vla: Vla) -> torch.Tensor:
    several = vla.family.model_type == "llava_onevision"
    images = images_of(vla)
    return processor(images=[images] if several else images, return_tensors="pt")["pixel_values"]


def test_pixels_equal_those_of_the_familys_image_processor(vla):
    ours = vla.torch_vision().preprocess(images_of(vla))
    expected = expected_pixels(processor_of(vla, DEFAULTS[vla.family.model_type]), vla)
    torch.testing.assert_close(ours.reshape(expected.shape), expected, atol=1e-5, rtol=0)


def test_mean_and_deviation_are_those_of_the_directory(vla, tmp_path):
    if vla.family.model_type == "qwen2_5_vl":
        pytest.skip("all its checkpoints have the same ones; a file that differs is reported")
    folder = shutil.copytree(vla.path, tmp_path / "vla")
    processor = processor_of(vla, Normalisation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    processor.save_pretrained(folder)
    other = load_vla(folder)
    expected = expected_pixels(processor, vla)
    ours = other.torch_vision().preprocess(images_of(other)).reshape(expected.shape)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    assert other.encoder_fingerprint != vla.encoder_fingerprint, "a pruner reads tokens of such pixels"


@pytest.mark.parametrize(
    "content", [{"image_mean": [0.5, 0.5]}, {"image_std": [0.5, 0.5, 0.0]}, {"image_mean": "x"}, []]
)
def test_a_wrong_processor_file_is_named(tmp_path, content):
    path = build_family_vla(tmp_path, "llava")
    (path / "preprocessor_config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"preprocessor_config\.json: image_mean, image_std: not three numbers each"):
        load_vla(path).torch_vision()


def test_what_the_processor_would_do_to_an_images_shape_is_reported(tmp_path, caplog):
    path = build_family_vla(tmp_path, "llava")
    (path / "preprocessor_config.json").write_text('{"do_center_crop": true, "rescale_factor": 0.5}')
    load_vla(path)
    assert "do_center_crop: true, but the whole image is resized" in caplog.text
    assert "rescale_factor: 0.5, but" in caplog.text
