"""Two processes over gloo: the same losses as one with the same batch, and all stop at a loss that is no number."""

from __future__ import annotations

import json

import pytest
import torch

from fastdrive_node.families import load_vla
from fastdrive_node.pruning.checkpoint import load_pruner
from fastdrive_training.engine.logging import read_log
from fastdrive_training.pruner.train import train
from tests.training.engine.launcher import launch
from tests.training.tiny_nuscenes import write_dataset


def test_two_processes_have_the_losses_of_one(tmp_path, tiny_dir):
    root = write_dataset(tmp_path / "d", scenes=2, keyframes=3)
    schedule = {"decoder_pretrain_steps": 2, "steps": 4, "batch": 8, "lr": 1e-3, "log_every": 1, "ema_decay": 0.5}
    recipe = {
        "vla": str(tiny_dir),
        "dataset": str(root),
        "cache": str(tmp_path / "cache"),
        "device": "cpu",
        "val_keyframes": 2,
        "decoder_layers": 1,
        "tensorboard": False,
        "loss": {"ssim_stride": 4},
    }
    one, two = tmp_path / "one", tmp_path / "two"
    train({**recipe, "out": str(one), "schedule": schedule})
    split = {**recipe, "out": str(two), "schedule": {**schedule, "accumulate": 2}}
    launch("tests.training.pruner.recon_process", [json.dumps(split), str(tmp_path)], 2)

    reports = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert [report["processes"] for report in reports] == [2, 2]
    rows, expected = read_log(two), read_log(one)
    assert [row["step"] for row in rows] == list(range(6))
    for row, other in zip(rows, expected, strict=True):
        for key in set(other) - {"images_per_s", "recall", "phase"}:
            assert row[key] == pytest.approx(other[key], rel=1e-3, abs=1e-5), (row["step"], key)
    vla = load_vla(tiny_dir)
    ours, theirs = (load_pruner(folder / "reconpruner.safetensors", vla).state_dict() for folder in (two, one))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-4, rtol=1e-3)

    for report in reports:
        assert report["poisoned"].startswith("step 3: the loss is nan on the batch sample3/0, sample3/1")
        assert "first in sample3/1;" in report["poisoned"]
    assert torch.load(tmp_path / "poisoned" / "checkpoint.pt", weights_only=True)["step"] == 2
