"""Recipes: every mistake is one line that names the file and the key."""

from __future__ import annotations

import json
from dataclasses import field

import pytest

from fastdrive_node.cli import main
from fastdrive_node.families import load_vla
from fastdrive_training.distil.config import DistilRecipe
from fastdrive_training.engine.config import (
    Count,
    RecipeError,
    load_recipe,
    parse_recipe,
    recipe_class,
    recipe_schema,
    set_keys,
)
from fastdrive_training.pruner.config import ReconRecipe
from fastdrive_training.vla.train_planner import LanguageRecipe
from fastdrive_training.vla.train_tower import TowerRecipe

COMPLETE = {"kind": "recon_pruner", "vla": "v", "dataset": "d", "out": "o"}


@recipe_class
class Inner:
    rate: float = 0.1
    names: tuple[str, ...] = ()


@recipe_class
class Outer:
    out: str
    steps: Count = 5
    limit: int | None = None
    flag: bool = False
    inner: Inner = field(default_factory=Inner)
    more: tuple[Inner, ...] = ()

    def __post_init__(self) -> None:
        if self.limit == 13:
            raise ValueError("limit: is unlucky")


def test_values_are_converted_and_defaults_stay():
    recipe = parse_recipe(Outer, {"kind": "x", "out": "o", "inner": {"rate": 1, "names": ["a"]}, "limit": None})
    assert recipe == Outer("o", inner=Inner(1.0, ("a",)))


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"out": "o", "stpes": 3}, "unknown key stpes; did you mean steps[?] known are out, steps"),
        ({"out": "o", "inner": {"kind": 1}}, "unknown key inner.kind"),
        ({"out": "o", "more": [{}, {"name": ["a"]}]}, r"unknown key more\[1\]\.name; did you mean more\[1\]\.names"),
        ({"steps": 3}, "missing key out"),
        ({"out": 3}, "out: must be a valid string, is 3"),
        ({"out": "o", "steps": "3"}, "steps: must be a valid integer, is '3'"),
        ({"out": "o", "steps": True}, "steps: must be a valid integer"),
        ({"out": "o", "steps": 0}, "steps: must be greater than or equal to 1, is 0"),
        ({"out": "o", "flag": 1}, "flag: must be a valid boolean"),
        ({"out": "o", "limit": "x"}, "limit: must be a valid integer"),
        ({"out": "o", "limit": 13}, "^limit: is unlucky$"),
        ({"out": "o", "inner": 4}, "inner: must be an object"),
        ({"out": "o", "inner": {"rate": "fast"}}, "inner.rate: must be a valid number"),
        ({"out": "o", "inner": {"rate": True}}, "inner.rate: must be a valid number"),
        ({"out": "o", "inner": {"rate": float("nan")}}, "inner.rate: must be a finite number"),
        ({"out": "o", "inner": {"names": "a"}}, "inner.names: must be a valid list"),
        ({"out": "o", "inner": {"names": [1]}}, r"inner.names\[0\]: must be a valid string"),
    ],
)
def test_mistakes_name_the_key(mapping, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe(Outer, mapping)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "half"}, "precision: must be 'auto', 'float32' or 'bfloat16', is 'half'"),
        ({"loss": {"surrogate": "tanh"}}, "loss.surrogate: must be 'sigmoid' or 'raw'"),
        ({"loss": {"alpha": 2}}, "loss.alpha: must be less than or equal to 1"),
        ({"schedule": {"batch": 0}}, "schedule.batch: must be greater than or equal to 1"),
        ({"schedule": {"rehearsal": 1.0}}, "schedule.rehearsal"),
        ({"decoder_layers": 0}, "decoder_layers"),
        ({"schedule": {"accumulate": 0}}, "schedule.accumulate: must be greater than or equal to 1"),
        ({"schedule": {"ema_decay": 1.0}}, "schedule.ema_decay: must be less than 1"),
        ({"schedule": {"lr": 0}}, "schedule.lr: must be greater than 0"),
        ({"features": "disk"}, "features: must be 'cached' or 'live'"),
        ({"mask": "all"}, "mask: must be 'pruner', 'oracle' or 'random'"),
        ({"loss": {"targets": "depth"}}, "loss.targets: must be 'pixels', 'mask' or 'both'"),
        ({"health": {"on_collapse": "hide"}}, "health.on_collapse: must be 'stop' or 'record'"),
        ({"workers": -1}, "workers: must be greater than or equal to 0"),
        ({"seed": -1}, "seed: must be greater than or equal to 0"),
    ],
)
def test_values_out_of_range_name_the_key(change, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe(ReconRecipe, {**COMPLETE, **change})


def test_set_overrides_nested_keys():
    recipe = {"steps": 1, "inner": {"rate": 1}}
    set_keys(recipe, ["steps=7", "inner.names=[a, b]", "inner.rate=1e-3", "new.key=null"])
    assert recipe == {"steps": 7, "inner": {"rate": 0.001, "names": ["a", "b"]}, "new": {"key": None}}
    with pytest.raises(RecipeError, match="write it as key=value"):
        set_keys(recipe, ["steps"])
    with pytest.raises(RecipeError, match="steps is no group"):
        set_keys(recipe, ["steps.x=1"])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((f"recon_{size}{form}", ReconRecipe) for size in ("tiny", "3b", "7b") for form in ("", "_paper")),
        *((f"distil_{size}{form}", DistilRecipe) for size in ("tiny", "3b", "7b") for form in ("", "_lite", "_plan")),
        *((f"tiny_tower{form}", TowerRecipe) for form in ("", "_wide")),
        *((f"tiny_{name}", LanguageRecipe) for name in ("language", "language_sizes", "language_wide", "drive")),
    ],
)
def test_shipped_recipes_load_by_name_and_parse(name, kind):
    path, content = load_recipe(name)
    assert path.name == f"{name}.yaml"
    parse_recipe(kind, content)


