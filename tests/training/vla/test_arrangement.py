"""Sets of other sizes, cameras and orders: their ids are right, no token is dropped, cameras keep their names."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastdrive_node.errors import ModelError
from fastdrive_training.engine.config import RecipeError, parse_recipe
from fastdrive_training.vla.arrangement import Arrangement, PromptForm, SetForms, arrange_tokens, arranged
from fastdrive_training.vla.planner import TrainablePlanner
from fastdrive_training.vla.train_planner import LanguageRecipe

SIZES = ((1, 1), (2, 2), (1, 2), (2, 1), (4, 4))
BACK_FIRST = Arrangement((3, 0), ((2, 4), (4, 2)))  # of a grid of 4 x 8: 2 x 2 tokens, then 1 x 4


@pytest.fixture(scope="module")
def planner(tiny_vla) -> TrainablePlanner:
    return TrainablePlanner(tiny_vla)


def test_ids_of_smaller_grids_are_closed_up(tiny_vla) -> None:
    form = PromptForm.of(arranged(tiny_vla, BACK_FIRST))
    first, second = form.visual[:4].tolist(), form.visual[4:].tolist()
    start = first[0]  # that many text tokens, each with its own position
    assert form.positions[:, first].T.tolist() == [
        [start, start + row, start + col] for row in (0, 1) for col in (0, 1)
    ]
    text = form.positions[:, first[-1] + 1 : second[0]]
    assert text[0, 0] == start + 2 and (text.diff() == 1).all()  # behind a grid of two rows and two columns
    after = int(text[0, -1]) + 1
    assert form.positions[:, second].T.tolist() == [[after, after, after + column] for column in range(4)]
    assert (form.positions[:, second[-1] + 1] == after + 4).all()
    assert form.next_position == int(form.positions.max()) + 1


def test_no_token_is_dropped() -> None:
    tokens = torch.randn(2, 6 * 32, 5)
    whole = Arrangement(tuple(range(6)), ((1, 1),) * 6)
    assert torch.equal(arrange_tokens(tokens, (4, 8), whole), tokens)
    pooled = arrange_tokens(tokens, (4, 8), BACK_FIRST)
    image = tokens.unflatten(1, (6, 4, 8))
    assert pooled.shape == (2, 8, 5)
    assert torch.allclose(pooled[:, 1], image[:, 3, :2, 4:].mean((1, 2)))  # upper right of the camera behind
    assert torch.allclose(pooled[:, 4:].mean(1), image[:, 0].mean((1, 2)), atol=1e-6)


def test_each_camera_keeps_its_name_in_any_order(planner, tiny_vla, monkeypatch) -> None:
    """Tokens that hold the number of their camera stand behind that camera's name in what the language model reads."""
    arrangement = Arrangement((0, 5, 2), ((1, 1), (2, 2), (4, 8)))
    form = PromptForm.of(arranged(tiny_vla, arrangement))
    numbers = torch.arange(6.0).repeat_interleave(32)[None, :, None].expand(1, -1, tiny_vla.width)
    seen = {}

    def run(**given):
        seen.update(given)
        return SimpleNamespace(last_hidden_state=given["inputs_embeds"])

    monkeypatch.setattr(planner.core.model.language_model, "forward", run)
    text = form.text(_whole_text(planner), planner.form)
    planner.hidden(arrange_tokens(numbers, (4, 8), arrangement), text, form=form)
    embeds = seen["inputs_embeds"][0]
    for camera, tokens in zip((0, 5, 2), form.visual.split([32, 8, 1]), strict=True):
        assert (embeds[tokens] == camera).all()
        before = tiny_vla.tokenizer.decode(text[0, : int(tokens[0])].tolist())
        assert before.removesuffix("<|vision_start|>").endswith(tiny_vla.spec.cameras[camera])
    assert seen["attention_mask"] is None


def _whole_text(planner) -> torch.Tensor:
    """A prompt of the VLA with a tail that can be recognised."""
    tail = torch.arange(100, 100 + len(planner.form) - len(planner.form.head))
    return torch.cat([planner.form.head, tail])[None]


def test_what_follows_the_images_stays(planner, tiny_vla) -> None:
    form = PromptForm.of(arranged(tiny_vla, BACK_FIRST))
    text = form.text(_whole_text(planner), planner.form)[0]
    assert len(text) == len(form) == form.positions.shape[1]
    assert text[len(form.head) :].tolist() == _whole_text(planner)[0, len(planner.form.head) :].tolist()


def test_the_shares_of_the_forms_are_those_of_the_recipe() -> None:
    forms, rng = SetForms(SIZES, whole=0.4, alike=0.5, absent=0.3, shuffled=0.5), np.random.default_rng(0)
    drawn = [forms.draw(6, rng) for _ in range(2000)]
    others = [each for each in drawn if each is not None]
    assert len(others) / 2000 == pytest.approx(0.6, abs=0.04)
    assert all(0 in each.cameras and len(set(each.cameras)) == len(each.cameras) for each in others)
    assert np.mean([len(each.cameras) for each in others]) == pytest.approx(1 + 5 * 0.7, abs=0.15)
    assert np.mean([list(each.cameras) == sorted(each.cameras) for each in others]) == pytest.approx(0.52, abs=0.05)
    assert {size for each in others for size in each.pooled} == set(SIZES)
    assert SetForms().draw(6, rng) is None and SetForms(SIZES, whole=1.0).draw(6, rng) is None


def test_sets_of_a_recipe_are_checked(tiny_vla) -> None:
    with pytest.raises(ModelError, match=r"\[3, 1\] does not divide the token grid of 4 x 8"):
        SetForms(((3, 1),)).check(tiny_vla)
    keys = {"dataset": "d", "out": "o", "sets": {"sizes": [[2, 2]]}}
    with pytest.raises(RecipeError, match="sets: sets of other forms are never pruned"):
        parse_recipe(LanguageRecipe, keys)
    assert parse_recipe(LanguageRecipe, {**keys, "pruned_by": "none"}).sets.sizes == ((2, 2),)
