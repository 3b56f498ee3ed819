"""``fastdrive train`` and ``score``, end to end on small written datasets with an untrained VLA."""

from __future__ import annotations

import json

import pytest

from fastdrive_node.cli import main
from fastdrive_node.families import load_vla
from fastdrive_node.pruning.checkpoint import load_pruner
from fastdrive_training.vla.tiny_model import build_tiny_vla
from tests.generation import SHALLOW, untrained_vla
from tests.training.tiny_nuscenes import write_dataset

SPEED = 4.0  # of scene 0; scene 1 drives 1 m/s faster


@pytest.fixture(scope="module")
def vla_dir(tmp_path_factory):
    return untrained_vla(tmp_path_factory.mktemp("vla") / "tiny", SHALLOW)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "d", scenes=2, keyframes=8, speed=SPEED)


def _run(tmp_path, *arguments) -> dict:
    assert main([*map(str, arguments), "--json", str(tmp_path / "figures.json")]) == 0
    return json.loads((tmp_path / "figures.json").read_text())


def _recipe(tmp_path, root, vla_dir, text="") -> str:
    path, cache = tmp_path / "recipe.yaml", root.parent / "cache"
    path.write_text(
        f"kind: recon_pruner\nvla: {vla_dir}\ndataset: {root}\nout: {tmp_path / 'run'}\ncache: {cache}\n"
        f"val_keyframes: 4\ndecoder_layers: 1\n{text}\n"
        "schedule: {decoder_pretrain_steps: 1, steps: 2, batch: 4, lr: 1.0e-3, log_every: 1, checkpoint_every: 2}\n"
        "loss: {ssim_stride: 8}\n"
    )
    return str(path)


def test_training_writes_a_pruner_that_belongs_to_the_encoder(tmp_path, root, vla_dir):
    recipe = _recipe(tmp_path, root, vla_dir)
    figures = _run(tmp_path, "train", recipe)
    assert {"total", "fore", "back", "images_per_s", "auroc", "positive_share"} <= set(figures)
    load_pruner(tmp_path / "run" / "reconpruner.safetensors", load_vla(vla_dir))
    scored = _run(tmp_path, "score", root, "--vla", vla_dir, "--pruner", figures["pruner"], "--split", "val")
    assert scored["keyframes"] == 8 and 0 < scored["auroc"] < 1
    log = (tmp_path / "run" / "log.jsonl").read_text()
    again = _run(tmp_path, "train", recipe, "--resume")  # of a finished run: nothing is left to do
    assert again["total"] == figures["total"]
    assert (tmp_path / "run" / "log.jsonl").read_text() == log


def test_resuming_a_changed_recipe_is_refused(tmp_path, root, vla_dir, capsys):
    recipe = _recipe(tmp_path, root, vla_dir)
    _run(tmp_path, "train", recipe)
    assert main(["train", recipe, "--resume", "--set", "seed=5"]) == 1
    assert "seed was 0 in that run, now it is 5" in capsys.readouterr().err


def test_a_finished_run_is_lengthened_and_says_what_comes_next(tmp_path, root, vla_dir, capsys):
    recipe = _recipe(tmp_path, root, vla_dir)
    _run(tmp_path, "train", recipe)
    text = capsys.readouterr().err
    pruner = tmp_path / "run" / "reconpruner.safetensors"
    assert f"pruner: {pruner}\n" in text and f"--split val --vla {vla_dir} --pruner {pruner}" in text
    begun = (tmp_path / "run" / "log.jsonl").read_text()
    _run(tmp_path, "train", recipe, "--resume", "--set", "schedule.steps=4")
    assert "schedule.steps was 2 in that run, now it is 4: the run is lengthened" in capsys.readouterr().err
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert log.startswith(begun) and [json.loads(line)["step"] for line in log.splitlines()][-2:] == [3, 4]
    assert main(["train", recipe, "--resume", "--set", "schedule.steps=3"]) == 1
    assert "schedule.steps was 4 in that run, now it is 3" in capsys.readouterr().err


def test_collapsed_training_leaves_no_pruner(tmp_path, root, vla_dir, capsys):
    recipe = _recipe(tmp_path, root, vla_dir, "health: {grace_steps: 0, patience_steps: 0, min_positive_share: 0.99}")
    assert main(["train", recipe, "--set", "health.max_positive_share=0.991"]) == 1
    assert "collapsed at joint step" in capsys.readouterr().err
    assert not (tmp_path / "run" / "reconpruner.safetensors").exists()


def test_score_gives_the_figures_of_the_contract(tmp_path, root, vla_dir):
    figures = _run(tmp_path, "score", root, "--vla", vla_dir, "--pruner", vla_dir / "reconpruner.safetensors")
    assert set(figures) == {
        "auroc",
        "average_precision",
        "recall",
        "positive_share",
        "foreground_share",
        "keyframes",
    }
    assert set(figures["recall"]) == {"0.75", "0.5", "0.25"}
    assert figures["keyframes"] == 16
    assert figures["foreground_share"] == pytest.approx(3 / 8)  # the right third, of eight columns
    limited = _run(tmp_path, "score", root, "--vla", vla_dir, "--limit", 2, "--split", "val")
    assert limited["keyframes"] == 2


def test_score_needs_masks_and_the_right_pruner(tmp_path, vla_dir, capsys):
    bare = write_dataset(tmp_path / "bare", scenes=1, keyframes=2, masks=False)
    assert main(["score", str(bare), "--vla", str(vla_dir)]) == 1
    assert "no masks folder" in capsys.readouterr().err
    other = build_tiny_vla(tmp_path / "other", seed=7, size=SHALLOW)
    root = write_dataset(tmp_path / "d", scenes=1, keyframes=2)
    pruner = vla_dir / "reconpruner.safetensors"
    assert main(["score", str(root), "--vla", str(other), "--pruner", str(pruner)]) == 1
    assert "encoder" in capsys.readouterr().err
    assert main(["score", str(root), "--vla", str(other)]) == 1
    assert "no such pruner file" in capsys.readouterr().err


def test_help_of_each_command_has_an_example(capsys):
    for command in ("train", "score"):
        with pytest.raises(SystemExit) as caught:
            main([command, "--help"])
        assert caught.value.code == 0
        assert f"fastdrive {command}" in capsys.readouterr().out
