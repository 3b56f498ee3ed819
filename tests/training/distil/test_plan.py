"""The plan on the kept tokens as the loss: it is the divergence of the pruned answer, and scores learn from it."""

from __future__ import annotations

import dataclasses
import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from fastdrive_node.cli import main
from fastdrive_node.errors import TrainingError
from fastdrive_node.families import VisualTokens
from fastdrive_node.families.spec import default_vla_dir
from fastdrive_node.pruning.checkpoint import load_pruner
from fastdrive_training.distil import train as distil
from fastdrive_training.distil.config import DistilRecipe
from fastdrive_training.distil.plan import PlanTrainer, attention_kernel, gates, gumbel, plan_divergence
from fastdrive_training.distil.sensitivity import answer_logits
from fastdrive_training.distil.trainer import PlanKeyframes
from fastdrive_training.engine.config import RecipeError, parse_recipe
from fastdrive_training.vla.tiny_model import build_tiny_vla
from tests.generation import SHALLOW
from tests.training.distil.plan_runs import plan_trainer


@pytest.fixture
def recipe(recipe) -> dict:
    return {**recipe, "objective": "plan"}


@pytest.fixture
def asked(held):
    """Tokens [4, N, D] of four keyframes, and what is asked about them."""
    return held.read(np.arange(4))[0].flatten(1, 2), held.asked(0, range(4))


def test_gates_are_one_for_the_kept_and_scores_near_the_border_have_the_largest_gradient() -> None:
    scores = torch.tensor([[3.0, 1.0, 0.5, -4.0]], requires_grad=True)
    found = gates(scores, 0.5)
    assert found.tolist() == [[1, 1, 0, 0]]
    assert gates(scores, 0.5, torch.tensor([[0.0, 0, 0, 9]])).tolist() == [[1, 0, 0, 1]]
    found.sum().backward()
    assert scores.grad is not None and torch.all(scores.grad > 0)
    assert scores.grad[0, 1:3].min() > 5 * scores.grad[0, 3]  # the nearer to the K-th score, the more
    assert gates(scores, 0.0).tolist() == [[1, 1, 1, 1]]


def test_noise_of_a_keyframe_does_not_depend_on_its_batch() -> None:
    both, alone = gumbel(7, 3, [5, 9], 16), gumbel(7, 3, [9], 16)
    assert torch.equal(both[1:], alone) and not torch.equal(both[0], both[1])
    assert not torch.equal(gumbel(7, 4, [9], 16), alone)


def test_a_closed_gate_is_a_token_that_the_node_leaves_out(tiny_vla, asked) -> None:
    tokens, questions = asked[0], [each.prompt for each in asked[1]]
    question, language = questions[0], tiny_vla.torch_language()
    kept = torch.arange(0, tokens.shape[1], 3)
    open_gates = torch.zeros(1, tokens.shape[1]).scatter(1, kept[None], 1.0)
    found = answer_logits(tiny_vla, tokens[:1], questions[:1], open_gates)[0]
    left = torch.ones(len(question.ids), dtype=torch.bool).index_fill(0, question.visual, False)
    left[question.visual[kept]] = True
    places = torch.cumsum(left, 0)[question.visual[kept]] - 1
    length = int(left.sum()) - question.answer + 1
    ids, positions = question.ids[left], question.positions[:, left]
    visual = dataclasses.replace(
        VisualTokens.from_raster(tokens[0].view(6, 32, -1), tiny_vla.grid), rows=tokens[0, kept], indices=kept
    )
    given = [language.position_inputs(part[:, None]) for part in positions.split([length, question.answer - 1], 1)]
    with torch.inference_mode():
        first, cache = language.prefill(ids[None, :length], [places], [visual], given[0], question.answer)
        wanted = torch.cat([first, language.extend(ids[None, length:], given[1], cache)], 1)[0]
    torch.testing.assert_close(found, wanted.float(), rtol=1e-3, atol=1e-3)
    whole = answer_logits(tiny_vla, tokens[:1], questions[:1])[0]
    assert (whole - found).abs().max() > 0.01


