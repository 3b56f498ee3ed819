"""Runs by recipe: the files they leave, the frozen encoder on the fly, starting weights, and what they refuse."""

from __future__ import annotations

import json
import sys

import cv2
import numpy as np
import pytest
import torch
import yaml

from fastdrive_node.cli import main
from fastdrive_node.errors import InputError
from fastdrive_node.pruning.checkpoint import load_pruner
from fastdrive_node.types import CAMERAS
from fastdrive_training.engine.config import RecipeError, parse_recipe
from fastdrive_training.engine.distributed import Processes, choose_precision
from fastdrive_training.engine.logging import EVENTS, RunLog, read_log
from fastdrive_training.pruner.collapse import CollapseError
from fastdrive_training.pruner.config import ReconRecipe
from fastdrive_training.pruner.train import build_modules, train
from fastdrive_training.pruner.validate import CURVE_POINTS, write_curve
from tests.training.tiny_nuscenes import write_dataset


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "d", scenes=2, keyframes=3)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def recipe(tmp_path, tiny_dir, root, cache):
    return {
        "kind": "recon_pruner",
        "vla": str(tiny_dir),
        "dataset": str(root),
        "out": str(tmp_path / "run"),
        "cache": str(cache),
        "device": "cpu",
        "val_keyframes": 3,
        "decoder_layers": 1,
        "tensorboard": False,
        "workers": 0,
        "loss": {"ssim_stride": 8},
        "schedule": {
            "decoder_pretrain_steps": 1,
            "steps": 2,
            "batch": 4,
            "lr": 1e-3,
            "log_every": 1,
            "evaluate_every": 1,
        },
    }


def test_a_run_leaves_the_files_that_a_report_needs(tmp_path, recipe):
    figures = train(recipe)
    run = tmp_path / "run"
    assert json.loads((run / "figures.json").read_text()) == figures
    assert figures["collapsed"] is None and figures["pruner"] == str(run / "reconpruner.safetensors")
    rows = read_log(run)
    assert [row["phase"] for row in rows] == ["warmup", "joint", "joint"]
    assert {"auroc", "average_precision", "recall", "positive_share"} <= set(rows[-1])

    with np.load(run / "samples.npz", allow_pickle=False) as samples:
        assert int(samples["step"]) == 2
        assert samples["names"].tolist() == ["s1k0", "s1k1"] and samples["cameras"].tolist() == list(CAMERAS)
        for name in ("images", "fore", "back"):
            assert samples[name].shape == (2, 6, 112, 224, 3) and samples[name].dtype == np.uint8
        assert samples["foreground"].shape == (2, 6, 112, 224) and samples["foreground"].dtype == bool
        assert samples["scores"].shape == (2, 6, 4, 8) and samples["scores"].dtype == np.float32
        image = samples["images"][1, 2]
        assert image[:, 160:].min() > 200 and samples["foreground"][0, 0, :, 160:].all()

    curve = json.loads((run / "curve.json").read_text())
    assert curve["step"] == 2 and curve["tokens"] == 3 * 6 * 32 and curve["positives"] == 3 * 6 * 12
    assert curve["auroc"] == figures["auroc"]
    assert len(curve["precision"]) == len(curve["recall"]) <= CURVE_POINTS


def test_the_resolved_recipe_is_a_recipe(tmp_path, recipe):
    train(recipe)
    stored = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert parse_recipe(ReconRecipe, stored) == parse_recipe(ReconRecipe, recipe)
    assert stored["kind"] == "recon_pruner" and stored["schedule"]["rehearsal"] == 0.25
    assert main(["train", str(tmp_path / "run" / "recipe.yaml"), "--resume"]) == 0


