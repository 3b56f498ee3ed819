import dataclasses

import numpy as np
import pytest
import torch

from fastdrive_node.errors import AnswerError, FrameSetError, InputError, ModelError
from fastdrive_node.families import load_vla
from fastdrive_node.families.prompt import build_prompt
from fastdrive_node.planning.answer_format import example_answer
from fastdrive_node.planning.pipeline import STAGES, Pipeline
from fastdrive_node.pruning.pruner import PruningContext
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_node.pruning.registry import make_pruner
from fastdrive_node.pruning.score_pruner import ScorePruner
from fastdrive_node.types import CAMERAS, Command, FrameSet
from tests.generation import choose, encode, generate, read_answers_as, vary_answers
from tests.planning.conftest import frame, image_of


def test_a_frame_set_becomes_a_plan_stamped_t0(tiny_vla, frame_set, ego_history, good_plan):
    plan = Pipeline(tiny_vla).plan(frame_set, ego_history, Command.LEFT)
    assert plan.t0_ns == frame_set.t0_ns and plan.dt_s == 0.5 and plan.mode == "nominal"
    assert np.array_equal(plan.waypoints_m, good_plan)
    assert plan.kept.total == plan.kept.kept == 192 and plan.kept.scores is None


def test_every_stage_is_timed_and_they_make_up_the_total(tiny_vla, pruner, frame_set, ego_history, good_plan):
    times = Pipeline(tiny_vla, pruner, drop=0.75).plan(frame_set, ego_history).stage_ms
    assert tuple(times) == STAGES
    parts = sum(times.values()) - times["total"]
    assert all(time >= 0 for time in times.values()) and parts <= times["total"]


def test_it_drops_the_asked_share_by_score(tiny_vla, pruner, frame_set, ego_history, good_plan):
    kept = Pipeline(tiny_vla, pruner, drop=0.75).plan(frame_set, ego_history).kept
    assert kept.kept == 48 and kept.grid == (6, 4, 8) and np.sum(kept.masks()) == 48
    assert kept.scores.shape == (192,)
    assert kept.scores[np.ravel(kept.masks())].min() >= kept.scores[~np.ravel(kept.masks())].max()


def test_the_text_is_that_of_the_lower_level_api(tiny_dir, pruner, frame_set, ego_history, monkeypatch):
    vla = load_vla(tiny_dir)
    vary_answers(vla, 0)
    read = read_answers_as(monkeypatch)
    pipeline = Pipeline(vla, pruner, drop=0.5)
    with torch.inference_mode():
        tokens = encode(vla, [image_of(i) for i in range(6)])
        kept = choose(pruner, PruningContext.of(tokens, vla.grid), 96)
    prompt = build_prompt(vla, ego_history, Command.RIGHT)
    expected = generate(None, vla, tokens, kept, prompt).text
    assert pipeline.plan(frame_set, ego_history, Command.RIGHT).text == expected == read[0]


def test_the_ratio_can_change_between_plans(tiny_vla, frame_set, ego_history, good_plan):
    pipeline = Pipeline(tiny_vla, make_pruner("random"), drop=0.75)
    assert pipeline.plan(frame_set, ego_history).kept.kept == 48
    pipeline.drop = 0.25
    assert pipeline.plan(frame_set, ego_history).kept.kept == 144


@pytest.mark.parametrize("drop", [-0.1, 1.0, 0.999, float("nan")])
def test_a_ratio_out_of_range_is_refused(tiny_vla, drop):
    with pytest.raises(InputError, match="drop"):
        Pipeline(tiny_vla, drop=drop)


def test_images_of_any_size_are_planned(tiny_vla, frames, ego_history, good_plan):
    large = frame(CAMERAS[2], lambda: image_of(2, 900, 1600))
    Pipeline(tiny_vla).plan(FrameSet((*frames[:2], large, *frames[3:]), 0), ego_history)


def test_a_missing_camera_shows_in_the_mode(tiny_vla, frame_set, ego_history, good_plan):
    degraded = dataclasses.replace(frame_set, missing=("CAM_BACK",))
    assert Pipeline(tiny_vla).plan(degraded, ego_history).mode == "degraded: no image of CAM_BACK"


