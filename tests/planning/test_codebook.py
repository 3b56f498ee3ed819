"""Answers of action tokens: a small codebook, rolled out."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer

from fastdrive_node.errors import AnswerError, ModelError
from fastdrive_node.families import load_vla
from fastdrive_node.planning.answer_format import answer_format
from fastdrive_node.planning.codebook import CodebookAnswer, read_codebook, roll_out

AHEAD, LEFT, STOP = [2.0, 0.0, 0.0], [0.0, 0.0, math.pi / 2], [0.0, 0.0, 0.0]
MOTIONS = [AHEAD, LEFT, STOP]
SPEC = {"kind": "codebook", "file": "codebook.safetensors", "points": 4, "interval_s": 0.5, "max_new_tokens": 64}


@pytest.fixture(scope="module")
def folder(tiny_dir, tmp_path_factory):
    """A tiny VLA whose three last unused tokens are actions."""
    folder = shutil.copytree(tiny_dir, tmp_path_factory.mktemp("codebook") / "vla")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(f"<action_{index}>", normalized=False) for index in range(3)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text())
    spare = config["text_config"]["vocab_size"] - tokenizer.get_vocab_size()
    if spare < 0:
        _widen(folder, config, tokenizer.get_vocab_size())
    spec = json.loads((folder / "vla.json").read_text())
    (folder / "vla.json").write_text(json.dumps(spec | {"answer": SPEC}))
    save_file({"motions": torch.tensor(MOTIONS)}, folder / "codebook.safetensors")
    return folder


def _widen(folder, config, size):
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    for name, tensor in weights.items():
        if "embed_tokens" in name or "lm_head" in name:
            weights[name] = torch.cat([tensor, torch.zeros(size - len(tensor), tensor.shape[1])])
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config["text_config"]["vocab_size"] = size
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def answer(folder):
    found = answer_format(load_vla(folder))
    assert isinstance(found, CodebookAnswer)
    return found


def ids_of(answer, *tokens):
    return [answer._tokenizer.convert_tokens_to_ids(token) for token in tokens]


def actions(*indices):
    return [f"<action_{index}>" for index in indices]


def test_motions_are_rolled_out_each_in_the_frame_of_the_one_before():
    trajectory = roll_out(np.array([AHEAD, LEFT, AHEAD, AHEAD]), 0.5)
    assert np.allclose(trajectory.waypoints_m, [[2, 0], [2, 0], [2, 2], [2, 4]])
    assert np.allclose(trajectory.headings_rad, [0, np.pi / 2, np.pi / 2, np.pi / 2]) and trajectory.dt_s == 0.5


def test_action_tokens_become_a_trajectory(answer):
    ids = [*ids_of(answer, *actions(0, 1, 0, 2)), next(iter(answer.stop_ids))]
    assert np.allclose(answer.parse(ids).waypoints_m, [[2, 0], [2, 0], [2, 2], [2, 2]])
    assert answer.text(ids) == "<action_0><action_1><action_0><action_2>"


def test_free_text_may_come_before_the_actions_only(answer):
    words = ids_of(answer, "1", "2")
    assert len(answer.parse([*words, *ids_of(answer, *actions(0, 0, 0, 0))]).waypoints_m) == 4
    for ids in ([*ids_of(answer, *actions(0, 0)), *words, *ids_of(answer, *actions(0, 0))], words, []):
        with pytest.raises(AnswerError):
            answer.parse(ids)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_another_number_of_actions_is_refused(answer, count):
    with pytest.raises(AnswerError, match=f"has {count} action tokens of 4"):
        answer.parse(ids_of(answer, *actions(*[0] * count)))


@pytest.mark.parametrize(
    "tensors, reason",
    [
        ({"other": torch.zeros(3, 3)}, "no tensor 'motions'"),
        ({"motions": torch.zeros(3, 2)}, "has shape"),
        ({"motions": torch.zeros(3, 3, dtype=torch.float64)}, "must be float32"),
        ({"motions": torch.full((3, 3), float("nan"))}, "within 100 m"),
    ],
)
def test_a_file_that_is_no_codebook_is_refused(tmp_path, tensors, reason):
    save_file(tensors, tmp_path / "codebook.safetensors")
    with pytest.raises(ModelError, match=reason):
        read_codebook(tmp_path / "codebook.safetensors")


def test_a_codebook_that_is_larger_than_the_vocabulary_is_refused(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "vla")
    save_file({"motions": torch.zeros(4, 3)}, other / "codebook.safetensors")
    with pytest.raises(ModelError, match="has no token <action_3>"):
        answer_format(load_vla(other))
    (other / "codebook.safetensors").unlink()
    with pytest.raises(ModelError, match=r"missing; vla\.json's answer\.file names it"):
        answer_format(load_vla(other))
