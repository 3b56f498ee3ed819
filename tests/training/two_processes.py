"""One of the processes of a test: trains three recipes, then a run whose second image is no number."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from fastdrive_node.cli import main as fastdrive
from fastdrive_node.errors import TrainingError
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_training.engine.distributed import Processes
from fastdrive_training.pruner.config import ReconRecipe, Schedule
from fastdrive_training.pruner.decoder import ReconDecoder
from fastdrive_training.pruner.trainer import ReconTrainer
from tests.generation import QWEN
from tests.training.pruner.recon_fixtures import CELL, PaintedBatches, text_config


def poisoned(folder: Path) -> str:
    """What a run on painted cells says whose step 3 has an image that is no number."""
    processes = Processes("cpu")
    torch.manual_seed(0)
    schedule = Schedule(decoder_pretrain_steps=1, steps=5, lr=1e-3, checkpoint_every=2)
    trainer = ReconTrainer(
        ReconRecipe("v", "d", str(folder / "poisoned"), workers=0, tensorboard=False, schedule=schedule),
        ReconPruner(QWEN, text_config()),
        ReconDecoder(QWEN, text_config(), 1, CELL),
        PaintedBatches(poison=3, parts=processes.count, own=[processes.rank]),
        processes,
    )
    try:
        trainer.run()
    except TrainingError as error:
        return str(error)
    return "no error"


def main(folder: Path) -> None:
    for recipe in ("tower", "pruner", "plan"):  # the tower before there is a group: see train_tower
        assert fastdrive(["train", str(folder / f"{recipe}.yaml")]) == 0
    processes = Processes("cpu")
    report = {"poisoned": poisoned(folder), "processes": processes.count}
    (folder / f"rank{processes.rank}.json").write_text(json.dumps(report))
