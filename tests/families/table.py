"""The table of docs/families.md: what was checked of each family. ``python -m tests.families.table`` prints it."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastdrive_node.errors import ModelError
from fastdrive_node.families import MODEL_TYPES, Vla, load_vla
from fastdrive_node.pruning.checkpoint import load_pruner
from fastdrive_node.types import EgoHistory, EgoState
from fastdrive_training.engine.logging import read_log
from tests.families.checks import (
    answer,
    build_sibling,
    by_masking,
    by_transformers,
    dataset_of,
    scene_of,
    some_kept,
    train_pruner,
)
from tests.families.tiny_vlas import build_family_vla

COLUMNS = ("family", "loads", "equals generate", "pruned = masked", "pruner trained", "plug and play")
DROP = 0.75


def table() -> str:
    """In Markdown."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for model_type in MODEL_TYPES:
            folder = Path(name) / model_type
            path = build_family_vla(folder / "vla", model_type)
            rows.append(row(folder, path, partial(short_training, path, dataset_of(folder), folder)))
    return "\n".join((*HEAD, *rows))


def short_training(path: Path, dataset: Path, folder: Path) -> dict[str, Any]:
    """Figures of a pruner's training with tokens of the moment; its log is in ``folder``/run."""
    return train_pruner(path, dataset, folder, steps=4, features="live")


def row(folder: Path, path: Path, train: Callable[[], dict[str, Any]]) -> str:
    """The family of a tiny VLA; a check that fails shows its reason.

    Args:
        folder: for files; ``train`` leaves its log in ``run`` there.
        path: the VLA's directory, as ``build_family_vla`` makes it with seed 0.
        train: gives the figures of ``short_training``.
    """
    vla = load_vla(path)
    model_type = vla.family.model_type
    state = EgoState(0, 0.0, 0.0, 0.0, 5.0)
    images, visual, prompt = scene_of(vla, EgoHistory((state,) * 5, 0.5))
    kept = some_kept(vla, int(vla.tokens * (1 - DROP)))
    trained: dict = {}

    def generates() -> str:
        expected = by_transformers(vla, images, prompt)
        return f"yes, {len(expected)} tokens" if answer(vla, visual, prompt) == expected else "no"

    def prunes() -> str:
        ours = answer(vla, visual, prompt, kept)
        equal = ours == by_masking(vla, visual, prompt, kept, len(ours))
        return f"yes, {vla.tokens} to {len(kept)} tokens" if equal else "no"

    def trains() -> str:
        trained.update(train())
        load_pruner(trained["pruner"], vla)
        losses = [each["total"] for each in read_log(folder / "run") if "total" in each]
        return f"yes, {len(losses)} steps" if losses and all(map(math.isfinite, losses)) else "no"

    def plugs() -> str:
        sibling = load_vla(build_sibling(folder / "sibling", path))
        scores = [_scores(each, trained["pruner"]) for each in (vla, sibling)]
        stranger = load_vla(build_family_vla(folder / "stranger", model_type, seed=2))
        return "yes" if torch.equal(*scores) and _refused(trained["pruner"], stranger) else "no"

    return _line(f"`{model_type}`", "yes", *map(_cell, (generates, prunes, trains, plugs)))


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


HEAD = (_line(*COLUMNS), _line(*("---",) * len(COLUMNS)))


def _cell(check: Callable[[], str]) -> str:
    try:
        return check()
    except Exception as error:  # the table shows what went wrong
        return f"no: {type(error).__name__}: {json.dumps(str(error)[:80])}"


@torch.inference_mode()
def _scores(vla: Vla, file: str) -> torch.Tensor:
    _, visual, _ = scene_of(vla, EgoHistory((EgoState(0, 0.0, 0.0, 0.0, 5.0),) * 5, 0.5))
    return load_pruner(file, vla)(visual.raster(), vla.grid)


def _refused(file: str, vla: Vla) -> bool:
    try:
        load_pruner(file, vla)
    except ModelError:
        return True
    return False


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table())
