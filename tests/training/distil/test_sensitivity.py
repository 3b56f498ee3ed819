"""What the teacher says: the change of its answer with each token, one keyframe at a time, kept on disk."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastdrive_node.errors import ModelError
from fastdrive_node.families import VisualTokens
from fastdrive_training.data.adapters import open_source
from fastdrive_training.data.token_cache import encode_keyframes, load_images
from fastdrive_training.distil.sensitivity import Teacher
from fastdrive_training.distil.targets import filled, shares, target
from tests.training.tiny_nuscenes import write_dataset

NUMBERS = [0, 3]


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    source = open_source(write_dataset(tmp_path_factory.mktemp("data") / "d", scenes=1, keyframes=12), "train")
    return [source[number] for number in NUMBERS]


@pytest.fixture(scope="module")
def tokens(tiny_vla, items):
    images = [load_images(item, tiny_vla.spec.cameras) for item in items]
    return encode_keyframes(tiny_vla.torch_vision(), images).flatten(1, 2).clone()


def test_it_is_the_derivative_of_the_answer_with_each_token(tiny_vla, items, tokens) -> None:
    """Against differences of the node's own language model when a token grows or shrinks by a hundredth."""
    teacher = Teacher(tiny_vla, draws=1, seed=5)
    found = teacher.sensitivity(tokens[:1], items[:1], NUMBERS[:1])[0]
    question, language = teacher.prompt(items[0]), tiny_vla.torch_language()
    length = len(question.ids) - question.answer + 1

    @torch.inference_mode()
    def logits(rows):
        visual = VisualTokens.from_raster(rows.view(6, 32, -1), tiny_vla.grid)
        given = [
            language.position_inputs(part[:, None])
            for part in question.positions.split([length, question.answer - 1], 1)
        ]
        ids = question.ids[None]
        first, cache = language.prefill(ids[:, :length], [question.visual], [visual], given[0], question.answer)
        return torch.cat([first, language.extend(ids[:, length:], given[1], cache)], 1)[0].double().log_softmax(-1)

    labels = teacher._sample(logits(tokens[0]).float(), NUMBERS[0], 0)
    for token in (int(found.argmax()), int(found.argsort()[96]), 191):
        steps = []
        for scale in (1.02, 0.98):
            changed = tokens[0].clone()
            changed[token] *= scale
            steps.append(float(logits(changed).gather(1, labels[:, None]).sum()))
        assert float(found[token]) == pytest.approx(abs(steps[0] - steps[1]) / 0.04, rel=0.05, abs=2e-3)


def test_a_value_does_not_depend_on_what_runs_together(tiny_vla, items, tokens) -> None:
    teacher = Teacher(tiny_vla, draws=2, seed=0)
    both = teacher.sensitivity(tokens, items, NUMBERS)
    alone = teacher.sensitivity(tokens[1:], items[1:], NUMBERS[1:])
    torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-6)
    assert not torch.allclose(
        Teacher(tiny_vla, 2, seed=1).sensitivity(tokens[1:], items[1:], NUMBERS[1:]), alone, rtol=0.01
    )


def test_visual_features_of_later_layers_are_refused(tiny_vla) -> None:
    config = SimpleNamespace(vision_config=SimpleNamespace(deepstack_visual_indexes=[1]))
    with pytest.raises(ModelError, match="visual features of later layers are not supported"):
        Teacher(dataclasses.replace(tiny_vla, config=config), 1, 0)


def test_an_array_that_was_cut_off_goes_on_where_it_stopped(tmp_path) -> None:
    asked = []

    def fill(start, stop):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append((start, stop))
        return np.full((stop - start, 3), start)

    with pytest.raises(KeyboardInterrupt):
        filled(tmp_path, ["a"], (7, 3), np.float32, 2, fill)
    array = filled(tmp_path, ["a"], (7, 3), np.float32, 2, lambda start, stop: np.full((stop - start, 3), -start))
    assert array[:, 0].tolist() == [0, 0, 2, 2, -4, -4, -6]
    filled(tmp_path, ["a"], (7, 3), np.float32, 2, fill)  # complete: nothing is asked for
    other = filled(tmp_path, ["b"], (2, 3), np.float32, 2, lambda start, stop: np.ones((2, 3)))
    assert other.sum() == 6 and asked == [(0, 2), (2, 4)]


def test_the_target_is_the_mean_of_the_teachers_and_the_foreground() -> None:
    first, second = np.array([[4.0, 0, 0, 0]]), np.array([[0, 16.0, 16, 0]])
    plan = target([first, second], None, 0.5, 0.0)
    assert plan.tolist() == [[0.5, 0.25, 0.25, 0.0]]
    covered = np.array([[0.0, 0, 0.5, 1.5]])
    assert target([first, second], covered, 0.5, 0.4) == pytest.approx(
        0.6 * plan + 0.4 * np.array([[0, 0, 0.25, 0.75]])
    )
    assert target([first, second], np.zeros((1, 4)), 0.5, 0.4) == pytest.approx(plan)  # no foreground in sight


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_shares_are_of_the_kind_that_they_are_given(make) -> None:
    values = make([[1.0, 3.0], [0.0, 0.0]])
    found = shares(values)
    assert type(found) is type(values) and found.dtype == values.dtype
    assert found.tolist() == [[0.25, 0.75], [0.0, 0.0]]
