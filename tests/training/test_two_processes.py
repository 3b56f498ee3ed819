"""Two processes over gloo: the same losses as one with the same batch, and all stop at a loss that is no number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from fastdrive_node.families import Vla, load_vla
from fastdrive_node.pruning.checkpoint import load_pruner
from fastdrive_training.distil.train import train as train_distil
from fastdrive_training.engine.logging import read_log
from fastdrive_training.pruner.train import train as train_pruner
from fastdrive_training.vla import train_tower
from tests.training.engine.launcher import launch
from tests.training.tiny_nuscenes import write_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_dir) -> Path:
    """With the runs ``one`` and ``two`` of a pruner, ``plan_one`` and ``plan_two`` of one by the plan, and
    ``tower_one`` and ``tower_two`` of a VLA's first stage."""
    folder = tmp_path_factory.mktemp("runs")
    shared = {"cache": str(folder / "cache"), "device": "cpu", "tensorboard": False}
    short = str(write_dataset(folder / "short", scenes=2, keyframes=3))
    schedule = {"decoder_pretrain_steps": 1, "steps": 3, "batch": 8, "lr": 1e-3, "log_every": 1, "ema_decay": 0.5}
    pruner = {**shared, "vla": str(tiny_dir), "dataset": short, "val_keyframes": 2, "decoder_layers": 1}
    pruner |= {"loss": {"ssim_stride": 4}}
    train_pruner({**pruner, "out": str(folder / "one"), "schedule": schedule})
    schedule["accumulate"] = 2
    split = {"kind": "recon_pruner", **pruner, "out": str(folder / "two"), "schedule": schedule}
    (folder / "pruner.yaml").write_text(yaml.safe_dump(split))

    long = str(write_dataset(folder / "long", scenes=2, keyframes=12))
    tower = {**shared, "dataset": long, "batch": 2, "split": "train", "workers": 0, "precision": "float32"}
    tower |= {"steps": 2, "log_every": 1, "warmup_steps": 1}
    tower["size"] = {"tower_depth": 2, "full_attention_blocks": [1], "layers": 2}
    train_tower.train({**tower, "out": str(folder / "tower_one")}, False)
    split = {"kind": "vla_tower", **tower, "out": str(folder / "tower_two")}
    (folder / "tower.yaml").write_text(yaml.safe_dump(split))
    plan = {**shared, "vla": str(tiny_dir), "dataset": long, "objective": "plan", "keyframes": 6, "val_keyframes": 2}
    plan |= {"steps": 3, "batch": 4, "log_every": 1, "warmup_steps": 1, "workers": 0, "foreground_weight": 0.2}
    train_distil({**plan, "out": str(folder / "plan_one")})
    split = {"kind": "distil", **plan, "out": str(folder / "plan_two"), "teacher_batch": 1}
    (folder / "plan.yaml").write_text(yaml.safe_dump(split))
    launch("tests.training.two_processes", folder, 2)
    return folder


def assert_equal_logs(two: Path, one: Path, without: set[str]) -> None:
    for row, other in zip(read_log(two), read_log(one), strict=True):
        for key in other.keys() - without:
            assert row[key] == pytest.approx(other[key], rel=1e-3, abs=1e-5), (row["step"], key)


def assert_equal_pruners(two: Path, one: Path, vla: Vla) -> None:
    ours, theirs = (load_pruner(run / "reconpruner.safetensors", vla).state_dict() for run in (two, one))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-4, rtol=1e-3)


def test_two_processes_train_a_pruner_with_the_losses_of_one(folder, tiny_vla):
    one, two = folder / "one", folder / "two"
    assert [row["step"] for row in read_log(two)] == list(range(4))
    assert_equal_logs(two, one, {"images_per_s", "recall", "phase"})
    assert_equal_pruners(two, one, tiny_vla)


def test_two_processes_learn_from_the_plan_as_one_does_whose_batch_is_one_pass(folder, tiny_vla):
    one, two = folder / "plan_one", folder / "plan_two"
    assert [row["step"] for row in read_log(two)] == list(range(3))
    assert_equal_logs(two, one, {"images_per_s", "divergence"})
    assert_equal_pruners(two, one, tiny_vla)


def test_two_processes_train_a_vla_with_the_losses_of_one(folder):
    assert_equal_logs(folder / "tower_two", folder / "tower_one", {"images_per_s"})
    assert load_vla(folder / "tower_two" / "vla").tokens == 192


def test_a_loss_that_is_no_number_stops_both_processes(folder):
    for rank in range(2):
        report = json.loads((folder / f"rank{rank}.json").read_text())
        assert report["processes"] == 2
        assert report["poisoned"].startswith("step 3: the loss is nan on the batch sample3/0, sample3/1")
        assert "first in sample3/1;" in report["poisoned"]
    assert torch.load(folder / "poisoned" / "checkpoint.pt", weights_only=True)["step"] == 2
