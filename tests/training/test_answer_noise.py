"""Teacher forcing with wrong numbers: what is shown, and what is asked for."""

from __future__ import annotations

import numpy as np
import pytest

from fastdrive_node.planning.answer import format_answer, parse_answer
from fastdrive_training.answer_noise import AnswerNoise

PLAN = np.array([[3.98, -0.02], [8.0, 0.5], [12.0, 1.0], [15.5, -2.0], [19.0, 3.3], [22.22, 5.0]])


@pytest.fixture(scope="module")
def noise(tiny_vla) -> AnswerNoise:
    return AnswerNoise.of(tiny_vla)


def _tokens(vla, plans: np.ndarray) -> np.ndarray:
    stop = vla.tokenizer.convert_tokens_to_ids("<|im_end|>")
    return np.array(
        [[*vla.tokenizer.encode(format_answer(p, vla.spec.answer), add_special_tokens=False), stop] for p in plans]
    )


def _plan(vla, row) -> np.ndarray:
    return parse_answer(vla.tokenizer.decode(row[:-1].tolist()), vla.spec.answer)


def test_a_sample_without_error_asks_for_its_own_text(noise, tiny_vla, monkeypatch) -> None:
    monkeypatch.setattr("fastdrive_training.answer_noise.CLEAN_SHARE", 1.1)
    tokens = _tokens(tiny_vla, PLAN[None])
    inputs, targets = noise.apply(tokens, PLAN[None], np.random.default_rng(0))
    assert np.array_equal(inputs.numpy(), tokens)
    assert np.array_equal(targets.numpy(), tokens)


def test_shown_answers_keep_the_grammar_and_go_astray(noise, tiny_vla) -> None:
    plans = np.repeat(PLAN[None], 40, 0)
    inputs, _ = noise.apply(_tokens(tiny_vla, plans), plans, np.random.default_rng(1))
    shown = np.array([_plan(tiny_vla, row) for row in inputs])
    errors = np.abs(shown - plans).max((1, 2))
    assert 8 < (errors == 0).sum() < 32
    assert errors.max() > 0.5


def test_each_digit_brings_the_number_nearest_to_the_truth_given_the_digits_before_it(noise, tiny_vla) -> None:
    tokens = _tokens(tiny_vla, PLAN[None]).astype(np.int64)
    shown = PLAN.copy()
    shown[1, 0], shown[4, 0], shown[5, 1] = 7.86, 20.16, -0.4
    inputs, targets = tokens.copy(), tokens.copy()
    value = np.rint(shown.reshape(1, -1) * 100).astype(np.int64)
    digits = noise._write(inputs, value, value < 0)
    noise._aim(targets, np.rint(PLAN.reshape(1, -1) * 100).astype(np.int64), digits, value < 0)
    words = tiny_vla.tokenizer.decode(targets[0, :-1].tolist())
    assert "[+08.99, +00.50]" in words  # 8.00 after "7": 7.99 is the nearest; after "07.8": 7.89
    assert "[+10.00, +03.30]" in words  # 19.00: tens 1; after "2" the nearest is 20.00
    assert words.endswith("[+22.22, +00.00]</PLANNING>")  # the sign is asked for; after the wrong one zero is nearest