def test_the_language_model_sees_no_token_of_a_missing_camera(tiny_vla, pruner, frame_set, ego_history, good_plan):
    pipeline = Pipeline(tiny_vla, pruner, drop=0.5)
    whole = pipeline.plan(frame_set, ego_history)
    camera = next(index for index, mask in enumerate(whole.kept.masks()) if mask.any())  # one that had tokens
    missing = dataclasses.replace(frame_set, missing=(tiny_vla.spec.cameras[camera],))
    degraded = pipeline.plan(missing, ego_history)
    assert not degraded.kept.masks()[camera].any()
    assert 0 < degraded.kept.kept < whole.kept.kept
    with pytest.raises(FrameSetError, match="no token is left without"):
        pipeline.plan(dataclasses.replace(frame_set, missing=tiny_vla.spec.cameras), ego_history)


@pytest.mark.parametrize("order", [(1, 0, 2, 3, 4, 5), (0, 1, 2, 3, 4), ()])
def test_other_cameras_or_another_order_are_refused(tiny_vla, frames, ego_history, order):
    with pytest.raises(InputError, match="in this order"):
        Pipeline(tiny_vla).plan(FrameSet(tuple(frames[i] for i in order), 0), ego_history)


@pytest.mark.parametrize("error", [InputError("JPEG cut off"), ValueError("bad"), OSError("gone"), MemoryError("big")])
def test_an_image_that_cannot_be_decoded_is_refused_with_its_camera(tiny_vla, frames, ego_history, error):
    def fail():
        raise error

    broken = FrameSet((*frames[:3], frame(CAMERAS[3], fail), *frames[4:]), 0)
    with pytest.raises(InputError, match=f"CAM_BACK: {error}"):
        Pipeline(tiny_vla).plan(broken, ego_history)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), None]
)
def test_an_image_of_another_kind_is_refused_with_its_camera(tiny_vla, frames, ego_history, image):
    broken = FrameSet((frame(CAMERAS[0], lambda: image), *frames[1:]), 0)
    with pytest.raises(InputError, match="CAM_FRONT: expected a uint8 RGB image"):
        Pipeline(tiny_vla).plan(broken, ego_history)


def test_an_answer_that_is_no_plan_is_refused(tiny_vla, frame_set, ego_history, says):
    says("no idea")
    with pytest.raises(AnswerError, match="does not start with"):
        Pipeline(tiny_vla).plan(frame_set, ego_history)


def test_a_plan_that_cannot_be_driven_is_refused(tiny_vla, frame_set, ego_history, says):
    says(example_answer(dataclasses.replace(tiny_vla.spec.answer)))  # to stand at once, from 5.2 m/s
    with pytest.raises(AnswerError, match="acceleration"):
        Pipeline(tiny_vla).plan(frame_set, ego_history)


def test_it_plans_on_after_a_refusal(tiny_vla, frames, frame_set, ego_history, good_plan):
    pipeline = Pipeline(tiny_vla)
    with pytest.raises(InputError):
        pipeline.plan(FrameSet(frames[:2], 0), ego_history)
    assert np.array_equal(pipeline.plan(frame_set, ego_history).waypoints_m, good_plan)


def test_scores_that_are_not_finite_are_refused(tiny_vla, frame_set, ego_history):
    module = ReconPruner(tiny_vla.family, tiny_vla.config.text_config).requires_grad_(False)
    module.scorer.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="pruner reconpruner: scores: not finite"):
        Pipeline(tiny_vla, ScorePruner(module), drop=0.5).plan(frame_set, ego_history)


def test_warming_up_needs_no_trained_model(tiny_vla, pruner):
    Pipeline(tiny_vla, pruner, drop=0.5).warm_up()


def test_a_language_model_whose_logits_are_not_finite_is_a_fault_of_the_model(tiny_dir, frame_set, ego_history):
    vla = load_vla(tiny_dir)
    vla.model.lm_head.weight.data[3] = float("nan")
    with pytest.raises(ModelError, match="logits that are not finite"):
        Pipeline(vla).plan(frame_set, ego_history)
