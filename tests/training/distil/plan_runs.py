"""Short runs of objective plan."""

from __future__ import annotations

from pathlib import Path

import torch

from fastdrive_node.families import Vla
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_training.distil.config import DistilRecipe
from fastdrive_training.distil.plan import PlanTrainer
from fastdrive_training.distil.trainer import DistilBatches, PlanKeyframes
from fastdrive_training.engine.distributed import Processes

SMALL = {"batch": 4, "workers": 0, "tensorboard": False, "device": "cpu", "steps": 4, "checkpoint_every": 2}


def plan_trainer(vla: Vla, keyframes: PlanKeyframes, out: Path, **keys) -> PlanTrainer:
    """Of an untrained pruner, on keyframes that are held out, too."""
    recipe = DistilRecipe("vla", "data", str(out), **{**SMALL, "objective": "plan", **keys})
    torch.manual_seed(0)
    pruner, processes = ReconPruner(vla.family, vla.config.text_config, cameras=vla.spec.cameras), Processes("cpu")
    batches = DistilBatches(keyframes, recipe, processes)
    return PlanTrainer(recipe, [vla], keyframes, pruner, batches, processes, {}, keyframes)