def test_the_encoder_on_the_fly_gives_the_losses_of_cached_tokens(tmp_path, recipe):
    train(recipe)
    train({**recipe, "features": "live", "out": str(tmp_path / "live"), "cache": str(tmp_path / "none")})
    assert not (tmp_path / "none").exists()
    live, cached = read_log(tmp_path / "live"), read_log(tmp_path / "run")
    assert [row["total"] for row in live] == pytest.approx([row["total"] for row in cached], rel=1e-3)
    assert live[-1]["gradient"] == pytest.approx(cached[-1]["gradient"], rel=1e-2)
    assert live[-1]["gradient"] != cached[-1]["gradient"]  # the cache rounds to float16


def test_starting_weights_come_from_the_seed_or_the_vlas_layers(recipe, tiny_vla):
    def built(**changes):
        return build_modules(parse_recipe(ReconRecipe, {**recipe, **changes}), tiny_vla)

    pruner, decoder = built(pruner_init=2, decoder_init=0)
    layers = tiny_vla.model.model.language_model.layers
    assert torch.equal(pruner.layer.mlp.up_proj.weight, layers[2].mlp.up_proj.weight)
    assert torch.equal(decoder.layers[0].mlp.up_proj.weight, layers[0].mlp.up_proj.weight)
    assert torch.equal(built()[0].query, built()[0].query)
    assert not torch.equal(built()[0].query, built(seed=1)[0].query)
    with pytest.raises(RecipeError, match=r"pruner_init: .*the VLA has 3"):
        built(pruner_init=9)


@pytest.mark.parametrize("changes", [{"loss": {"targets": "both", "ssim_stride": 8}}, {"mask": "oracle"}])
def test_arms_of_the_ablation_run_by_recipe(tmp_path, recipe, changes):
    figures = train({**recipe, **changes})
    trained = "mask" not in changes
    assert (tmp_path / "run" / "reconpruner.safetensors").exists() == trained
    assert (figures["pruner"] is not None) == trained
    assert (tmp_path / "run" / "samples.npz").exists() == trained


@pytest.mark.parametrize("on_collapse", ["stop", "record"])
def test_a_collapsed_run_says_so_in_its_figures_and_ships_no_pruner(tmp_path, recipe, on_collapse):
    train(recipe)  # leaves a pruner, which must not pass for that of the next run
    limits = {"grace_steps": 0, "patience_steps": 0, "min_positive_share": 0.99, "max_positive_share": 0.991}
    collapsing = {**recipe, "health": {**limits, "on_collapse": on_collapse}}
    if on_collapse == "stop":
        with pytest.raises(CollapseError):
            train(collapsing)
    else:
        assert train(collapsing)["step"] == 2
    figures = json.loads((tmp_path / "run" / "figures.json").read_text())
    assert figures["pruner"] is None
    assert "of the tokens are above zero" in figures["collapsed"]["reason"]
    assert not (tmp_path / "run" / "reconpruner.safetensors").exists()


def test_an_empty_split_is_refused_before_anything_is_written(tmp_path, recipe):
    with pytest.raises(InputError, match="split test has no keyframes"):
        train({**recipe, "train_split": "test"})
    with pytest.raises(InputError, match="split test has no keyframes"):
        train({**recipe, "val_split": "test"})
    assert not (tmp_path / "run").exists()


def test_a_mask_of_another_size_stops_the_run_with_its_file(tmp_path, recipe):
    root = write_dataset(tmp_path / "d", scenes=2, keyframes=3)
    for keyframe in range(3):
        path = root / "masks" / "CAM_FRONT" / f"s0k{keyframe}.png"
        cv2.imwrite(str(path), np.zeros((50, 100), np.uint8))
    schedule = {**recipe["schedule"], "steps": 10}
    with pytest.raises(InputError, match=r"CAM_FRONT/s0k\d\.png is 100x50, its image 224x112: write masks at"):
        train({**recipe, "dataset": str(root), "schedule": schedule})


