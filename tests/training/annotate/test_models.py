"""Grounding DINO and SAM as one function, on tiny random weights of the real classes."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdrive_node.errors import ModelError
from fastdrive_training.annotate.models import Detection, GroundedSam
from fastdrive_training.annotate.settings import Group
from tests.training.annotate.annotate_fixtures import GROUPS, settings, write_models

LOW = {"keep": 0.05, "nms_iou": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def models(folder):
    return GroundedSam(settings(folder, detection=LOW), "cpu")


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)


@pytest.fixture()
def copied(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "models")
    return tmp_path / "models"


def test_instances_have_a_mask_of_the_images_size_and_confidences(models, image):
    found = models.find(image)
    assert len(found) > 3
    prompts = {group.name: group.prompts for group in GROUPS}
    for one in found:
        assert one.prompt in prompts[one.group]
        assert one.mask.shape == (90, 160) and one.mask.dtype == bool
        x0, y0, x1, y1 = one.box
        assert 0 <= x0 < x1 <= 160 and 0 <= y0 < y1 <= 90
        assert 0.05 <= one.score <= 1 and 0 <= one.quality <= 1
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


def test_detections_agree_with_the_processors_own_decoding(models, image):
    caption = models.captions[0]
    assert caption.text == "road. traffic sign. traffic light. car. person."
    inputs = models._processor(images=image, text=caption.text, return_tensors="pt")
    with torch.no_grad():
        output = models.detector(**inputs)
    tokens = output.logits[0].sigmoid()
    ids = inputs["input_ids"][0].tolist()
    words = {k: models._processor.tokenizer.convert_ids_to_tokens(number) for k, number in enumerate(ids)}
    decoded = models._processor.post_process_grounded_object_detection(output, threshold=0.0, target_sizes=[(90, 160)])[
        0
    ]
    boxes = np.round(decoded["boxes"].numpy().clip(0), 1)
    for one in models.detect(image):
        query = int(np.abs(boxes.clip(0, [160, 90, 160, 90]) - one.box).max(1).argmin())
        inside = [k for k, word in words.items() if word not in ("[CLS]", "[SEP]", ".")]
        best = max(inside, key=lambda k, query=query: float(tokens[query, k]))
        assert one.score == pytest.approx(float(tokens[query, best]), abs=1e-4)
        assert words[best] in one.prompt.split()


def test_masks_agree_with_segmenter_and_processor_in_one_call(models, image):
    boxes = [(10.0, 10.0, 50.0, 60.0), (0.0, 0.0, 160.0, 90.0), (100.0, 20.0, 150.0, 80.0)]
    masks, qualities = models.segment(image, boxes)
    inputs = models._cutter(images=image, input_boxes=[[list(box) for box in boxes]], return_tensors="pt")
    with torch.no_grad():
        output = models.segmenter(
            pixel_values=inputs["pixel_values"], input_boxes=inputs["input_boxes"].float(), multimask_output=False
        )
    whole = models._cutter.post_process_masks(
        [output.pred_masks[0]], inputs["original_sizes"], inputs["reshaped_input_sizes"]
    )[0]
    np.testing.assert_array_equal(np.stack(masks), whole[:, 0].numpy())
    assert qualities == pytest.approx(output.iou_scores[0, :, 0].clamp(0, 1).tolist(), abs=1e-4)


def test_many_boxes_are_segmented_in_parts_with_the_same_result(models, image, monkeypatch):
    boxes = [(10.0 + k, 10.0, 60.0 + k, 60.0) for k in range(5)]
    together = models.segment(image, boxes)
    monkeypatch.setattr("fastdrive_training.annotate.models.BOXES_AT_ONCE", 2)
    parts = models.segment(image, boxes)
    np.testing.assert_array_equal(np.stack(parts[0]), np.stack(together[0]))
    assert parts[1] == pytest.approx(together[1], abs=1e-4)


def test_same_image_gives_the_same_instances(models, image):
    first, again = models.find(image), models.find(image)
    assert [(one.box, one.score, one.prompt) for one in first] == [(one.box, one.score, one.prompt) for one in again]
    assert all(np.array_equal(one.mask, other.mask) for one, other in zip(first, again, strict=True))


def test_thresholds_bound_the_detections(folder, image, models):
    scores = [one.score for one in models.detect(image)]
    few = GroundedSam(settings(folder, detection={**LOW, "max_detections": 2}), "cpu")
    assert [one.score for one in few.detect(image)] == scores[:2]
    strict = GroundedSam(settings(folder, detection={**LOW, "keep": scores[1]}), "cpu")
    assert [one.score for one in strict.detect(image)] == [score for score in scores if score >= scores[1]]


def test_of_two_boxes_around_one_thing_the_better_stays(folder, image, monkeypatch):
    models = GroundedSam(settings(folder, detection={"nms_iou": 0.7}), "cpu")
    box, shifted, other = (10.0, 10.0, 60.0, 60.0), (11.0, 10.0, 61.0, 60.0), (80.0, 10.0, 120.0, 60.0)
    found = [
        Detection("vehicle", "car", shifted, 0.5),
        Detection("vehicle", "car", box, 0.8),
        Detection("vehicle", "car", other, 0.4),
        Detection("human", "person", box, 0.3),  # a rider on a motorcycle is both
    ]
    monkeypatch.setattr(models, "_detect", lambda image, caption: [found])
    assert [(one.group, one.box) for one in models.detect(image)] == [
        ("vehicle", box),
        ("vehicle", other),
        ("human", box),
    ]


def test_nothing_detected_is_no_instance(models, image, monkeypatch):
    monkeypatch.setattr(models, "_detect", lambda image, caption: [[]])
    assert models.find(image) == []


def test_groups_may_have_a_pass_each(folder, image):
    apart = GroundedSam(settings(folder, detection={**LOW, "one_caption": False}), "cpu")
    assert [caption.text for caption in apart.captions] == [
        "road.",
        "traffic sign. traffic light.",
        "car.",
        "person.",
    ]
    assert {one.group for one in apart.detect(image)} == {group.name for group in GROUPS}


def test_each_prompt_has_the_positions_of_its_own_tokens(models):
    assert models.captions[0].positions == ((1,), (3, 4), (6, 7), (9,), (11,))  # [CLS] and full stops between


def test_identity_follows_the_weights(folder, models, tmp_path):
    assert GroundedSam(settings(folder), "cpu").identity == models.identity
    other = GroundedSam(settings(write_models(tmp_path / "other", seed=1)), "cpu").identity
    for role in ("detector", "segmenter"):
        assert other[role]["weights_sha256"] != models.identity[role]["weights_sha256"]
    assert models.identity["detector"]["class"] == "GroundingDinoForObjectDetection"


def test_words_that_the_detector_cannot_read_are_refused(folder):
    with pytest.raises(ModelError, match="does not know 'zebra crossing'"):
        GroundedSam(settings(folder, groups=(Group("road", ("zebra crossing",)),)), "cpu")
    many = tuple(Group(f"group{k}", (" ".join(["cone"] * (k + 1)),)) for k in range(8))
    with pytest.raises(ModelError, match="the detector reads 32"):
        GroundedSam(settings(folder, groups=many), "cpu")


def test_folder_without_a_model_is_named_with_how_to_fix_it(tmp_path):
    (tmp_path / "dino").mkdir()
    with pytest.raises(ModelError, match=r"dino: cannot be loaded .* needs config, safetensors and processor"):
        GroundedSam(settings(tmp_path), "cpu")


def test_model_of_another_kind_is_refused(copied):
    shutil.rmtree(copied / "sam")
    shutil.copytree(copied / "dino", copied / "sam")
    with pytest.raises(ModelError, match="is a grounding-dino, not a sam"):
        GroundedSam(settings(copied), "cpu")


def test_lacking_weights_are_refused_and_not_made_up(copied):
    path = copied / "sam" / "model.safetensors"
    tensors = load_file(path)
    removed = next(name for name in tensors if name.startswith("mask_decoder"))
    save_file({name: tensor for name, tensor in tensors.items() if name != removed}, path, {"format": "pt"})
    with pytest.raises(ModelError, match=f"lacks {removed}"):
        GroundedSam(settings(copied), "cpu")


def test_pickled_weights_are_never_read(copied):
    path = copied / "sam" / "model.safetensors"
    torch.save(load_file(path), copied / "sam" / "pytorch_model.bin")
    path.unlink()
    with pytest.raises(ModelError, match="sam: cannot be loaded"):
        GroundedSam(settings(copied), "cpu")


@pytest.mark.parametrize(
    ("role", "weight", "what"),
    [("dino", "", "the detector's scores"), ("sam", "mask_decoder", "the segmenter's masks")],
)
def test_weights_that_are_no_numbers_give_an_error_and_no_empty_mask(copied, image, role, weight, what):
    path = copied / role / "model.safetensors"
    tensors = {
        name: torch.full_like(tensor, float("nan"))
        if tensor.is_floating_point() and name.startswith(weight)
        else tensor
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ModelError, match=f"{what} hold NaN"):
        GroundedSam(settings(copied, detection=LOW), "cpu").find(image)


def test_a_batch_has_the_instances_of_single_images(models, image):
    noise = np.random.default_rng(3).integers(0, 256, image.shape, dtype=np.uint8)
    images = [image, noise[:60], noise, image[:, ::-1].copy(), np.zeros_like(image)]  # one of another size
    detected = []
    detector = models.detector.forward
    models.detector.forward = lambda **inputs: detected.append(len(inputs["pixel_values"])) or detector(**inputs)
    try:
        together = models.find_all(images)
    finally:
        models.detector.forward = detector
    assert detected == [4, 1]
    for found, alone in zip(together, map(models.find, images), strict=True):
        assert [(one.group, one.prompt) for one in found] == [(one.group, one.prompt) for one in alone]
        assert [one.score for one in found] == pytest.approx([one.score for one in alone], abs=2e-4)
        for one, other in zip(found, alone, strict=True):
            assert one.box == pytest.approx(other.box, abs=0.2)
            assert (one.mask != other.mask).mean() < 1e-3  # batches round otherwise, which a pixel of the edge may show
    assert len(together[0]) > 1