@pytest.mark.parametrize("name", ["recon_3b", "recon_7b"])
def test_full_size_recipes_have_the_papers_numbers(name):
    recipe = parse_recipe(ReconRecipe, load_recipe(name)[1])
    assert (recipe.decoder_layers, recipe.loss.alpha, recipe.loss.ssim_weight) == (6, 0.5, 0.2)
    assert recipe.schedule.lr == 2e-5


@pytest.mark.parametrize("size", ["3b", "7b"])
def test_full_size_recipes_by_the_plan_are_those_at_toy_size_one_keyframe_a_pass(size):
    plan, toy, other = (load_recipe(f"distil_{name}")[1] for name in (f"{size}_plan", "tiny_plan", size))
    assert (plan["objective"], plan["drops"]) == (toy["objective"], toy["drops"])
    assert (plan["teacher_batch"], plan["precision"]) == (1, "bfloat16")
    assert all(plan[key] == other[key] for key in ("vla", "start", "dataset", "keyframes", "steps", "batch"))
    assert plan["out"] != other["out"]


@pytest.mark.parametrize("size", ["tiny", "3b", "7b"])
def test_recipes_of_the_paper_have_nothing_that_it_does_not_state(size):
    recipe = parse_recipe(ReconRecipe, load_recipe(f"recon_{size}_paper")[1])
    assert not (recipe.normalise or recipe.decoder_offset or recipe.loss.balance_regions)
    assert recipe.loss.surrogate == "raw" and (recipe.loss.alpha, recipe.loss.ssim_weight) == (0.5, 0.2)
    schedule = recipe.schedule
    assert (schedule.decoder_pretrain_steps, schedule.rehearsal, schedule.warmup_steps) == (0, 0, 0)
    assert (schedule.lr, schedule.pruner_rate, schedule.ema_decay) == (2e-5, 1, 0)
    images = {"tiny": 3000 * 6}.get(size, 28130 * 6)
    assert schedule.steps * schedule.batch == pytest.approx(10 * images, rel=1e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: recon_pruner\nvla: v\ndataset: d\nout: o\nepochs: 3\n", "unknown key epochs; "),
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


def test_the_schema_of_a_recipe_states_its_constraints(capsys):
    schema = recipe_schema(Outer)
    assert schema["additionalProperties"] is False and schema["required"] == ["out"]
    assert schema["properties"]["steps"] == {"default": 5, "minimum": 1, "title": "Steps", "type": "integer"}
    assert main(["train", "recon_tiny", "--schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["properties"]["precision"]["enum"] == ["auto", "float32", "bfloat16"]


def test_unknown_recipe_file_lists_the_shipped_ones(capsys):
    assert main(["train", "nowhere.yaml"]) == 1
    assert "recon_tiny" in capsys.readouterr().err
