"""Parts of a VLA that an engine supplies: their weights are not read."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdrive_node.errors import ModelError
from fastdrive_node.families import LANGUAGE, PARTS, VISION, load_vla
from fastdrive_node.types import Command


@pytest.fixture
def without(tiny_dir, tmp_path):
    """Makes a copy of a VLA whose file lacks the weights with a prefix."""

    def make(*prefixes):
        folder = shutil.copytree(tiny_dir, tmp_path / "vla")
        weights = load_file(folder / "model.safetensors")
        kept = {name: tensor for name, tensor in weights.items() if not name.startswith(prefixes)}
        assert len(kept) < len(weights)
        save_file(kept, folder / "model.safetensors", {"format": "pt"})
        return folder

    return make


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_a_vision_engine_needs_no_weights_of_the_tower(without, tiny_vla, ego_history):
    folder = without("visual.")
    with pytest.raises(ModelError, match="missing keys in the weights"):
        load_vla(folder)
    vla = load_vla(folder, parts=PARTS - {VISION})
    assert vla.model.model.visual is None
    assert count(vla.model) == count(tiny_vla.model) - count(tiny_vla.model.model.visual)
    state, expected = vla.model.model.language_model.state_dict(), tiny_vla.model.model.language_model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_a_language_engine_needs_no_weights_of_the_language_layers(without, tiny_vla):
    folder = without("model.layers.")
    with pytest.raises(ModelError, match="missing keys in the weights"):
        load_vla(folder)
    vla = load_vla(folder, parts=PARTS - {LANGUAGE})
    assert not list(vla.model.model.language_model.layers)
    assert (vla.grid, vla.tokens, vla.width) == (tiny_vla.grid, tiny_vla.tokens, tiny_vla.width)
    assert vla.family.language_sizes(vla.config) == tiny_vla.family.language_sizes(tiny_vla.config)
    images = torch.zeros(6, 112, 224, 3, dtype=torch.uint8).numpy()
    ours, theirs = (each.torch_vision() for each in (vla, tiny_vla))
    with torch.inference_mode():
        assert torch.equal(ours.encode(ours.preprocess(images)).rows, theirs.encode(theirs.preprocess(images)).rows)


def test_positions_and_prompt_need_no_weights(tiny_dir, tiny_vla, ego_history):
    from fastdrive_node.families import build_prompt

    bare = load_vla(tiny_dir, parts=frozenset())
    ours, theirs = (build_prompt(vla, ego_history, Command.LEFT) for vla in (bare, tiny_vla))
    assert ours.text == theirs.text and torch.equal(ours.position_ids, theirs.position_ids)
    ids = ours.position_ids[:, None]
    own = bare.family.language_position_inputs(bare, ids)
    assert all(map(torch.equal, own, tiny_vla.torch_language().position_inputs(ids)))
