"""Drafts never change an answer, and the better they are the fewer forwards it takes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastdrive_node.families import load_vla
from fastdrive_node.families.spec import AnswerSpec, text_answer
from fastdrive_node.families.templates import TEMPLATES
from fastdrive_node.planning.answer_format import answer_format, answer_text
from fastdrive_node.planning.drafts import ReplayedDrafter, TextDrafter, constant_turn, moved_along
from fastdrive_node.planning.generator import Generator
from fastdrive_node.planning.loading import default_vla_dir, open_pipeline
from fastdrive_node.pruning.baselines.simple import NoPruner
from fastdrive_node.types import EgoState
from tests.families.checks import scene_of
from tests.families.tiny_vlas import TINY, build_family_vla
from tests.real_tokenizer import qwen_tokenizer

SPEC = AnswerSpec(preamble="go ", points=3, interval_s=0.5, closing=" end", max_new_tokens=64)


def by_characters(spec=SPEC, prefix=""):
    return TextDrafter(spec, lambda text: [ord(each) for each in text], chr, [ord(each) for each in prefix])


def written(drafter, known, numbers):
    draft = drafter.write([ord(each) for each in known], numbers)
    return "".join(map(chr, draft.ids)), draft.spans


@pytest.mark.parametrize(
    "known, whole",
    [
        ("", "go [1.00, 2.00], [3.00, 4.00], [5.00, 6.00] end"),
        ("g", "go [1.00, 2.00], [3.00, 4.00], [5.00, 6.00] end"),
        ("go [1.2", "go [1.20, 2.00], [3.00, 4.00], [5.00, 6.00] end"),
        ("go [1.25, -", "go [1.25, -2.00], [3.00, 4.00], [5.00, 6.00] end"),
        ("go [7.00, 8.00], [", "go [7.00, 8.00], [3.00, 4.00], [5.00, 6.00] end"),
        ("go [7.00, 8.00], [9.00, 1.00], [2.00, 3.00] e", "go [7.00, 8.00], [9.00, 1.00], [2.00, 3.00] end"),
    ],
)
def test_a_draft_goes_on_from_what_is_written(known, whole):
    assert written(by_characters(), known, [1, 2, 3, 4, 5, 6])[0] == whole


@pytest.mark.parametrize("known", ["no", "go (", "go [1.00; ", "go [1.00, 2.00] ["])
def test_what_leaves_the_grammar_is_not_drafted(known):
    assert written(by_characters(), known, [1, 2, 3, 4, 5, 6]) == (known, ())


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e300, -1e7])
def test_a_number_that_the_form_cannot_hold_is_no_error(number):
    assert written(by_characters(), "", [number] * 6)[0].endswith(" end")


def test_the_tokens_of_each_number_are_told():
    text, spans = written(by_characters(), "go [7.00, 8.", [1, 2, 3, 4, 5, -6])
    assert [text[first:last] for _, first, last in spans] == ["3.00", "4.00", "5.00", "-6.00"]
    assert [index for index, _, _ in spans] == [2, 3, 4, 5], "half of the second number is known already"


def test_predicted_numbers_are_read_and_others_kept():
    drafter = by_characters(replace(SPEC, pairs="speed_curvature"))
    draft = drafter.write([], [1, 2, 3, 4, 5, 6])
    model = [ord(each) for each in "go [1.00, 2.50], [x.00, 4.00], [5.00, 6.25] end"]
    assert drafter.read(draft, model, [1, 2, 3, 4, 5, 6]) == [1, 2.5, 3, 4, 5, 6.25]


def test_positions_move_along_with_those_that_the_model_changed():
    straight, wish = [5.0, 0.0, 10.0, 0.0, 15.0, 0.0, 20.0, 0.0], [5.0, 0.0, 9.0, 0.0, 14.5, 0.0, 20.0, 0.0]
    moved = moved_along(straight, wish)
    assert moved[:5] == [5.0, 0.0, 9.0, 0.0, pytest.approx(14.5 - 1.5)], "by the change of -1 m and half of its growth"
    assert moved[6] == pytest.approx(20.0 - 1.5 * 2.0 + 0.5 * 1.0)
    assert moved[1::2] == [0.0] * 4, "the other axis stays"
    assert moved_along(straight, straight) == straight
    slightly = [5.0, 0.0, 10.0, 0.0, 15.0, 0.1, 20.0, 0.0]
    assert moved_along(straight, slightly) == slightly, "what is nearly right is left alone"
    assert moved_along([math.inf, 0.0] * 4, slightly) == slightly


def test_only_positions_move_along():
    wish = "go [1.00, 2.00], [9.00, 4.00], [5.00, 6.00] end"
    for pairs, last in (("xy", 5.0 + 1.5 * 6.0), ("speed_curvature", 5.0)):
        drafter = by_characters(replace(SPEC, pairs=pairs))
        draft = drafter.write((), [1, 2, 3, 4, 5, 6])
        assert drafter.read(draft, [ord(each) for each in wish], [1, 2, 3, 4, 5, 6])[4] == last


def test_free_text_is_not_drafted_and_what_follows_it_is():
    spec = AnswerSpec(preamble="go ", points=1, interval_s=0.5, closing="", max_new_tokens=64, skip_until="go ")
    assert written(by_characters(spec), "I think", [1, 2]) == ("I think", ())
    assert written(by_characters(spec), "I think: go ", [1, 2])[0] == "I think: go [1.00, 2.00]"


def test_a_beginning_that_the_model_was_given_is_not_drafted_again():
    assert written(by_characters(prefix="go ["), "", [1, 2, 3, 4, 5, 6])[0].startswith("1.00, 2.00]")


@pytest.fixture(scope="module")
def qwen():
    return qwen_tokenizer()


@pytest.mark.parametrize("template", ["impromptu-1v", "impromptu-waymo"])
def test_drafts_of_the_right_numbers_are_what_greedy_encoding_writes(qwen, template):
    """With tokens that merge across the format's boundaries: each beginning of 500 answers is completed exactly."""
    spec = text_answer(TEMPLATES[template]().spec)
    random = np.random.default_rng(0)

    def encode(text):
        return qwen.encode(text, add_special_tokens=False).ids

    drafter = TextDrafter(spec, encode, lambda token: qwen.decode([token]))
    for _ in range(500):
        pairs = random.normal(0, 20, (spec.points, 2)).round(random.integers(0, 3))
        ids = encode(answer_text(pairs, spec))
        known = ids[: random.integers(1, len(ids))]
        assert list(drafter.write(known, pairs.flatten().tolist()).ids) == ids


