"""VLAs that read past images: order of the tokens, each image encoded once, gaps and jumps in time."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from fastdrive_node.errors import FrameSetError, ModelError
from fastdrive_node.families import build_prompt, load_vla
from fastdrive_node.planning.answer_format import example_answer
from fastdrive_node.planning.pipeline import Pipeline
from fastdrive_node.pruning.registry import make_pruner
from fastdrive_node.types import CAMERAS, CameraFrame, EgoHistory, EgoState, FrameSet
from tests.generation import answer_with

HISTORY = EgoHistory((EgoState(0, 0.0, 0.0, 0.0, 0.0),), 0.5)
FRAMES = {"count": 3, "interval_s": 0.5, "tolerance_s": 0.1}
MS = 1_000_000


@pytest.fixture
def make(tiny_dir, tmp_path):
    def build(frames=FRAMES, prompt=None):
        folder = shutil.copytree(tiny_dir, tmp_path / f"vla{len(list(tmp_path.iterdir()))}")
        spec = json.loads((folder / "vla.json").read_text())
        (folder / "vla.json").write_text(json.dumps(spec | {"frames": frames}))
        if prompt is not None:
            (folder / "prompt.txt").write_text(prompt)
        return load_vla(folder)

    return build


@pytest.fixture
def pipeline(make, monkeypatch):
    vla = make()
    answer_with(monkeypatch, example_answer(vla.spec.answer))
    return Pipeline(vla)


def frame_set(ms, shade=None, missing=()):
    """A set at ``ms``, whose images are of one shade."""
    value = (ms // 100 if shade is None else shade) % 256
    pixels = np.full((112, 224, 3), value, np.uint8)
    frames = tuple(CameraFrame(camera, ms * MS, ms * MS, lambda: pixels) for camera in CAMERAS)
    return FrameSet(frames, ms * MS, missing)


def seen(pipeline, monkeypatch):
    """The visual tokens that each plan gives to the generator, and the sets that are encoded."""
    given, encoded = [], []
    context, encode = pipeline.generator.context, pipeline.vision.encode
    monkeypatch.setattr(pipeline.generator, "context", lambda p, v, *a, **k: given.append(v) or context(p, v, *a, **k))
    monkeypatch.setattr(pipeline.vision, "encode", lambda *a, **k: encoded.append(a) or encode(*a, **k))
    return given, encoded


def test_each_image_is_encoded_once_and_serves_as_a_past_image_later(pipeline, monkeypatch):
    given, encoded = seen(pipeline, monkeypatch)
    pipeline.remember(frame_set(0))
    pipeline.remember(frame_set(500))
    for ms in (1000, 1500):
        plan = pipeline.plan(frame_set(ms), HISTORY)
    assert len(encoded) == 4 and given[0].grid == (18, 4, 8)
    first, second = (visual.rows.unflatten(0, (6, 3, 32)) for visual in given)  # camera, frame, token
    assert torch.equal(first[:, 1:], second[:, :2]) and not torch.equal(first[:, 0], second[:, 0])
    assert plan.kept.total == 18 * 32 and [mask.shape for mask in plan.kept.masks()] == [(4, 8)] * 6
    assert plan.output.prompt.count("<image>") == 18


def test_a_past_image_may_be_a_little_early_or_late(pipeline):
    pipeline.remember(frame_set(40))
    pipeline.remember(frame_set(560))
    assert pipeline.plan(frame_set(1000), HISTORY).kept.total == 18 * 32


@pytest.mark.parametrize("past", [(), (500,), (0,), (0, 350)], ids=["none", "no -1.0", "no -0.5", "too far off"])
def test_a_gap_is_refused_by_camera_and_time(pipeline, past):
    for ms in past:
        pipeline.remember(frame_set(ms))
    with pytest.raises(FrameSetError, match=r"CAM_FRONT: no image (1|0\.5) s before t0 .* reads 3 frames"):
        pipeline.plan(frame_set(1000), HISTORY)


def test_a_jump_back_in_time_forgets_what_came_before(pipeline):
    for ms in (5000, 5500, 0, 500):
        pipeline.remember(frame_set(ms))
    assert pipeline.plan(frame_set(1000), HISTORY).kept.total == 18 * 32
    with pytest.raises(FrameSetError):
        pipeline.plan(frame_set(200), HISTORY)


def test_what_is_missing_may_be_left_out(make, monkeypatch):
    vla = make(FRAMES | {"missing": "leave_out"})
    answer_with(monkeypatch, example_answer(vla.spec.answer))
    pipeline = Pipeline(vla, make_pruner("random", vla), drop=0.5)
    plan = pipeline.plan(frame_set(0), HISTORY)
    assert (plan.kept.total, plan.kept.kept) == (6 * 32, 3 * 32) and plan.output.prompt.count("<image>") == 6
    pipeline.remember(frame_set(500, missing=("CAM_BACK",)))
    plan = pipeline.plan(frame_set(1000), HISTORY)
    assert plan.kept.total == 17 * 32, "the black image that stood in for CAM_BACK is no past image"
    assert [mask.shape for mask in plan.kept.masks()] == [(4, 8)] * 6


def test_the_prompt_may_order_images_by_time(make):
    names = [f"{{image:{camera}{at}}}" for at in ("@-1", "@-0.5", "") for camera in CAMERAS]
    vla = make(prompt=make().template.replace("{images}", "".join(names)))
    assert vla.images[:7] == (*((camera, 2) for camera in range(6)), (0, 1)) and vla.tokens == 18 * 32
    assert len(build_prompt(vla, HISTORY).visual) == vla.tokens
    some = build_prompt(vla, HISTORY, present=range(12, 18))
    assert len(some.visual) == 6 * 32 and some.next_position < build_prompt(vla, HISTORY).next_position


def test_a_prompt_that_lacks_an_image_is_refused(make):
    with pytest.raises(ModelError, match=r"each of these once, in any order: \{image:CAM_FRONT@-1\}"):
        make(prompt="{image:CAM_FRONT}")


def test_current_images_are_found_in_a_plan_record(pipeline):
    from fastdrive_node.record import PlanRecord

    for ms in (0, 500):
        pipeline.remember(frame_set(ms))
    plan = pipeline.plan(frame_set(1000), HISTORY)
    again = PlanRecord.from_dict(PlanRecord(plan).to_dict()).plan
    assert again.kept.current == (2, 5, 8, 11, 14, 17) and np.array_equal(again.kept.masks(), plan.kept.masks())


def test_other_tasks_say_that_they_give_no_past_images(make):
    vla = make()
    with pytest.raises(ModelError, match="frames: training gives a VLA the images of t0 only"):
        vla.require_one_frame("training")
    dataclasses.replace(vla, spec=dataclasses.replace(vla.spec, frames=None)).require_one_frame("training")


def test_an_engine_that_gives_the_best_tokens_only_is_refused(make, monkeypatch):
    vla = make()
    vision = vla.torch_vision()
    monkeypatch.setattr(type(vision), "max_keep", 96)
    with pytest.raises(ModelError, match="reads several frames, and the engine gives 96 of the 192 tokens"):
        Pipeline(vla, vision=vision)


def test_warming_up_leaves_no_past_image(pipeline):
    pipeline.warm_up()
    with pytest.raises(FrameSetError):
        pipeline.plan(frame_set(1000), HISTORY)


def test_a_tolerance_that_lets_one_image_serve_as_two_is_refused(make):
    with pytest.raises(ModelError, match=r"frames\.tolerance_s: must be at most half of interval_s"):
        make(FRAMES | {"tolerance_s": 0.3})
