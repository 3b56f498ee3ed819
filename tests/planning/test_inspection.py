"""Which tokens of an answer the grammar leaves free: against every other character at every place."""

import dataclasses
import time

import numpy as np
import pytest
import regex

from fastdrive_node.families.numbers import NumberFormat
from fastdrive_node.planning.answer_format import answer_text
from fastdrive_node.planning.inspection import count_answer_tokens

FORMS = [
    NumberFormat(decimals=2),
    NumberFormat(decimals=0),
    NumberFormat(decimals=2, style="shortest"),
    NumberFormat(decimals=2, integer_digits=2),
]


def free_by_trying(vla, spec, text):
    """The tokens in which the grammar would take another character than that of ``text``."""
    pairs = ", ".join([rf"\[{spec.number.pattern}, {spec.number.pattern}\]"] * spec.points)
    grammar = regex.compile(regex.escape(spec.preamble) + pairs + regex.escape(spec.closing))
    alphabet, ids, start, free = set("0123456789+-.,[] ") | set(text), vla.encode_text(text), 0, []
    for index in range(len(ids)):
        end = len(vla.tokenizer.decode(ids[: index + 1]))
        others = [text[:place] + other for place in range(start, end) for other in alphabet - {text[place]}]
        if any(grammar.fullmatch(other, partial=True) for other in others):
            free.append(index)
        start = end
    return free


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_free_tokens_are_those_that_could_be_others(tiny_vla, form):
    spec = dataclasses.replace(tiny_vla.spec.answer, number=form, points=3)
    text = answer_text(np.array([[2.5, -0.04], [10.0, 0.0], [0.3, -12.75]]), spec)
    found, free = count_answer_tokens(tiny_vla, spec, text), free_by_trying(tiny_vla, spec, text)
    assert found.free == len([index for index in free if index >= found.constant]) > 0
    assert found.total == len(tiny_vla.encode_text(text)) == found.constant + found.forced + found.free


def test_many_points_take_time_in_proportion(tiny_vla):
    spec = dataclasses.replace(tiny_vla.spec.answer, number=NumberFormat(decimals=2), points=100)
    text = answer_text(np.random.default_rng(0).uniform(-50, 50, (100, 2)), spec)
    start = time.process_time()
    found = count_answer_tokens(tiny_vla, spec, text)
    assert found.total > 1000 and time.process_time() - start < 3  # trying every text takes four times as long