@pytest.mark.parametrize("model_type", sorted(TINY))
@torch.inference_mode()
def test_drafts_change_no_token_in_any_family(model_type, tmp_path_factory, ego_history):
    folder = build_family_vla(tmp_path_factory.mktemp("drafts") / model_type, model_type, layers=2)
    vla = load_vla(folder)
    generator, (_, visual, prompt) = Generator(vla), scene_of(vla, ego_history)
    every = torch.arange(visual.total)
    prefilled = generator.prefill(NoPruner(), [prompt], [visual], [every], len(every))
    plain = generator.decode(prefilled)[0]
    for wrong in ([], [1], [2, 5], list(range(1, 40))):
        drafter = ReplayedDrafter(plain.ids, wrong, 0)
        apart = generator.prefill(NoPruner(), [prompt], [visual], [every], len(every))
        draft = drafter.write((), ())
        inputs = ([prompt], [visual], [every], len(every), len(plain.ids), draft)
        together = NoPruner().prefill(generator.language, *inputs)
        for prefilled, more in ((apart, 1), (together, 0)):
            for _ in range(2):  # a prefilled prompt may be used again
                drafted = generator.decode_drafted(prefilled, drafter, ())
                assert drafted.ids == plain.ids
                assert wrong[2:] or drafted.forwards <= len(wrong) + more


