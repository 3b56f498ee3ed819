"""Teacher forcing with wrong numbers: what is shown, and what is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastdrive_node.errors import ModelError
from fastdrive_node.planning.answer_format import format_answer, parse_answer
from fastdrive_training.vla.targets import AnswerText

PLAN = np.array([[3.98, -0.02], [8.0, 0.5], [12.0, 1.0], [15.5, -2.0], [19.0, 3.3], [22.22, 5.0]], np.float32)


@pytest.fixture(scope="module")
def answer(tiny_vla) -> AnswerText:
    return AnswerText.of(tiny_vla)


def _tokens(vla, plans: np.ndarray) -> torch.Tensor:
    stop = vla.tokenizer.convert_tokens_to_ids("<|im_end|>")
    return torch.tensor(
        [[*vla.tokenizer.encode(format_answer(p, vla.spec.answer), add_special_tokens=False), stop] for p in plans]
    )


def _plan(vla, row) -> np.ndarray:
    return parse_answer(vla.tokenizer.decode(row[:-1].tolist()), vla.spec.answer)


def test_a_clean_sample_is_shown_its_own_text(answer, tiny_vla, monkeypatch) -> None:
    monkeypatch.setattr("fastdrive_training.vla.targets.CLEAN_FRACTION", 1.1)
    tokens = _tokens(tiny_vla, PLAN[None])
    assert torch.equal(answer.shown(tokens, PLAN[None], np.random.default_rng(0)), tokens)


def test_shown_answers_keep_the_grammar_and_drift(answer, tiny_vla) -> None:
    plans = np.repeat(PLAN[None], 40, 0)
    shown = answer.shown(_tokens(tiny_vla, plans), plans, np.random.default_rng(1))
    errors = np.abs(np.array([_plan(tiny_vla, row) for row in shown]) - plans).max((1, 2))
    assert 4 < (errors < 0.06).sum() < 24
    assert errors.max() > 0.5


def test_numbers_too_large_for_their_form_are_shown_as_the_largest(answer, tiny_vla) -> None:
    far = PLAN * 100
    shown = answer.shown(_tokens(tiny_vla, PLAN[None]), far[None], np.random.default_rng(0))
    assert _plan(tiny_vla, shown[0])[-1, 0] == 99.9


def _losses(answer, tokens, **likely) -> dict[str, float]:
    logits = torch.zeros(1, tokens.shape[1], 2100)
    for place, token in enumerate(tokens[0]):
        logits[0, place, likely.get(str(place), token)] = 30.0
    return {name: loss.item() for name, loss in answer.losses(logits, tokens, torch.from_numpy(PLAN[None])).items()}


def test_a_neighbouring_number_costs_less_than_a_far_one(answer, tiny_vla) -> None:
    tokens, place = _tokens(tiny_vla, PLAN[None]), int(answer.positions[10])  # x of the last point, 22.2
    near, far = (tiny_vla.tokenizer.convert_tokens_to_ids(text) for text in ("+22.4", "+29.2"))
    one_hot = torch.nn.functional.one_hot(tokens, 2100).float() * 4
    costs = []
    for token in (int(tokens[0, place]), near, far):
        logits = one_hot.clone()
        logits[0, place] = 0
        likely = torch.exp(-((answer.values - answer.values[answer.tokens == token]) ** 2) / 0.32) * 4
        logits[0, place, answer.tokens] = likely
        costs.append(answer.losses(logits, tokens, torch.from_numpy(PLAN[None]))["numbers"].item())
    assert costs[0] < costs[1] < costs[2]


def test_a_wrong_word_costs_words_and_not_numbers(answer, tiny_vla) -> None:
    tokens = _tokens(tiny_vla, PLAN[None])
    right = _losses(answer, tokens)
    wrong = _losses(answer, tokens, **{str(int(answer.others[3])): 0})
    assert wrong["words"] > right["words"] + 1
    assert wrong["numbers"] == right["numbers"]


def test_a_vla_with_a_token_per_digit_is_refused(tiny_vla, monkeypatch) -> None:
    monkeypatch.setattr("fastdrive_training.vla.targets.NUMBERS", ("0", "1"))
    with pytest.raises(ModelError, match="a number is not one token"):
        AnswerText.of(tiny_vla)
