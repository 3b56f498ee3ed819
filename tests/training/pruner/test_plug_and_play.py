"""A pruner belongs to an encoder: trained once, it serves every VLA with that encoder and width, and no other."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdrive_node.cli import main
from fastdrive_node.errors import ModelError
from fastdrive_node.families import load_vla
from fastdrive_node.pruning.checkpoint import load_pruner
from fastdrive_training.data.token_cache import pixel_encoder
from fastdrive_training.pruner.train import train
from fastdrive_training.vla.tiny_model import TinySize, build_tiny_vla
from tests.generation import SHALLOW
from tests.training.tiny_nuscenes import write_dataset

OTHER_LANGUAGE_HALF = replace(SHALLOW, layers=2, heads=2, kv_heads=1, intermediate=192)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "d", scenes=2, keyframes=2)


@pytest.fixture(scope="module")
def pruner_file(tmp_path_factory, tiny_dir, root):
    """Trained, for two steps, on the encoder of the tiny VLA."""
    folder = tmp_path_factory.mktemp("run")
    schedule = {"decoder_pretrain_steps": 1, "steps": 2, "batch": 4, "lr": 1e-3}
    recipe = {
        "vla": str(tiny_dir),
        "dataset": str(root),
        "out": str(folder),
        "features": "live",
        "workers": 0,
        "device": "cpu",
        "decoder_layers": 1,
        "tensorboard": False,
        "loss": {"ssim_stride": 8},
        "schedule": schedule,
    }
    return train(recipe)["pruner"]


@pytest.fixture(scope="module")
def sibling(tmp_path_factory, tiny_dir):
    """A VLA with the tiny VLA's vision tower and a language half that differs in layers, heads and weights."""
    path = build_tiny_vla(tmp_path_factory.mktemp("vla") / "sibling", seed=1, size=OTHER_LANGUAGE_HALF)
    tower = {name: tensor for name, tensor in load_file(tiny_dir / "model.safetensors").items() if "visual." in name}
    weights = load_file(path / "model.safetensors")
    assert tower.keys() == {name for name in weights if "visual." in name}
    save_file({**weights, **tower}, path / "model.safetensors", {"format": "pt"})
    return path


def test_it_serves_another_vla_with_the_same_encoder(tiny_dir, sibling, pruner_file):
    ours, theirs = load_vla(tiny_dir), load_vla(sibling)
    assert ours.encoder_fingerprint == theirs.encoder_fingerprint
    assert ours.model.config.text_config.num_hidden_layers != theirs.model.config.text_config.num_hidden_layers
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 112, 224), dtype=np.uint8))
    scores = []
    for vla in (ours, theirs):
        with torch.inference_mode():
            scores.append(load_pruner(pruner_file, vla)(pixel_encoder(vla)(pixels), vla.grid))
    assert torch.equal(*scores)


def test_both_plan_with_it_and_score_the_same(tmp_path, tiny_dir, sibling, pruner_file, root):
    figures = []
    for vla in (tiny_dir, sibling):
        words = ["score", root, "--split", "val", "--vla", vla, "--pruner", pruner_file, "--json", tmp_path / "f.json"]
        assert main([str(word) for word in words]) == 0
        figures.append(json.loads((tmp_path / "f.json").read_text()))
    assert figures[0] == figures[1]


def test_another_encoder_or_width_is_refused_with_the_reason(tmp_path, pruner_file):
    stranger = load_vla(build_tiny_vla(tmp_path / "stranger", seed=2))
    with pytest.raises(
        ModelError, match=r"encoder: trained on the vision encoder '\w{12}', but .*stranger has '\w{12}'"
    ):
        load_pruner(pruner_file, stranger)
    wider = load_vla(build_tiny_vla(tmp_path / "wider", 0, TinySize(width=192)))
    with pytest.raises(ModelError, match=r"hidden_size: the pruner scores tokens of width 128, but .*gives .*192"):
        load_pruner(pruner_file, wider)
