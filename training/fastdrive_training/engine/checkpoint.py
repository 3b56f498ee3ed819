"""Checkpoints of the reconstruction's training: written by one rename, read as tensors only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from fastdrive_node.errors import TrainingError

CHECKPOINT = "checkpoint.pt"


def write_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write the state of a run; a write that is cut off leaves the checkpoint before."""
    part = folder / f"{CHECKPOINT}.part"
    torch.save(state, part)
    os.replace(part, folder / CHECKPOINT)


def read_checkpoint(folder: Path, identity: str, device: torch.device) -> dict[str, Any]:
    """The state of a run whose ``identity`` is this one's. Raises TrainingError: none, unreadable, another recipe's."""
    path = folder / CHECKPOINT
    if not path.exists():
        raise TrainingError(f"{path}: nothing to resume; start without --resume")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        stored = state["identity"]
    except Exception as error:  # torch raises many kinds for a broken file
        raise TrainingError(f"{path}: unreadable ({error}); start without --resume") from error
    if stored != identity:
        raise TrainingError(f"{path}: belongs to another recipe or encoder; restore it or start without --resume")
    return state