def test_the_divergence_is_zero_on_all_tokens_and_reaches_scores_of_left_out_ones(tiny_vla, asked) -> None:
    tokens, own = asked
    scores = torch.linspace(2, -2, tokens.shape[1]).repeat(4, 1).requires_grad_()
    none = torch.zeros_like(scores)
    found = plan_divergence(tiny_vla, tokens, own, scores, [0.0, 0.5, 0.75], none, 4)
    assert found.shape == (3, 4) and found[0].abs().max() < 1e-4
    assert torch.all(found[1:] > 1e-3)
    found[2].sum().backward()
    assert scores.grad is not None and scores.grad[:, -64:].abs().sum() > 0


def test_scores_learn_to_leave_the_plan_as_it_is(tiny_vla, held, tmp_path) -> None:
    trainer = plan_trainer(tiny_vla, held, tmp_path, steps=40, rate=3e-3, drops=(0.75,), noise=0.3)
    before = trainer.judge(held)
    figures = trainer.run()
    assert figures["divergence"]["0.75"] == figures["held_out"] < 0.8 * before["held_out"]


def test_keyframes_without_foreground_keep_the_whole_loss_of_the_plan(tiny_vla, held, tmp_path) -> None:
    covered = np.zeros((4, tiny_vla.tokens), np.float32)
    covered[0, :10] = 1
    keyframes, losses = dataclasses.replace(held, covered=covered), []
    for weight in (0.0, 0.5):
        trainer = plan_trainer(tiny_vla, keyframes, tmp_path / str(weight), foreground_weight=weight)
        losses.append(trainer.losses(keyframes.read(np.arange(4)))["each"])
    assert torch.allclose(losses[0][1:], losses[1][1:]) and losses[1][0] > losses[0][0]


def test_a_run_writes_a_pruner_that_serves_and_resumes_like_an_unbroken_one(recipe, tmp_path, tiny_vla) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"kind": "distil", **recipe, "foreground_weight": 0.2}))
    assert main(["train", str(path)]) == 0
    figures = json.loads((tmp_path / "run" / "figures.json").read_text())
    assert {"total", "held_out", "divergence"} <= set(figures) and list(figures["divergence"]) == [
        "0.25",
        "0.5",
        "0.75",
    ]
    assert load_pruner(figures["pruner"], tiny_vla).cameras == tiny_vla.spec.cameras
    short = {**recipe, "foreground_weight": 0.2, "out": str(tmp_path / "cut")}
    checkpoints = []

    class Cut(Exception):
        pass

    def cut(trainer, part, losses=PlanTrainer.losses):
        checkpoints.append(part)
        if len(checkpoints) == 4:
            raise Cut
        return losses(trainer, part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PlanTrainer, "losses", cut)
        with pytest.raises(Cut):
            distil.train(short)
    resumed = distil.train(short, True)
    same = {key: value for key, value in resumed.items() if key not in ("images_per_s", "pruner")}
    assert same == {key: value for key, value in figures.items() if key not in ("images_per_s", "pruner")}


def test_several_vlas_take_turns(recipe, tmp_path, monkeypatch) -> None:
    other, turns = build_tiny_vla(tmp_path / "other", seed=0, size=SHALLOW), []

    def seen(vla, tokens, asked, scores, drops, *how):
        turns.append((str(vla.path), *drops))
        return plan_divergence(vla, tokens, asked, scores, drops, *how)

    monkeypatch.setattr("fastdrive_training.distil.plan.plan_divergence", seen)
    distil.train({**recipe, "teachers": [str(other)], "drops": [0.25, 0.5], "evaluate_every": 100})
    own = recipe["vla"]
    assert turns[:4] == [(own, 0.25), (str(other), 0.25), (own, 0.5), (str(other), 0.5)]


def test_another_language_model_is_another_run_and_idle_keys_are_not(recipe, tmp_path) -> None:
    other = build_tiny_vla(tmp_path / "other", seed=0, size=SHALLOW)
    distil.train({**recipe, "steps": 2})
    with pytest.raises(TrainingError, match="languages was"):
        distil.train({**recipe, "teachers": [str(other)]}, True)
    distil.train({**recipe, "draws": 5, "power": 0.7}, True)


