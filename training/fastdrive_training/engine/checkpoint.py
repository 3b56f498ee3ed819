"""The folder of a run: checkpoints that are whole and belong to one recipe, and earlier runs that are kept."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import torch
import yaml

from fastdrive_node.errors import TrainingError
from fastdrive_node.files import write_atomically

CHECKPOINT, RECIPE_FILE = "checkpoint.pt", "recipe.yaml"
LENGTHS = ("schedule.steps", "steps")  # keys that may be larger than before, which lengthens a run


def start_folder(folder: Path, kind: str, recipe: Any) -> None:
    """Archive an earlier run, and write the resolved recipe."""
    archive_existing(folder)
    write_recipe(folder, kind, recipe)


def write_recipe(folder: Path, kind: str, recipe: Any) -> None:
    """The resolved recipe as RECIPE_FILE; ``fastdrive train`` takes it."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = json.loads(json.dumps({"kind": kind, **asdict(recipe)}))  # tuples become lists
    (folder / RECIPE_FILE).write_text(yaml.safe_dump(keys, sort_keys=False))


def archive_existing(folder: Path) -> Path | None:
    """Rename a folder that holds anything to the first free of ``NAME.1``, ``NAME.2``, ... beside it.

    Hours of training are never overwritten by a repeated command. Returns the new name; None where the folder is empty.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    kept = next(path for number in count(1) if not (path := folder.with_name(f"{folder.name}.{number}")).exists())
    folder.rename(kept)
    print(f"{folder}: the earlier run there is now {kept}; --resume would have continued it", file=sys.stderr)
    return kept


def require_checkpoint(folder: Path) -> Path:
    """The checkpoint of a run. Raises TrainingError where there is none."""
    path = folder / CHECKPOINT
    if not path.exists():
        raise TrainingError(f"{path}: no checkpoint to resume; start without --resume")
    return path


def write_checkpoint(folder: Path, identity: dict[str, Any], state: dict[str, Any]) -> None:
    """Write the state of a run; a write that is cut off leaves the checkpoint before.

    Args:
        identity: all that a resumed run must have in common with this one, such as its recipe; plain JSON values.
    """
    with write_atomically(folder / CHECKPOINT) as partial:
        torch.save({"identity": json.dumps(identity, sort_keys=True), **state}, partial)


def read_checkpoint(folder: Path, identity: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The state of a run whose ``identity`` is this one's, its tensors on the device; more steps lengthen it.

    Raises:
        TrainingError: no checkpoint, an unreadable one, or one of another identity; the text names the key.
    """
    path = require_checkpoint(folder)
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        stored = _flat(json.loads(state["identity"]))
    except Exception as error:  # torch raises many kinds for a broken file
        reason = " ".join(str(error).split())
        raise TrainingError(f"{path}: unreadable ({reason:.200}); start without --resume") from error
    present = _flat(json.loads(json.dumps(identity)))
    for key in sorted(stored.keys() | present.keys()):
        before, now = stored.get(key), present.get(key)
        if key in LENGTHS and isinstance(before, int) and isinstance(now, int) and now > before:
            print(f"{path}: {key} was {before} in that run, now it is {now}: the run is lengthened", file=sys.stderr)
        elif before != now:
            raise TrainingError(
                f"{path}: {key} was {before!r} in that run, now it is {now!r}; set it back or start without --resume"
            )
    return state


def _flat(keys: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as ``group.key``."""
    flat: dict[str, Any] = {}
    for key, value in keys.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
