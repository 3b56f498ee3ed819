"""The commands, end to end on small written datasets with an untrained VLA, and with answers put in its mouth."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from tiny_nuscenes import write_dataset

from fastdrive_node.cli import main
from fastdrive_node.planning.answer import format_answer
from fastdrive_node.planning.decode import Answer
from fastdrive_node.planning.vla import load_vla
from fastdrive_node.pruning.files import load_pruner, save_pruner
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_node.types import CAMERAS, InputError
from fastdrive_training import open_loop
from fastdrive_training.nuscenes_data import KeyframeDataset
from fastdrive_training.open_loop import OpenLoopSettings, constant_velocity, evaluate, other_scenes
from fastdrive_training.tiny_vla import build_tiny_vla

SPEED = 4.0  # of scene 0; scene 1 drives 1 m/s faster


@pytest.fixture(scope="module")
def vla_dir(tmp_path_factory):
    """An untrained VLA with an untrained pruner beside it."""
    path = build_tiny_vla(tmp_path_factory.mktemp("vla") / "tiny", seed=0)
    vla = load_vla(path)
    pruner = ReconPruner.from_config(vla.model.config.text_config)
    save_pruner(path / "reconpruner.safetensors", pruner, vla.encoder_fingerprint)
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "d", scenes=2, keyframes=8, speed=SPEED)


def _run(tmp_path, *words) -> dict:
    assert main([*map(str, words), "--json", str(tmp_path / "figures.json")]) == 0
    return json.loads((tmp_path / "figures.json").read_text())


def _recipe(tmp_path, root, vla_dir, text="") -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"kind: recon_pruner\nvla: {vla_dir}\ndataset: {root}\nout: {tmp_path / 'run'}\ncache: {tmp_path / 'cache'}\n"
        f"val_keyframes: 4\ndecoder_layers: 1\n{text}\n"
        "schedule: {warmup_steps: 1, steps: 2, batch: 4, lr: 1.0e-3, log_every: 1, checkpoint_every: 2}\n"
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
    assert "belongs to another recipe" in capsys.readouterr().err


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
    other = build_tiny_vla(tmp_path / "other", seed=7)
    root = write_dataset(tmp_path / "d", scenes=1, keyframes=2)
    pruner = vla_dir / "reconpruner.safetensors"
    assert main(["score", str(root), "--vla", str(other), "--pruner", str(pruner)]) == 1
    assert "encoder" in capsys.readouterr().err
    assert main(["score", str(root), "--vla", str(other)]) == 1
    assert "no such pruner file" in capsys.readouterr().err


def test_untrained_vla_is_refused_throughout_and_scored_nowhere(tmp_path, root, vla_dir, monkeypatch):
    monkeypatch.setattr(open_loop, "TIMED_SAMPLES", 1)
    figures = _run(tmp_path, "evaluate", root, "--vla", vla_dir, "--drop", "0.25,0.75", "--seeds", 2)
    rows = figures["rows"]
    assert [(row["pruner"], row["drop"], row["seed"]) for row in rows] == [
        ("none", 0.0, 0),
        ("random", 0.25, 0),
        ("random", 0.25, 1),
        ("random", 0.75, 0),
        ("random", 0.75, 1),
        ("reconpruner", 0.25, 0),
        ("reconpruner", 0.75, 0),
        ("constant-velocity", 0.0, 0),
    ]
    assert (figures["samples"], figures["without_future"]) == (4, 12)
    for row in rows[:-1]:
        assert (row["samples"], row["refused"]) == (4, 4)
        assert row["l2_avg_to_t"] == {"1s": None, "2s": None, "3s": None, "avg": None}
        assert row["tokens"] == int(192 * (1 - row["drop"]))
        assert row["prefill_ms"] > 0 and row["decode_ms_per_token"] > 0
    assert "pruner_ms" not in rows[0] and rows[-2]["pruner_ms"] > 0
    assert "collision_polygon" not in rows[0] and "tokens" not in rows[-1]
    assert rows[-1]["refused"] == 0
    assert rows[-1]["l2_avg_to_t"]["avg"] == pytest.approx(0.0, abs=1e-6)  # the scenes go straight at one speed


def _put_answers(monkeypatch, answer_of_keyframe):
    """Every answer becomes what ``answer_of_keyframe(call number)`` says; the pictures' shades are recorded."""
    seen = []

    def speak(language, vla, tokens, kept, prompts):
        seen.extend(float(visual.float().mean()) for visual in tokens)
        return [Answer(answer_of_keyframe(index), ()) for index in range(len(prompts))]

    monkeypatch.setattr(open_loop, "generate_batch", speak)
    monkeypatch.setattr(open_loop, "TIMED_SAMPLES", 0)
    return seen