@pytest.mark.parametrize("answers", ["true", "own"])
def test_the_shipped_vla_reads_what_it_would_write_where_the_recipe_says_so(recipe, answers) -> None:
    shipped = {**recipe, "vla": str(default_vla_dir()), "keyframes": 3, "val_keyframes": 2, "answers": answers}
    keyframes, _, (vla,) = distil.prepare(parse_recipe(DistilRecipe, shipped), torch.device("cpu"))
    assert isinstance(keyframes, PlanKeyframes)
    tokens, _, rows = keyframes.read(np.arange(3))
    greedy = []
    for row in rows.tolist():
        question = keyframes.questions[0][row]
        with torch.inference_mode():
            written = answer_logits(vla, tokens[row : row + 1].flatten(1, 2), [question])[0].argmax(-1)
        greedy.append(written[:-1].tolist() == question.ids[1 - question.answer :].tolist())
    assert all(greedy) if answers == "own" else not any(greedy)


def test_a_vla_whose_own_answers_are_no_plans_reads_the_true_ones(recipe) -> None:
    given = (parse_recipe(DistilRecipe, {**recipe, "answers": answers}) for answers in ("true", "own"))
    true, own = (distil.prepare(settings, torch.device("cpu"))[0] for settings in given)
    assert isinstance(true, PlanKeyframes) and isinstance(own, PlanKeyframes)
    for one, other in zip(true.questions[0], own.questions[0], strict=True):
        assert torch.equal(one.ids, other.ids) and one.answer == other.answer


def test_own_answers_are_of_objective_plan_and_another_run(recipe) -> None:
    with pytest.raises(RecipeError, match="answers: own is of objective plan; set objective: plan"):
        distil.train({**recipe, "objective": "sensitivity", "answers": "own"})
    own, true = (DistilRecipe("vla", "data", "out", objective="plan", answers=answers) for answers in ("own", "true"))
    assert own.identity["answers"] == "own" and "answers" not in true.identity  # a checkpoint of before serves on


def test_a_ratio_that_keeps_no_token_is_refused_before_the_training(recipe) -> None:
    with pytest.raises(RecipeError, match=r"drops: .*; give a smaller ratio"):
        distil.train({**recipe, "drops": [0.999]})


def test_checkpoints_of_before_the_objective_serve_on() -> None:
    assert not {"objective", "drops", "noise"} & set(DistilRecipe("vla", "data", "out").identity)
    assert DistilRecipe("vla", "data", "out").identity["draws"] == 2


def test_on_a_gpu_attention_keeps_its_matrices_for_the_gradient_of_the_gates() -> None:
    cuda = torch.backends.cuda
    before = cuda.mem_efficient_sdp_enabled(), cuda.flash_sdp_enabled()
    with attention_kernel(torch.device("cuda")):
        assert cuda.math_sdp_enabled() and not cuda.mem_efficient_sdp_enabled() and not cuda.flash_sdp_enabled()
    with attention_kernel(torch.device("cpu")):
        assert (cuda.mem_efficient_sdp_enabled(), cuda.flash_sdp_enabled()) == before


def test_the_divergence_is_computed_under_the_kernel_of_the_vlas_device(tiny_vla, asked, monkeypatch) -> None:
    tokens, own = asked
    devices, inside, under = [], [], []

    @contextmanager
    def entered(device):
        devices.append(device)
        inside.append(True)
        yield
        inside.pop()

    def seen(*given):
        under.append(bool(inside))
        return answer_logits(*given)

    monkeypatch.setattr("fastdrive_training.distil.plan.attention_kernel", entered)
    monkeypatch.setattr("fastdrive_training.distil.plan.answer_logits", seen)
    scores = torch.linspace(2, -2, tokens.shape[1])[None].requires_grad_()
    plan_divergence(tiny_vla, tokens[:1], own[:1], scores, [0.5], torch.zeros_like(scores), 1).sum().backward()
    assert devices == [tiny_vla.device] and under == [True]
