"""Shards of an evaluation, from one machine or many, merged into the run that they are parts of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fastdrive_node.errors import InputError, UsageError
from fastdrive_node.files import write_atomically
from fastdrive_training.evaluation.records import SCHEMA, read_json, write_json
from fastdrive_training.evaluation.settings import RowKey

RUN, SAMPLES, EFFICIENCY = "run.json", "samples.parquet", "efficiency.json"


@dataclass(frozen=True)
class _FinishedShard:
    folder: Path
    index: int
    count: int
    identity: dict[str, Any]  # without the shard
    rows: tuple[RowKey, ...]


def merged_run(paths: Sequence[Path], merged: Path | None = None) -> Path:
    """The folder of one whole run. Shards are merged; a run that is none is returned as it is.

    Args:
        paths: a run, or shards, or folders that hold shards.
        merged: where the merged run is written; None for the folder that holds all shards.

    Raises:
        InputError: several runs that are no shards; shards of different settings, one twice, one missing or not
            finished. The text names them.
        UsageError: the shards have no folder in common, or ``merged`` without shards.
    """
    folders = [folder for path in paths for folder in _shard_folders(path)]
    if len(folders) == 1 and _shard_of(folders[0]) is None:
        if merged is not None:
            raise UsageError(f"--merged: {folders[0]} is no shard; leave --merged out")
        return folders[0]
    shards = [_open(folder) for folder in folders]
    _require_whole(shards)
    parents = {folder.resolve().parent for folder in folders}
    if merged is None and len(parents) > 1:
        raise UsageError("the shards are in several folders; name one for the merged run with --merged DIR")
    return _write(sorted(shards, key=lambda shard: shard.index), merged or folders[0].parent)


def _shard_folders(path: Path) -> list[Path]:
    """The shards in a folder; the folder itself where it holds none."""
    found = [run.parent for run in sorted(path.glob(f"*/{RUN}")) if _shard_of(run.parent) is not None]
    return found or [path]


def _shard_of(folder: Path) -> tuple[int, int] | None:
    """(index, count) of a shard; None for a folder that is none."""
    text = _read(folder / RUN).get("shard") if (folder / RUN).exists() else None
    match = re.fullmatch(r"(\d+)-of-(\d+)", text) if isinstance(text, str) else None
    return (int(match[1]), int(match[2])) if match else None


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, {})


def _open(folder: Path) -> _FinishedShard:
    place = _shard_of(folder)
    if place is None:
        raise InputError(f"{folder}: no shard of an evaluation; give one run, or the shards of one run")
    path = folder / SAMPLES
    if not path.exists():
        raise InputError(f"{folder}: the shard has not finished; call its `fastdrive evaluate` again, and it goes on")
    identity = {name: value for name, value in _read(folder / RUN).items() if name != "shard"}
    try:
        keys = pq.read_table(path, columns=["pruner", "drop", "seed"])
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path}: damaged ({type(error).__name__}); remove it and call its `fastdrive evaluate` again"
        ) from error
    rows = dict.fromkeys(zip(*(keys.column(name).to_pylist() for name in ("pruner", "drop", "seed")), strict=True))
    return _FinishedShard(folder, *place, identity, tuple(RowKey(*row) for row in rows))


def _require_whole(shards: Sequence[_FinishedShard]) -> None:
    """Raises InputError where these are not all shards of one evaluation, each once."""
    first = shards[0]
    held: dict[int, Path] = {}
    for shard in shards:
        differing = [
            name
            for name in dict.fromkeys([*first.identity, *shard.identity])
            if first.identity.get(name) != shard.identity.get(name)
        ]
        differing += ["number of shards"] if shard.count != first.count else []
        if not differing and set(shard.rows) != set(first.rows):
            row = min(key.slug for key in set(shard.rows) ^ set(first.rows))
            differing = [f"row {row}"]
        if differing:
            raise InputError(
                f"{shard.folder}: {differing[0]} differs from that of {first.folder}; merge shards of one evaluation"
            )
        if shard.index in held:
            raise InputError(f"shard {shard.index}/{shard.count} is there twice: {held[shard.index]}, {shard.folder}")
        held[shard.index] = shard.folder
    missing = [f"{index}/{first.count}" for index in range(first.count) if index not in held]
    if missing:
        raise InputError(
            f"shard {', '.join(missing)} is missing beside {first.folder}; evaluate it, or name its folder"
        )


def _write(shards: Sequence[_FinishedShard], folder: Path) -> Path:
    """Shards hold consecutive samples, so that their lines follow each other, row by row."""
    with write_atomically(folder / SAMPLES) as partial, pq.ParquetWriter(partial, SCHEMA) as out:
        for key in shards[0].rows:
            filters = [("pruner", "==", key.pruner), ("drop", "==", key.drop), ("seed", "==", key.seed)]
            for shard in shards:
                out.write_table(pq.read_table(shard.folder / SAMPLES, schema=SCHEMA, filters=filters))
    efficiency: dict[str, Any] = {}
    for shard in reversed(shards):
        efficiency |= _read(shard.folder / EFFICIENCY) if (shard.folder / EFFICIENCY).exists() else {}
    write_json(folder / EFFICIENCY, efficiency)
    write_json(folder / RUN, shards[0].identity)
    return folder
