"""Training of a VLA with a TokenPacker: what the language model reads in it, what is written, how it resumes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastdrive_node.errors import ModelError, TrainingError
from fastdrive_node.families import VisualTokens, load_vla
from fastdrive_node.files import TOKEN_PACKER_FILE
from fastdrive_node.pruning.pruner import PruningContext
from fastdrive_node.pruning.registry import make_pruner
from fastdrive_node.pruning.token_packer import load_packer
from fastdrive_training.engine.checkpoint import CHECKPOINT
from fastdrive_training.engine.config import RecipeError, load_recipe, parse_recipe
from fastdrive_training.vla import train_planner
from fastdrive_training.vla.planner import VlaBatch
from fastdrive_training.vla.train_planner import LanguagePlanner, LanguageRecipe
from tests.generation import choose, random_packer
from tests.training.tiny_nuscenes import write_dataset

KEYS = {"batch": 2, "workers": 0, "tensorboard": False, "device": "cpu", "precision": "float32", "warmup_steps": 1}
PACKED = {"pruned_by": "none", "packed": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "d", scenes=2, keyframes=12)


@pytest.fixture
def start(tiny_dir, tmp_path) -> Path:
    """A VLA directory without a packer."""
    folder = shutil.copytree(tiny_dir, tmp_path / "start")
    (folder / TOKEN_PACKER_FILE).unlink()
    return folder


@pytest.fixture
def recipe(data, start, tmp_path) -> dict:
    paths = {"dataset": data, "start": start, "out": tmp_path / "o", "cache": data.parent / "cache"}
    return {**KEYS, **PACKED, **{key: str(path) for key, path in paths.items()}, "steps": 4, "checkpoint_every": 2}


class _Cut(Exception):
    pass


def test_packer_and_language_half_are_trained_and_a_resumed_run_ends_like_an_unbroken_one(
    recipe, start, tmp_path, monkeypatch
) -> None:
    whole = train_planner.train({**recipe, "out": str(tmp_path / "whole")}, False)
    forward, calls = LanguagePlanner.forward, []

    def cut(planner, batch):
        calls.append(batch)
        if len(calls) == 4:  # in the step after the one that follows the checkpoint
            raise _Cut
        return forward(planner, batch)

    monkeypatch.setattr(LanguagePlanner, "forward", cut)
    with pytest.raises(_Cut):
        train_planner.train(recipe, False)
    resumed = train_planner.train(recipe, True)
    assert {**resumed, "images_per_s": 0} == {**whole, "images_per_s": 0}
    for name in ("model.safetensors", TOKEN_PACKER_FILE):
        ours, theirs = (load_file(tmp_path / run / "vla" / name) for run in ("o", "whole"))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    trained, before = (load_vla(folder) for folder in (tmp_path / "o" / "vla", start))
    assert trained.encoder_fingerprint == before.encoder_fingerprint
    last = load_packer(trained).state_dict()["mlp.2.weight"]
    assert last.abs().max() > 0  # it starts at zero
    assert not torch.equal(trained.model.lm_head.weight, before.model.lm_head.weight)
    shutil.copy(trained.path / TOKEN_PACKER_FILE, start)  # which the run began from
    with pytest.raises(ModelError, match="language: trained with the language model"):
        load_packer(before)


def test_the_language_model_reads_in_training_what_the_pruner_gives_it(tiny_vla, monkeypatch) -> None:
    """The same tokens at the same places of the prompt, which have their positions."""
    pruner = make_pruner("tokenpacker", tiny_vla)
    planner = LanguagePlanner(tiny_vla, packer=random_packer(tiny_vla.width))
    tokens, seen = torch.randn(2, 192, tiny_vla.width), {}
    monkeypatch.setattr(planner, "plan_losses", lambda shown, batch: seen.update(shown=shown, kept=batch.kept) or {})
    with torch.no_grad():
        planner(VlaBatch(tokens, *[torch.zeros(2)] * 5, labels=()))
    for sample, shown, kept in zip(tokens, seen["shown"], seen["kept"], strict=True):
        visual = VisualTokens.from_raster(sample.view(6, 32, -1), tiny_vla.grid)
        given = pruner.tokens(visual, choose(pruner, PruningContext(visual), 48))
        assert torch.equal(kept.nonzero().flatten(), given.indices)
        torch.testing.assert_close(shown[kept], given.rows)


def test_a_run_from_a_packed_vla_goes_on_with_its_packer(recipe, tiny_dir, tmp_path) -> None:
    figures = train_planner.train({**recipe, "start": str(tiny_dir), "steps": 1, "rate": 1e-6}, False)
    assert figures["left_out"] == {}
    ours, theirs = (load_file(folder / TOKEN_PACKER_FILE) for folder in (tmp_path / "o" / "vla", tiny_dir))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in theirs)
    assert not torch.equal(ours["query.weight"], theirs["query.weight"])  # it is trained on


def test_a_run_without_packing_from_a_packed_vla_leaves_its_packer_out(recipe, tiny_dir, tmp_path) -> None:
    train_planner.train({**recipe, "packed": False, "start": str(tiny_dir), "steps": 1}, False)
    written = {file.name for file in (tmp_path / "o" / "vla").iterdir()}
    assert {file.name for file in tiny_dir.iterdir()} - written == {TOKEN_PACKER_FILE}


def test_packed_sets_are_never_pruned_or_of_other_forms() -> None:
    for keys in ({"pruned_by": "foreground"}, {"sets": {"sizes": [[2, 2]]}}):
        with pytest.raises(RecipeError, match="packed: packed sets are never pruned or of other forms; set"):
            parse_recipe(LanguageRecipe, {"dataset": "d", "out": "o", **PACKED, **keys})
    settings = parse_recipe(LanguageRecipe, load_recipe("tiny_language_packed")[1])
    assert settings.packed and settings.start == "models/tiny_wide" and not settings.sets.active


def test_runs_of_before_the_key_are_resumed(recipe, tmp_path) -> None:
    plain = {**recipe, "packed": False, "steps": 2}
    train_planner.train(plain, False)
    stored = torch.load(tmp_path / "o" / CHECKPOINT, weights_only=True)
    assert '"packed"' not in stored["identity"]
    with pytest.raises(TrainingError, match="packed was None in that run, now it is True; set it back"):
        train_planner.train({**plain, "packed": True}, True)
