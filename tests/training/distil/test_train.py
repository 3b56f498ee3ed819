"""Distillation at toy size: it learns what it is shown, its file serves, it resumes, and other encoders are refused."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdrive_node.cli import main
from fastdrive_node.errors import ModelError
from fastdrive_node.families.fingerprint import pruner_fingerprint
from fastdrive_node.pruning.checkpoint import load_pruner, save_pruner
from fastdrive_node.pruning.lite import narrow_sizes
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_training.distil import train as distil
from fastdrive_training.distil.config import DistilRecipe
from fastdrive_training.distil.sensitivity import Teacher
from fastdrive_training.distil.train import start_pruner
from fastdrive_training.distil.trainer import DistilBatches, DistilTrainer, Keyframes, distance, overlap
from fastdrive_training.engine.config import RecipeError
from fastdrive_training.engine.distributed import Processes
from fastdrive_training.vla.tiny_model import build_tiny_vla
from tests.generation import QWEN
from tests.training.pruner.recon_fixtures import GRID, text_config


def _keyframes(count: int = 64) -> Keyframes:
    """Two cameras; the plan depends on the second camera three times as much, and there on tokens that are bright."""
    rng = np.random.default_rng(0)
    bright = rng.random((count, 2, 8)) < 0.3
    tokens = rng.normal(size=(count, 2, 8, 32)).astype(np.float16)
    tokens[..., 0] = 3 * bright
    sensitive = ((0.1 + bright) * np.array([1.0, 3.0])[:, None]).reshape(count, 16).astype(np.float32)
    return Keyframes(tuple(map(str, range(count))), tokens, [sensitive], None, 1.0, 0.0)


def test_scores_learn_the_tokens_and_the_cameras_that_the_plan_depends_on(tmp_path) -> None:
    torch.manual_seed(0)
    recipe = DistilRecipe("vla", "data", str(tmp_path), steps=60, batch=16, rate=1e-2, workers=0, tensorboard=False)
    pruner, processes = ReconPruner(QWEN, text_config(), cameras=("front", "back")), Processes("cpu")
    trainer = DistilTrainer(
        recipe, pruner, DistilBatches(_keyframes(), recipe, processes), GRID, processes, {}, _keyframes()
    )
    before = trainer.judge(_keyframes())
    figures = trainer.run()
    assert figures["held_out"] < 0.3 * before["held_out"]
    assert figures["overlap"]["0.75"] > max(0.8, before["overlap"]["0.75"])
    assert float(pruner.camera_bias.detach().diff()) > 0.3


def test_a_score_s_distance_is_zero_at_the_target_only() -> None:
    wanted = torch.tensor([[0.5, 0.25, 0.25, 0.0]])
    assert distance(wanted.clamp(min=1e-9).log() + 3, wanted).item() == pytest.approx(0, abs=1e-5)
    assert distance(torch.zeros(1, 4), wanted).item() == pytest.approx(0.5 * np.log(2), abs=1e-5)


def test_overlap_counts_the_first_tokens_of_the_target() -> None:
    wanted = torch.arange(8.0)[None]
    assert overlap(wanted, wanted) == {"0.25": 1.0, "0.5": 1.0, "0.75": 1.0}
    assert overlap(-wanted, wanted)["0.5"] == 0.0


class _Cut(Exception):
    pass


def test_a_run_writes_a_pruner_that_serves(recipe, tmp_path, tiny_vla) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"kind": "distil", **recipe, "foreground_weight": 0.2}))
    assert main(["train", str(path)]) == 0
    figures = json.loads((tmp_path / "run" / "figures.json").read_text())
    assert {"total", "held_out", "overlap", "images_per_s", "encoder"} <= set(figures)
    pruner = load_pruner(figures["pruner"], tiny_vla)
    assert pruner.cameras == tiny_vla.spec.cameras and pruner.camera_bias.abs().sum() > 0


def test_a_resumed_run_ends_like_an_unbroken_one_and_asks_no_teacher_again(recipe, tmp_path, monkeypatch) -> None:
    whole = distil.train({**recipe, "out": str(tmp_path / "whole")})
    monkeypatch.setattr(Teacher, "sensitivity", None)
    losses, calls = DistilTrainer.losses, []

    def cut(trainer, part):
        calls.append(part)
        if len(calls) == 4:  # as a power cut, in the step after the one that follows the checkpoint
            raise _Cut
        return losses(trainer, part)

    monkeypatch.setattr(DistilTrainer, "losses", cut)
    with pytest.raises(_Cut):
        distil.train(recipe)
    resumed = distil.train(recipe, True)
    assert len(calls) == 6  # the third step is done again
    assert {**resumed, "images_per_s": 0, "pruner": 0} == {**whole, "images_per_s": 0, "pruner": 0}
    files = [load_file(figures["pruner"]) for figures in (resumed, whole)]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[1])


def test_a_lite_pruner_learns_the_scores_of_another_with_their_sign(tmp_path) -> None:
    torch.manual_seed(0)
    keyframes = _keyframes()
    scores = (2 * keyframes.tokens[..., 0] - 1).reshape(len(keyframes.names), -1).astype(np.float32)
    keyframes = dataclasses.replace(keyframes, sensitive=[], scores=scores)
    keys = {"steps": 60, "batch": 16, "rate": 1e-2, "workers": 0, "tensorboard": False}
    recipe = DistilRecipe("vla", "data", str(tmp_path), scores_of="full", **keys)
    sizes = narrow_sizes(QWEN, text_config(), 16)
    pruner, processes = ReconPruner(QWEN, sizes, token_width=32), Processes("cpu")
    trainer = DistilTrainer(recipe, pruner, DistilBatches(keyframes, recipe, processes), GRID, processes, {}, keyframes)
    figures = trainer.run()
    assert figures["held_out"] < 0.1 * scores.var()
    with torch.inference_mode():
        found = pruner(torch.from_numpy(keyframes.tokens[0].astype(np.float32)), GRID).flatten()
    assert torch.equal(found > 0, torch.from_numpy(scores[0] > 0))


def test_scores_of_another_pruner_need_no_plan_and_no_language_model(recipe, tmp_path, tiny_vla, monkeypatch) -> None:
    torch.manual_seed(2)
    full = ReconPruner(tiny_vla.family, tiny_vla.config.text_config)
    save_pruner(tmp_path / "full.safetensors", full, tiny_vla.encoder_fingerprint)
    monkeypatch.setattr(Teacher, "__init__", None)
    vla = shutil.copytree(recipe["vla"], tmp_path / "vla")
    weights = load_file(vla / "model.safetensors")
    save_file(
        {name: weights[name] for name in weights if ".layers." not in name}, vla / "model.safetensors", {"format": "pt"}
    )
    path = tmp_path / "recipe.yaml"
    keys = {"scores_of": str(tmp_path / "full.safetensors"), "lite_width": 32, "camera_bias": False, "vla": str(vla)}
    path.write_text(json.dumps({"kind": "distil", **recipe, **keys}))
    assert main(["train", str(path)]) == 0
    figures = json.loads((tmp_path / "run" / "figures.json").read_text())
    pruner = load_pruner(figures["pruner"], tiny_vla)
    assert pruner.layer.width == 32 and not pruner.cameras
    assert figures["scores_of"] == pruner_fingerprint(tmp_path / "full.safetensors")
    again = start_pruner(DistilRecipe(**{**recipe, "start": figures["pruner"]}), tiny_vla)  # a start of this width
    assert torch.equal(again.narrow.weight, pruner.narrow.weight)


@pytest.mark.parametrize(
    "keys,reason",
    [
        ({"lite_width": 32, "start": "full"}, "lite_width: the file of start has its width; set one of them"),
        ({"scores_of": "full", "teachers": ["other"]}, "teachers: not with scores_of, which is the whole target"),
        ({"scores_of": "full", "foreground_weight": 0.1}, "foreground_weight: not with scores_of"),
        ({"objective": "plan", "scores_of": "full"}, "objective: plan asks VLAs, and scores_of asks a pruner"),
        ({"objective": "plan", "drops": []}, r"drops: \[\]: give pruning ratios between 0 and 1"),
        ({"objective": "plan", "drops": [0.5, 1]}, r"drops: \[0\.5, 1\.0\]: give pruning ratios between 0 and 1"),
        ({"lite_width": 100}, "lite_width: 100 is not a multiple of the head size 32 below"),
        ({"scores_of": "missing.safetensors"}, r"missing\.safetensors: no such pruner file"),
    ],
)
def test_keys_that_do_not_fit_each_other_are_refused_by_name(recipe, tmp_path, capsys, keys, reason) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"kind": "distil", **recipe, **keys}))
    assert main(["train", str(path)]) == 1
    assert re.search(reason, capsys.readouterr().err)


def test_a_bias_for_each_camera_is_not_lost_on_the_way(recipe, tmp_path, tiny_vla) -> None:
    cameras = tiny_vla.spec.cameras
    full = ReconPruner(tiny_vla.family, tiny_vla.config.text_config, cameras=cameras)
    file = tmp_path / "full.safetensors"
    save_pruner(file, full, tiny_vla.encoder_fingerprint)
    with pytest.raises(RecipeError, match=r"scores_of: .* has a bias for each camera; set camera_bias to true"):
        distil.train({**recipe, "scores_of": str(file), "lite_width": 32, "camera_bias": False})


def test_teachers_count_alike_and_must_share_the_encoder(recipe, tmp_path) -> None:
    other = build_tiny_vla(tmp_path / "other", seed=3)
    with pytest.raises(ModelError, match="teachers: has another encoder or other cameras than"):
        distil.train({**recipe, "teachers": [str(other)]})


def test_it_starts_from_a_pruner_file(recipe, tmp_path, tiny_vla) -> None:
    torch.manual_seed(1)
    file = tmp_path / "start.safetensors"
    save_pruner(file, ReconPruner(tiny_vla.family, tiny_vla.config.text_config, False), tiny_vla.encoder_fingerprint)
    settings = DistilRecipe(**{**recipe, "start": str(file)})
    pruner = start_pruner(settings, tiny_vla)
    assert torch.equal(pruner.query, load_pruner(file, tiny_vla).query) and not pruner.normalise
    assert pruner.camera_bias.tolist() == [0.0] * 6 and pruner.query.requires_grad
    save_pruner(file, pruner, tiny_vla.encoder_fingerprint)
    with pytest.raises(RecipeError, match="has a bias for each camera; set camera_bias to true"):
        start_pruner(DistilRecipe(**{**recipe, "start": str(file), "camera_bias": False}), tiny_vla)


def test_the_bias_of_the_cameras_can_be_trained_alone(recipe, tmp_path, tiny_vla) -> None:
    torch.manual_seed(0)
    start = str(tmp_path / "start.safetensors")
    stored = ReconPruner(tiny_vla.family, tiny_vla.config.text_config)
    save_pruner(start, stored, tiny_vla.encoder_fingerprint)
    recipe = {**recipe, "objective": "plan", "start": start, "trained": "camera_bias"}
    after = load_file(distil.train(recipe)["pruner"])
    assert after.pop("camera_bias").abs().min() > 0
    assert all(torch.equal(after[name], weight) for name, weight in stored.state_dict().items())
    for lacking in ({"start": None}, {"camera_bias": False}):
        with pytest.raises(RecipeError, match="trained: camera_bias needs start"):
            distil.train({**recipe, **lacking})
    alone, all_of_it = DistilRecipe("v", "d", "o", start="s", trained="camera_bias"), DistilRecipe("v", "d", "o")
    assert alone.identity["trained"] == "camera_bias"
    assert "trained" not in all_of_it.identity  # checkpoints of before the key was there serve on