def test_a_folder_of_images_and_masks_trains_too(tmp_path, recipe):
    rng = np.random.default_rng(0)
    names = [f"{index:02d}" for index in range(6)]
    for place, kind in (("images", 3), ("masks", 1)):
        (tmp_path / "flat" / place).mkdir(parents=True)
        for name in names:
            cv2.imwrite(str(tmp_path / "flat" / place / f"{name}.png"), _random_image(rng, kind))
    (tmp_path / "flat" / "splits.json").write_text(json.dumps({"train": names[:4], "val": names[4:]}))
    figures = train({**recipe, "dataset": str(tmp_path / "flat"), "dataset_kind": "folder"})
    assert figures["keyframes"] == 2 and figures["auroc"] is not None


def _random_image(rng, channels) -> np.ndarray:
    if channels == 3:
        return rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)
    return np.where(np.arange(90) < 30, 1, 0)[None].repeat(60, 0).astype(np.uint8)


def test_the_curve_is_thinned_and_empty_where_one_class_is_missing(tmp_path):
    rng = np.random.default_rng(0)
    coverage = rng.random((10, 2, 300)).astype(np.float32)
    coverage[0, 0, :5] = np.nan
    scores = (coverage + rng.normal(0, 0.2, coverage.shape)).reshape(10, 600)
    scores = np.nan_to_num(scores)
    write_curve(tmp_path, 3, scores, coverage, {"auroc": 0.9, "average_precision": 0.9})
    curve = json.loads((tmp_path / "curve.json").read_text())
    assert 150 < len(curve["recall"]) <= CURVE_POINTS
    assert curve["recall"][0] > 0.98 and curve["recall"][-1] == 0.0 and curve["tokens"] == 5995
    write_curve(tmp_path, 4, scores, np.ones_like(coverage), {"auroc": None, "average_precision": None})
    assert json.loads((tmp_path / "curve.json").read_text())["precision"] == []


def test_tensorboard_events_beside_the_log(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, 0, 2, 4, tensorboard=True)
    for step in range(2):
        log.advance()
        log.write({"step": step, "phase": "joint", "total": 0.5 - step / 10, "recall": {"0.5": 0.9}, "auroc": None})
    log.close()
    events = EventAccumulator(str(tmp_path / EVENTS))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"total", "recall/0.5"}
    assert [(event.step, round(event.value, 3)) for event in events.Scalars("total")] == [(0, 0.5), (1, 0.4)]


def test_without_tensorboard_the_log_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    log = RunLog(tmp_path, 0, 1, 4, tensorboard=True)
    log.write({"step": 0, "total": 1.0})
    log.close()
    assert "tensorboard is not installed" in capsys.readouterr().err
    assert read_log(tmp_path) == [{"step": 0, "total": 1.0}]


def test_a_line_that_was_cut_off_is_no_line(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 0, "total": 1.0}\n{"step": 1, "recall": {"0.5": 0.1}')
    log = RunLog(tmp_path, 1, 3, 4)
    log.write({"step": 1, "total": 2.0})
    log.close()
    assert [row["step"] for row in read_log(tmp_path)] == [0, 1]


def test_device_and_precision_must_be_there(monkeypatch, recipe):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert Processes("cpu").device == cpu and choose_precision("auto", cpu) == "float32"
    for name in ("gpu", "mps", "cuda:99"):
        with pytest.raises(InputError, match="device: "):
            train({**recipe, "device": name})
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert choose_precision("auto", gpu) == "float32"
    with pytest.raises(RecipeError, match="precision: this GPU has no bfloat16"):
        choose_precision("bfloat16", gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert choose_precision("auto", gpu) == "bfloat16"


def test_a_lite_pruner_is_trained_by_the_same_recipe(tmp_path, recipe, tiny_vla):
    figures = train({**recipe, "lite_width": 32})
    pruner = load_pruner(figures["pruner"], tiny_vla)
    assert pruner.layer.width == 32 and pruner.width == 128


def test_a_lite_pruner_cannot_start_as_a_layer_of_the_language_model(recipe):
    with pytest.raises(RecipeError, match="pruner_init: a layer of the VLA does not fit a lite pruner; use null"):
        train({**recipe, "lite_width": 32, "pruner_init": 0})