def test_answers_are_scored_against_the_future_and_refusals_left_out(root, vla_dir, monkeypatch):
    vla, dataset = load_vla(vla_dir), KeyframeDataset(root)
    exact = {scene: constant_velocity(dataset[8 * scene + 1].history) for scene in (0, 1)}
    offset = np.array([0.0, 0.5])
    texts = [
        format_answer(exact[0] + offset, vla.spec.answer),
        "no plan",
        format_answer(exact[1], vla.spec.answer),
        format_answer(exact[1] + [0.0, 60.0], vla.spec.answer),  # grammatical, but no vehicle drives it
    ]
    _put_answers(monkeypatch, texts.__getitem__)
    row = evaluate(dataset, vla, OpenLoopSettings(pruners=("none",)), progress=False)["rows"][0]
    assert (row["samples"], row["refused"]) == (4, 2)
    assert row["l2_avg_to_t"]["avg"] == pytest.approx(0.25, abs=0.01)
    assert row["l2_at_t"]["3s"] == pytest.approx(0.25, abs=0.01)


def test_shuffled_images_come_from_another_scene(root, vla_dir, monkeypatch):
    vla, dataset = load_vla(vla_dir), KeyframeDataset(root)
    samples = [0, 1, 8, 9]
    donors = other_scenes(dataset, samples)
    assert donors == other_scenes(dataset, samples)
    scenes = dataset.scenes
    assert all(scenes[donor] != scenes[sample] for donor, sample in zip(donors, samples, strict=True))
    with pytest.raises(InputError, match="two scenes"):
        other_scenes(dataset, [0, 1])
    own = _put_answers(monkeypatch, lambda _: "no plan")
    evaluate(dataset, vla, OpenLoopSettings(pruners=("none",)), progress=False)
    shuffled = _put_answers(monkeypatch, lambda _: "no plan")
    figures = evaluate(dataset, vla, OpenLoopSettings(pruners=("none",), shuffled=True), progress=False)
    assert figures["images"] == "shuffled"
    by_sample = dict(zip(samples, own, strict=True))
    assert shuffled == pytest.approx([by_sample[donor] for donor in donors], rel=1e-4)


def test_random_rows_repeat_by_seed(root, vla_dir, monkeypatch):
    vla, dataset = load_vla(vla_dir), KeyframeDataset(root)
    kept = []

    def listen(language, vla, tokens, chosen, prompts):
        kept.append([tuple(indices.tolist()) for indices in chosen])
        return [Answer("", ()) for _ in prompts]

    monkeypatch.setattr(open_loop, "generate_batch", listen)
    monkeypatch.setattr(open_loop, "TIMED_SAMPLES", 0)
    settings = OpenLoopSettings(pruners=("random",), drops=(0.5,), seeds=2, batch=2)
    evaluate(dataset, vla, settings, progress=False)
    evaluate(dataset, vla, settings, progress=False)
    assert kept[:4] == kept[4:]
    assert kept[0] != kept[1]  # the two seeds
    assert kept[0] != kept[2]  # the two batches


def test_constant_velocity_is_straight_ahead_at_the_current_speed(root):
    plan = constant_velocity(KeyframeDataset(root)[9].history)
    np.testing.assert_allclose(plan[:, 0], (SPEED + 1) * 0.5 * np.arange(1, 7), atol=1e-6)
    assert (plan[:, 1] == 0).all()


def test_cameras_follow_the_vlas_order(tmp_path, root, vla_dir, monkeypatch):
    shutil.copytree(vla_dir, tmp_path / "reversed")
    spec = json.loads((vla_dir / "vla.json").read_text())
    spec["cameras"] = list(CAMERAS[::-1])
    (tmp_path / "reversed" / "vla.json").write_text(json.dumps(spec))
    asked = []
    read = open_loop.vla_images
    monkeypatch.setattr(open_loop, "vla_images", lambda keyframe, order: asked.append(order) or read(keyframe, order))
    _put_answers(monkeypatch, lambda _: "no plan")
    evaluate(KeyframeDataset(root), load_vla(tmp_path / "reversed"), OpenLoopSettings(("none",), limit=1), False)
    assert asked == [[5, 4, 3, 2, 1, 0]]


def test_dataset_without_futures_and_wrong_arguments_are_refused(tmp_path, root, vla_dir, capsys):
    short = write_dataset(tmp_path / "short", scenes=2, keyframes=3)
    assert main(["evaluate", str(short), "--vla", str(vla_dir), "--pruners", "none"]) == 1
    assert "none of the 6 keyframes has a future of 3 s" in capsys.readouterr().err
    for words, message in (
        (["--pruners", "fastv"], "--pruners: 'fastv' is not known"),
        (["--drop", "1.5"], "--drop: 1.5 is not in [0, 1)"),
        (["--limit", "0"], "--limit"),
        (["--seeds", "0"], "--seeds"),
    ):
        assert main(["evaluate", str(root), "--vla", str(vla_dir), *words]) == 1
        assert message in capsys.readouterr().err


def test_help_of_each_command_has_an_example(capsys):
    for command in ("train", "score", "evaluate"):
        with pytest.raises(SystemExit) as caught:
            main([command, "--help"])
        assert caught.value.code == 0
        assert f"fastdrive {command}" in capsys.readouterr().out
