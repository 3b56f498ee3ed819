"""A batch goes through the VLA in passes, in float32 and bfloat16; what a VLA says on all tokens is asked once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity, kl_div

from fastdrive_node.families import load_vla
from fastdrive_node.pruning.checkpoint import load_pruner
from fastdrive_training.data.adapters import open_source
from fastdrive_training.distil import plan, targets
from fastdrive_training.distil import train as distil
from fastdrive_training.distil.config import DistilRecipe
from fastdrive_training.distil.plan import gates, plan_divergence
from fastdrive_training.distil.sensitivity import Teacher, answer_logits, answer_states
from fastdrive_training.distil.targets import Used
from fastdrive_training.distil.trainer import PlanKeyframes
from fastdrive_training.engine.logging import read_log
from tests.training.distil.plan_runs import plan_trainer

ROWS = range(4)
DROP = 0.75


@pytest.fixture
def recipe(recipe) -> dict:
    return {**recipe, "objective": "plan"}


def _scores(held: PlanKeyframes) -> torch.Tensor:
    count = held.tokens.shape[1] * held.tokens.shape[2]
    return torch.randn(len(ROWS), count, generator=torch.Generator().manual_seed(3)).requires_grad_()


def _divergence(vla, held, at_once) -> tuple[torch.Tensor, torch.Tensor]:
    """[4] and its gradient [4, N] where keyframe k counts k + 1 times."""
    scores, tokens = _scores(held), held.read(np.array(ROWS))[0].flatten(1, 2)
    each = plan_divergence(vla, tokens, held.asked(0, ROWS), scores, [DROP], torch.zeros_like(scores), at_once)[0]
    (each * torch.arange(1, 5)).sum().backward()
    assert scores.grad is not None
    return each.detach(), scores.grad


def test_a_pass_has_teacher_batch_keyframes_and_their_number_changes_no_value(tiny_vla, held, monkeypatch) -> None:
    scores, tokens = _scores(held), held.read(np.array(ROWS))[0].flatten(1, 2)
    logits = answer_logits(tiny_vla, tokens, held.questions[0], gates(scores, DROP)).log_softmax(-1)
    whole = answer_logits(tiny_vla, tokens, held.questions[0]).log_softmax(-1)
    wanted = kl_div(logits, whole, reduction="none", log_target=True).sum((1, 2))
    (wanted * torch.arange(1, 5)).sum().backward()  # through the graph of the VLA, of all keyframes at once
    sizes = []

    def counted(vla, tokens, *given):
        sizes.append(len(tokens))
        return answer_logits(vla, tokens, *given)

    monkeypatch.setattr(plan, "answer_logits", counted)
    for at_once in (4, 3, 1):
        each, gradient = _divergence(tiny_vla, held, at_once)
        torch.testing.assert_close(each, wanted.detach(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(gradient, scores.grad, rtol=1e-3, atol=1e-7)
    assert sizes == [4, 3, 1, 1, 1, 1, 1]


class _Held:
    """A tensor that autograd keeps; counts the bytes of all that are kept."""

    now, most = 0, 0

    def __init__(self, tensor: torch.Tensor):
        self.tensor, self.size = tensor, tensor.untyped_storage().nbytes()
        _Held.now += self.size
        _Held.most = max(_Held.most, _Held.now)

    def __del__(self):
        _Held.now -= self.size


def test_passes_of_one_keyframe_keep_a_fourth_of_what_a_pass_of_four_does(tiny_vla, held) -> None:
    most = {}
    for at_once in (1, 4):
        _Held.most = 0
        own = {parameter.data_ptr() for parameter in tiny_vla.model.parameters()}

        def keep(tensor, own=own):
            return tensor if tensor.data_ptr() in own else _Held(tensor)

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: getattr(kept, "tensor", kept)):
            _divergence(tiny_vla, held, at_once)
        most[at_once] = _Held.most
    assert most[1] < 0.3 * most[4]


def test_a_run_in_passes_ends_like_one_whose_batch_is_one_pass(recipe, tmp_path, tiny_vla) -> None:
    ends = {}
    for at_once in (4, 1):
        out = tmp_path / str(at_once)
        distil.train({**recipe, "teacher_batch": at_once, "out": str(out), "log_every": 1})
        ends[at_once] = read_log(out), load_pruner(out / "reconpruner.safetensors", tiny_vla).state_dict()
    for row, other in zip(ends[1][0], ends[4][0], strict=True):
        assert row["total"] == pytest.approx(other["total"], rel=1e-4)
    for name, tensor in ends[4][1].items():
        torch.testing.assert_close(ends[1][1][name], tensor, atol=1e-4, rtol=1e-3)


@pytest.fixture(scope="module")
def half_vla(tiny_dir):
    return load_vla(tiny_dir, dtype=torch.bfloat16)


@pytest.fixture
def half_held(held, half_vla) -> PlanKeyframes:
    """The keyframes as a VLA in bfloat16 is asked about them; the tokens are the same."""
    tokens = held.read(np.array(ROWS))[0].flatten(1, 2)
    with torch.inference_mode():
        whole = [answer_states(half_vla, tokens[row : row + 1], [held.questions[0][row]])[0] for row in ROWS]
    return PlanKeyframes(held.names, held.tokens, held.questions, [torch.stack(whole).float().numpy()], None)


def test_a_vla_in_bfloat16_gives_nearly_the_divergence_and_gradient_of_float32(
    tiny_vla, held, half_vla, half_held
) -> None:
    each, gradient = _divergence(tiny_vla, held, 4)
    half, half_gradient = _divergence(half_vla, half_held, 4)
    assert half.dtype == half_gradient.dtype == torch.float32 and half_gradient.isfinite().all()
    torch.testing.assert_close(half, each, rtol=0.2, atol=0.02)
    assert cosine_similarity(half_gradient, gradient).min() > 0.9
    left_out = _scores(held).argsort()[:, :64]
    assert half_gradient.gather(1, left_out).abs().sum() > 0


def test_scores_learn_from_a_vla_in_bfloat16(half_vla, half_held, tmp_path) -> None:
    keys = {"steps": 40, "rate": 3e-3, "drops": (DROP,), "noise": 0.3, "precision": "bfloat16", "teacher_batch": 2}
    trainer = plan_trainer(half_vla, half_held, tmp_path, **keys)
    before = trainer.judge(half_held)
    assert trainer.run()["held_out"] < 0.8 * before["held_out"]
    assert trainer.pruner.query.dtype == torch.float32


def test_a_recipe_trains_as_on_a_gpu_with_the_vla_in_bfloat16(recipe, monkeypatch) -> None:
    def half(path, device, dtype, *parts):
        return load_vla(path, device, torch.bfloat16, *parts)

    monkeypatch.setattr(distil, "load_vla", half)
    figures = distil.train({**recipe, "precision": "bfloat16", "teacher_batch": 1})
    assert 0 < figures["total"] < 1e3 and 0 < figures["held_out"] < 1e3


class _Cut(Exception):
    pass


def test_what_a_vla_says_on_all_tokens_is_asked_once_and_continues_where_it_was_cut_off(
    recipe, tmp_path, monkeypatch, tiny_vla
) -> None:
    settings = DistilRecipe(**{**recipe, "cache": str(tmp_path / "cache"), "teacher_batch": 1})
    asked = []

    def cut(vla, tokens, questions):
        asked.append(len(tokens))
        if len(asked) == 3:
            raise _Cut
        return answer_states(vla, tokens, questions)

    monkeypatch.setattr(targets, "ENCODED_AT_ONCE", 2)
    monkeypatch.setattr(targets, "answer_states", cut)
    with pytest.raises(_Cut):
        distil.prepare(settings, torch.device("cpu"))
    keyframes, held_out, _ = distil.prepare(settings, torch.device("cpu"))
    assert isinstance(keyframes, PlanKeyframes)
    count = len(keyframes.names) + len(held_out.names)
    assert asked == [1] * (count + 1)  # the third is asked again
    distil.prepare(settings, torch.device("cpu"))
    assert len(asked) == count + 1
    _require_states(keyframes, tiny_vla)


def _require_states(keyframes: PlanKeyframes, vla) -> None:
    """What is kept of the first two is what the VLA says when it is asked about each alone."""
    tokens = keyframes.read(np.arange(2))[0].flatten(1, 2)
    for row, found in enumerate(keyframes.asked(0, range(2))):
        with torch.inference_mode():
            states = answer_states(vla, tokens[row : row + 1], [found.prompt])[0]
        torch.testing.assert_close(found.whole, states, rtol=1e-4, atol=1e-5)


def test_answers_of_several_lengths_are_kept_each_at_its_own_positions(tiny_vla, held, root, tmp_path) -> None:
    source, teacher = open_source(root, "train"), Teacher(tiny_vla, 1, 0)
    questions = [teacher.prompt(source[0], tiny_vla.encode_text("1.5")), teacher.prompt(source[1])]
    whole = targets.whole_answers(Used(source, np.arange(2), tmp_path), tiny_vla, held.tokens, questions, 2)
    assert whole.shape[1] == questions[1].answer > questions[0].answer
    _require_states(PlanKeyframes(("a", "b"), held.tokens, [questions], [whole], None), tiny_vla)
