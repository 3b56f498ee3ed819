"""Recipes: every mistake is one line that names the file and the key."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest

from fastdrive_node.cli import main
from fastdrive_node.families.loading import load_vla
from fastdrive_training.engine.config import RecipeError, load_recipe, parse_recipe, set_keys
from fastdrive_training.pruner.config import ReconRecipe

COMPLETE = {"kind": "recon_pruner", "vla": "v", "dataset": "d", "out": "o"}


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    out: str
    steps: int = 5
    limit: int | None = None
    flag: bool = False
    inner: Inner = field(default_factory=Inner)


def test_values_are_converted_and_defaults_stay():
    recipe = parse_recipe(Outer, {"kind": "x", "out": "o", "inner": {"rate": "1e-3", "names": ["a"]}, "limit": None})
    assert recipe == Outer("o", inner=Inner(0.001, ("a",)))


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"out": "o", "stpes": 3}, "unknown key stpes; known are out, steps"),
        ({"out": "o", "inner": {"kind": 1}}, "unknown key inner.kind"),
        ({"steps": 3}, "missing key out"),
        ({"out": 3}, "out: must be str, is 3"),
        ({"out": "o", "steps": "3"}, "steps: must be int, is '3'"),
        ({"out": "o", "steps": True}, "steps: must be int"),
        ({"out": "o", "flag": 1}, "flag: must be bool"),
        ({"out": "o", "limit": "x"}, "limit: must be int"),
        ({"out": "o", "inner": 4}, "inner: must be a group of keys"),
        ({"out": "o", "inner": {"rate": "fast"}}, "inner.rate: must be a finite number"),
        ({"out": "o", "inner": {"rate": float("nan")}}, "inner.rate: must be a finite number"),
        ({"out": "o", "inner": {"names": "a"}}, "inner.names: must be a list"),
        ({"out": "o", "inner": {"names": [1]}}, r"inner.names\[0\]: must be str"),
    ],
)
def test_mistakes_name_the_key(mapping, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe(Outer, mapping)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "half"}, "precision: must be one of"),
        ({"loss": {"surrogate": "tanh"}}, "loss.surrogate: must be sigmoid or raw"),
        ({"loss": {"alpha": 2}}, "loss.alpha: must be in 0..1"),
        ({"schedule": {"batch": 0}}, "schedule.batch: must be at least 1"),
        ({"schedule": {"rehearsal": 1.0}}, "schedule.rehearsal"),
        ({"decoder_layers": 0}, "decoder_layers"),
        ({"schedule": {"accumulate": 0}}, "schedule.accumulate: must be at least 1"),
        ({"schedule": {"ema_decay": 1.0}}, r"schedule.ema_decay: must be in \[0, 1\)"),
        ({"schedule": {"lr": 0}}, "schedule.lr: must be above 0"),
        ({"features": "disk"}, "features: must be one of cached, live"),
        ({"mask": "all"}, "mask: must be one of pruner, oracle, random"),
        ({"loss": {"targets": "depth"}}, "loss.targets: must be one of pixels, mask, both"),
        ({"health": {"on_collapse": "hide"}}, "health.on_collapse: must be stop or record"),
        ({"workers": 0}, "workers: must be at least 1"),
        ({"seed": -1}, "seed: must be in"),
    ],
)
def test_values_out_of_range_name_the_key(change, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe(ReconRecipe, {**COMPLETE, **change})


def test_set_overrides_nested_keys():
    recipe = {"steps": 1, "inner": {"rate": 1}}
    set_keys(recipe, ["steps=7", "inner.names=[a, b]", "new.key=null"])
    assert recipe == {"steps": 7, "inner": {"rate": 1, "names": ["a", "b"]}, "new": {"key": None}}
    with pytest.raises(RecipeError, match="write it as key=value"):
        set_keys(recipe, ["steps"])
    with pytest.raises(RecipeError, match="steps is no group"):
        set_keys(recipe, ["steps.x=1"])


def test_shipped_recipes_load_by_name_and_parse():
    for name in ("recon_tiny", "recon_3b", "recon_7b"):
        path, content = load_recipe(name)
        assert path.name == f"{name}.yaml"
        assert content["kind"] == "recon_pruner"
        parse_recipe(ReconRecipe, content)


@pytest.mark.parametrize("name", ["recon_3b", "recon_7b"])
def test_full_size_recipes_have_the_papers_numbers(name):
    recipe = parse_recipe(ReconRecipe, load_recipe(name)[1])
    assert (recipe.decoder_layers, recipe.loss.alpha, recipe.loss.ssim_weight) == (6, 0.5, 0.2)
    assert recipe.schedule.lr == 2e-5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: recon_pruner\nvla: v\ndataset: d\nout: o\nepochs: 3\n", "unknown key epochs; known are"),
        ("kind: recon_pruner\nvla: v\ndataset: d\n", "missing key out"),
        ("kind: recon\n", "kind: must be one of recon_pruner"),
        ("vla: v\n", "kind: must be one of"),
        ("- 1\n", "a recipe is a mapping"),
        ("a: [\n", "no valid YAML"),
    ],
)
def test_train_command_names_file_and_key_in_one_line(tmp_path, capsys, text, message):
    path = tmp_path / "my.yaml"
    path.write_text(text)
    assert main(["train", str(path)]) == 1
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    assert str(path) in error and message in error


def test_tiny_vla_recipe_writes_an_untrained_directory(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(f"kind: tiny_vla\nout: {tmp_path / 'vla'}\nsize: {{layers: 1, tower_depth: 2}}\n")
    assert main(["train", str(path), "--json", str(tmp_path / "f.json")]) == 0
    vla = load_vla(tmp_path / "vla")
    assert vla.model.config.text_config.num_hidden_layers == 1
    assert json.loads((tmp_path / "f.json").read_text())["vla"] == str(tmp_path / "vla")
    assert main(["train", str(path), "--resume"]) == 1


def test_unknown_recipe_file_lists_the_shipped_ones(capsys):
    assert main(["train", "nowhere.yaml"]) == 1
    assert "recon_tiny" in capsys.readouterr().err