@torch.inference_mode()
def test_the_shipped_model_writes_the_same_in_a_third_of_the_forwards(ego_history):
    pipeline = open_pipeline(drop=0.5)
    generator = Generator(pipeline.vla)
    _, visual, prompt = scene_of(pipeline.vla, ego_history)
    keep = pipeline.check_drop(0.5)
    kept = pipeline.pruner.choose(generator.context(pipeline.pruner, visual, prompt), keep).indices
    plain = generator.decode(generator.prefill(pipeline.pruner, [prompt], [visual], [kept], keep))[0]
    spec, random = pipeline.vla.spec.answer, np.random.default_rng(0)
    likely = generator.answer.numbers(constant_turn(ego_history.now, spec.points, spec.interval_s))
    for draft in (likely, [0.0] * 12, random.normal(0, 50, 12).tolist(), [np.nan] * 12):
        prefilled = generator.prefill(pipeline.pruner, [prompt], [visual], [kept], keep, draft)
        drafted = generator.decode(prefilled, draft)[0]
        assert drafted.ids == plain.ids
        assert generator.decode(prefilled)[0].ids == plain.ids, "a draft in the prefill does not stay in the cache"
    prefilled = generator.prefill(pipeline.pruner, [prompt], [visual], [kept], keep, likely)
    assert 0 <= generator.decode(prefilled, likely)[0].forwards <= len(plain.ids) / 4


def test_a_constant_turn_ends_where_braking_ends_it():
    hard = constant_turn(EgoState(0, 0, 0, 0, 2.0, -4.0, 0.0), 4, 0.5)
    halt = np.log(2.0)  # s: the speed is 2 - 4 (1 - exp(-t))
    steps = np.linspace(0, halt, 10_001)
    np.testing.assert_allclose(hard[:, 0][1:], np.trapz(4 * np.exp(-steps) - 2, steps), atol=1e-6)
    assert 0 < hard[0, 0] < hard[1, 0]
    soft = constant_turn(EgoState(0, 0, 0, 0, 4.0, -1.0, 0.0), 4, 0.5)
    assert (np.diff(soft[:, 0]) > 1.4).all(), "a soft one fades before the vehicle stands"


def test_a_constant_turn_keeps_its_yaw_rate():
    left = constant_turn(EgoState(0, 0, 0, 0, 1.0, 0.0, np.pi / 2), 2, 1.0)
    np.testing.assert_allclose(left, [[2 / np.pi, 2 / np.pi], [0, 4 / np.pi]], atol=1e-12)


def test_the_shipped_format_states_waypoints_as_its_numbers():
    form = answer_format(load_vla(default_vla_dir()))
    assert form.numbers(np.array([[1.0, 2.0]] * 6))[:2] == [1.0, 2.0]


def test_drafts_by_a_template_are_those_of_the_tokenizer(ego_history):
    """Of the shipped VLA's answers, in which each number is one token; beginnings of every length, right and wrong."""
    vla = load_vla(default_vla_dir())
    drafter, random = answer_format(vla).drafter, np.random.default_rng(5)
    drafter.write((), [0.0] * 12)
    assert drafter._template is not None
    filled = 0
    for _ in range(40):
        numbers = random.uniform(-60, 60, 12).round(random.integers(0, 4)).tolist()
        whole = drafter._written((), random.uniform(-60, 60, 12).tolist()).ids
        for count in range(len(whole)):
            known = list(whole[:count])
            if count and random.random() < 0.3:
                known[random.integers(count)] = int(random.integers(0, 2000))
            by_template = drafter._filled(known, numbers)
            if by_template is not None:
                filled += 1
                assert by_template == drafter._written(known, numbers), (known, numbers)
    assert filled > 500


def test_numbers_of_several_tokens_have_no_template():
    drafter = by_characters()
    assert len(drafter.write((), [1, 2, 3, 4, 5, 6]).ids) == 47 and drafter._template is None
