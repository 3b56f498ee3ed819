"""Impromptu-VLA's answers and prompts, as its data generation writes them."""

import dataclasses

import numpy as np
import pytest

from fastdrive_node.errors import AnswerError
from fastdrive_node.families.templates import TEMPLATES
from fastdrive_node.planning.answer_format import answer_text, parse_answer, parse_trajectory
from tests.real_tokenizer import qwen_tokenizer

INTRO = (
    "<PLANNING>Predicted future movement details for the next 3 seconds (sampled at 0.5-second intervals), including "
    "BEV location in x and y directions (in meters). Positive x means forward direction while positive y means "
    "leftwards. The output is formatted as [x, y]: "
)
POINTS = "[2.44, 0.0], [4.7, 0.01], [7.03, 0.02], [9.28, 0.02], [11.5, 0.01], [13.64, 0.0]"
ANSWER = f"{INTRO}{POINTS}</PLANNING>"
SPEC = TEMPLATES["impromptu-1v"]().spec


def recorded_answers(count=200):
    """Answers as Python writes rounded floats, of drives at many speeds and curvatures."""
    random = np.random.default_rng(0)
    for _ in range(count):
        times = 0.5 * np.arange(1, 7)
        speed, bend, accel = random.uniform(0, 20), random.normal(0, 0.3), random.normal(0, 1)
        x = np.maximum.accumulate(np.round(speed * times + accel * times**2 / 2, 2))
        points = [[float(a), float(b)] for a, b in zip(x, np.round(bend * times**2, 2), strict=True)]
        points = [[a + 0.0, b + 0.0] for a, b in points]  # no negative zero
        yield np.array(points), f"{INTRO}{', '.join(str(point) for point in points)}</PLANNING>"


@pytest.mark.parametrize(("template", "tokens"), [("impromptu-1v", 34), ("impromptu-6v", 50)])
def test_few_tokens_stand_before_the_first_image(template, tokens):
    """docs/latency.md says so: a prefilled head would save next to nothing."""
    head = TEMPLATES[template]().prompt.partition("{image")[0]
    assert len(qwen_tokenizer().encode(head).ids) == tokens


def test_the_published_answer_is_read():
    pairs = parse_answer(ANSWER, SPEC.answer)
    assert pairs.tolist() == [[2.44, 0.0], [4.7, 0.01], [7.03, 0.02], [9.28, 0.02], [11.5, 0.01], [13.64, 0.0]]
    assert answer_text(pairs, SPEC.answer) == ANSWER


def test_two_hundred_recorded_answers_are_read_as_written():
    for points, text in recorded_answers():
        assert np.array_equal(parse_answer(text, SPEC.answer), points)
        assert answer_text(points, SPEC.answer) == text


DAMAGES = {
    "cut off": lambda text: text[:-25],
    "no closing": lambda text: text.removesuffix("</PLANNING>"),
    "text behind": lambda text: text + " ok",
    "five points": lambda text: text.replace("[2.44, 0.0], ", ""),
    "seven points": lambda text: text.replace("[2.44, 0.0]", "[2.44, 0.0], [2.44, 0.0]"),
    "another number form": lambda text: text.replace("4.7,", "4.70,"),
    "negative zero": lambda text: text.replace("[2.44, 0.0]", "[2.44, -0.0]"),
    "three decimals": lambda text: text.replace("2.44", "2.445"),
    "no decimals": lambda text: text.replace("[11.5,", "[11,"),
    "a word": lambda text: text.replace("7.03", "NaN"),
    "infinite": lambda text: text.replace("7.03", "inf"),
    "an exponent": lambda text: text.replace("7.03", "7e0"),
    "a plus sign": lambda text: text.replace("7.03", "+7.03"),
    "a leading zero": lambda text: text.replace("7.03", "07.03"),
    "a bracket missing": lambda text: text.replace("], [7.03", ", [7.03"),
    "no space": lambda text: text.replace(", [7.03", ",[7.03"),
    "two spaces": lambda text: text.replace(" [7.03", "  [7.03"),
    "a comma missing": lambda text: text.replace("[7.03, 0.02]", "[7.03 0.02]"),
    "other digits": lambda text: text.replace("7.03", "\u0667.03"),
    "free text before": lambda text: "Sure. " + text,
    "another preamble": lambda text: text.replace("BEV location", "location"),
    "empty": lambda text: "",
    "twice": lambda text: text + text,
    "nested": lambda text: text.replace("[7.03, 0.02]", "[[7.03, 0.02]]"),
    "three values": lambda text: text.replace("[7.03, 0.02]", "[7.03, 0.02, 0.0]"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("free", [False, True], ids=["strict", "free text allowed"])
def test_damaged_answers_are_refused(damage, free):
    """50 cases: with free text allowed, what stands inside of the block is as strict."""
    answer = dataclasses.replace(SPEC.answer, skip_until="<PLANNING>" if free else "")
    text = damage(ANSWER)
    assert text != ANSWER
    if free and text == "Sure. " + ANSWER:
        assert len(parse_answer(text, answer)) == 6
        text = "Sure. " + damage(ANSWER[:-3])
    with pytest.raises(AnswerError):
        parse_answer(text, answer)


def test_reasoning_before_the_block_is_skipped():
    answer = dataclasses.replace(SPEC.answer, skip_until="<PLANNING>")
    thought = "<think>The lead car at [3.0, 1.0] brakes.</think>\n"
    assert np.array_equal(parse_answer(thought + ANSWER, answer), parse_answer(ANSWER, SPEC.answer))
    with pytest.raises(AnswerError, match="has no '<PLANNING>'"):
        parse_answer(thought, answer)


def test_positions_of_the_lidar_become_those_of_the_rear_axle():
    assert SPEC.origin_m == 0.94
    trajectory = parse_trajectory(ANSWER, SPEC)
    assert np.allclose(trajectory.waypoints_m, parse_answer(ANSWER, SPEC.answer), atol=0.02) and trajectory.dt_s == 0.5
    left = answer_text(np.array([[2, 0.1], [4, 0.5], [6, 1.2], [8, 2.2], [10, 3.5], [12, 5.0]]), SPEC.answer)
    axle = parse_trajectory(left, SPEC).waypoints_m
    assert axle[-1, 1] < 5.0 - 0.3 and 12.0 < axle[-1, 0] < 12.3, "it is behind the lidar, which has swung out"


def test_the_waymo_form_has_no_tags_and_two_decimals():
    spec = TEMPLATES["impromptu-waymo"]().spec
    body = ", ".join(f"[{2.5 * k:.2f}, {-0.001 * k:.2f}]" for k in range(1, 11))
    assert "-0.00" in body, "as Python writes it"
    assert parse_answer(f"{spec.answer.preamble}{body}", spec.answer).shape == (10, 2)
    with pytest.raises(AnswerError, match="other text between or after its points"):
        parse_answer(f"{spec.answer.preamble}{body}.", spec.answer)
