"""Imitation training of a tiny VLA: what it reads, what it learns from, how it resumes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fastdrive_node.errors import InputError
from fastdrive_node.families.loading import load_vla
from fastdrive_node.planning.answer_format import format_answer
from fastdrive_training.data.nuscenes.keyframes import KeyframeDataset
from fastdrive_training.engine.config import RecipeError
from fastdrive_training.engine.loop import Run, TrainingError, fit
from fastdrive_training.vla.data import IGNORE, NO_GAP_M, cell_labels, prepare
from fastdrive_training.vla.train import (
    Planner,
    dense_loss,
    encode_some,
    keep_some,
    train_language,
    train_tower,
)
from tests.training.tiny_nuscenes import write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "toy", scenes=1, keyframes=10)


@pytest.fixture(scope="module")
def data(dataset, tiny_vla, tmp_path_factory):
    return prepare(tiny_vla, KeyframeDataset(dataset), tmp_path_factory.mktemp("cache"))


def test_only_keyframes_with_a_future_are_prepared(data) -> None:
    assert len(data) == 4  # ten keyframes at 2 Hz, of which the last six have less than 3 s before them
    assert data.pixels.shape == (4, 6, 3, 112, 224)
    assert (data.lights == IGNORE).all()
    assert (data.gaps == NO_GAP_M).all()


def test_prepared_answers_are_the_futures_as_text(data, tiny_vla) -> None:
    text = tiny_vla.tokenizer.decode(data.answers[1].tolist())
    assert text == format_answer(data.futures[1], tiny_vla.spec.answer) + "<|im_end|>"


def test_prompts_come_with_the_whole_history_and_with_shorter_ones(data, tiny_vla) -> None:
    texts = [tiny_vla.tokenizer.decode(row.tolist()) for row in data.prompts[3]]
    unknown = [text.count("?") for text in texts]
    assert unknown[1] > unknown[2] > unknown[3] >= unknown[0]


def test_a_second_run_reads_what_the_first_prepared(dataset, tiny_vla, tmp_path) -> None:
    first = prepare(tiny_vla, KeyframeDataset(dataset), tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    again = prepare(tiny_vla, KeyframeDataset(dataset), tmp_path)
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert np.array_equal(first.pixels, again.pixels)


def test_a_dataset_without_futures_is_refused(tiny_vla, tmp_path) -> None:
    short = write_dataset(tmp_path / "short", scenes=1, keyframes=3)
    with pytest.raises(InputError, match="no keyframe has a future"):
        prepare(tiny_vla, KeyframeDataset(short), tmp_path / "cache")


def test_a_small_thing_names_its_cell() -> None:
    mask = np.full((112, 224), 2, np.uint8)
    mask[3:5, 3:9] = 10  # 2 x 4 of the 7 x 7 px of the first cell
    cells = cell_labels(mask, 16, 32)
    assert cells[0, 0] == 10
    assert (cells == 2).sum() == 16 * 32 - 1


def test_dense_labels_meet_the_token_of_their_place(tiny_vla) -> None:
    """Scores that name the class of exactly one fine cell cost least where the labels have it at that cell."""
    planner = Planner(tiny_vla)
    token = 1 * 8 + 3  # row 1, column 3 of the merged grid
    with torch.no_grad():
        planner.classes.weight.zero_()
        planner.classes.bias.zero_()
        planner.classes.weight.view(4, 4, 16, -1)[2, 1, 9, 0] = 20.0  # fine row 2, fine column 1 of a cell: class 9
        planner.classes.bias.view(4, 4, 16)[..., 0] = 10.0
    tokens = torch.zeros(1, 192, tiny_vla.width)
    tokens[0, token, 0] = 1.0
    labels = torch.zeros(1, 6, 16, 32, dtype=torch.uint8)
    labels[0, 0, 4 * 1 + 2, 4 * 3 + 1] = 9
    right = dense_loss(planner, tokens, labels, [0])
    labels[0, 0] = labels[0, 0].roll(1, 0)
    assert right < 0.01 < dense_loss(planner, tokens, labels, [0])


def test_encoding_keeps_the_order_of_the_cameras(data, tiny_vla) -> None:
    planner = Planner(tiny_vla)
    pixels = torch.from_numpy(np.array(data.pixels[:2]))
    tokens, learning = encode_some(planner, pixels, np.random.default_rng(0))
    whole = planner.vision.encode_patches(planner.vision.patches(pixels.flatten(0, 1))).reshape(2, 192, -1)
    assert torch.allclose(tokens, whole, atol=1e-5)
    assert set(learning[:3]) == {0, 1, 5}
    assert len(learning) == 4


def _recipe(dataset, folder, **more) -> dict:
    return {"dataset": str(dataset), "cache": str(folder / "cache"), "batch": 2, "split": "train", **more}


@pytest.fixture(scope="module")
def long_dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "long", scenes=2, keyframes=12)


def test_random_pruning_does_not_look_at_the_foreground() -> None:
    labels = np.zeros((400, 6, 16, 32), np.uint8)
    labels[:, 0] = 2  # the first camera is all road
    shares = {}
    for name in ("foreground", "random", "mixed"):
        kept = keep_some(labels, (4, 8), np.random.default_rng(0), name).numpy().reshape(400, 6, 32)
        assert 0.3 < kept.all(axis=(1, 2)).mean() < 0.4
        shares[name] = kept[:, 0].mean() - kept[:, 1:].mean()
    assert abs(shares["random"]) < 0.03 < shares["mixed"] < shares["foreground"] - 0.05


def test_both_stages_run_and_write_a_vla_that_loads(long_dataset, tmp_path) -> None:
    figures = train_tower(_recipe(long_dataset, tmp_path, out=str(tmp_path / "tower"), steps=3), False)
    assert {"dense", "numbers", "words", "waypoints", "light", "gaps", "images_per_s"} <= set(figures)
    recipe = _recipe(long_dataset, tmp_path, out=str(tmp_path / "out"), tower_run=str(tmp_path / "tower"), steps=3)
    train_language({**recipe, "pruned_by": "none"}, False)
    train_language(recipe, False)
    before, after = load_vla(tmp_path / "tower" / "vla"), load_vla(tmp_path / "out" / "vla")
    assert before.encoder_fingerprint == after.encoder_fingerprint
    rows = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert rows == []  # one line every 50 steps


def test_an_unknown_recipe_key_is_named(long_dataset, tmp_path) -> None:
    with pytest.raises(RecipeError, match="unknown key stepps"):
        train_tower(_recipe(long_dataset, tmp_path, out=str(tmp_path), stepps=3), False)


class _Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.line = torch.nn.Linear(3, 1)

    def losses(self, indices, rng):
        x = torch.from_numpy(rng.normal(size=(len(indices), 3))).float()
        return {"fit": (self.line(x) - torch.from_numpy(indices)[:, None]).square().mean()}


def _fit(folder, steps, resume=False, save_every=4):
    model = _Line()
    run = Run(folder, steps=8, batch=4, rate=0.1, seed=3, warmup=2, save_every=save_every)
    run.steps, wanted = steps, 8
    if steps < wanted:  # an interrupted run: same schedule, stops early
        original = run.set_rate
        run.set_rate = lambda optimiser: (
            setattr(run, "steps", wanted),
            original(optimiser),
            setattr(run, "steps", steps),
        )
    fit(run, model, list(model.parameters()), model.losses, 40, resume)
    return model.line.weight.detach().clone()


def test_a_resumed_run_ends_like_an_unbroken_one(tmp_path) -> None:
    unbroken = _fit(tmp_path / "a", 8)
    _fit(tmp_path / "b", 4)
    assert torch.equal(_fit(tmp_path / "b", 8, resume=True), unbroken)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(tmp_path) -> None:
    model = _Line()
    run = Run(tmp_path, steps=8, batch=4, rate=0.1, seed=3)
    bad = lambda indices, rng: {"fit": model.line.weight.sum() * float("nan")}  # noqa: E731
    with pytest.raises(TrainingError, match=r"step 0: loss nan on keyframes \["):
        fit(run, model, list(model.parameters()), bad, 40, False)
    assert not (tmp_path / "checkpoint.pt").exists()
