"""Judged answers of every sample and row: in memory, or in a run folder as Parquet, from which an evaluation goes on.

A run folder holds ``run.json`` (what the run belongs to), ``parts/<row>/<segment>.parquet``, ``efficiency.json`` and,
of a finished evaluation, ``samples.parquet``: one line for each sample and row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fastdrive_node.errors import InputError
from fastdrive_node.families import Vla
from fastdrive_node.families.fingerprint import model_files
from fastdrive_node.files import write_atomically
from fastdrive_node.planning.loading import own_file
from fastdrive_node.pruning.catalog import reads_given_file
from fastdrive_training.data.adapters.base import ImageSource, read_object
from fastdrive_training.data.masks import INDEX, MANIFEST, TABLES
from fastdrive_training.evaluation.answers import JudgedAnswer
from fastdrive_training.evaluation.samples import SampleChoice
from fastdrive_training.evaluation.settings import OpenLoopSettings, RowKey

_STEPS = pa.list_(pa.bool_())
SCHEMA = pa.schema(
    [
        ("pruner", pa.string()),
        ("drop", pa.float64()),
        ("seed", pa.int32()),
        ("sample", pa.string()),
        ("scene", pa.string()),
        ("refused", pa.bool_()),
        ("reason", pa.string()),  # null where it was not refused
        ("text", pa.string()),
        ("plan_m", pa.list_(pa.list_(pa.float64()))),  # [x, y] of each point; null where refused
        ("errors_m", pa.list_(pa.float64())),  # of each step; null where refused
        ("collision", _STEPS),  # of each step; null where refused or not known, as the next three
        ("off_drivable", _STEPS),
        ("intersection", _STEPS),
        ("raster_collision", _STEPS),
        ("tokens", pa.int32()),  # how many visual tokens the last layer saw; null without a model
        ("kept", pa.list_(pa.int32())),  # which
    ]
)

LEAN = [name for name in SCHEMA.names if name not in ("reason", "text", "plan_m", "kept")]  # what figures need


def to_table(key: RowKey, answers: Iterable[JudgedAnswer]) -> pa.Table:
    """The answers of one row as lines of ``SCHEMA``."""
    return pa.Table.from_pylist([_line(key, answer) for answer in answers], SCHEMA)


def _line(key: RowKey, answer: JudgedAnswer) -> dict:
    steps = {} if answer.judgement is None else vars(answer.judgement)  # absent columns are null
    return {
        "pruner": key.pruner,
        "drop": key.drop,
        "seed": key.seed,
        "sample": answer.sample,
        "scene": answer.scene,
        "refused": answer.plan_m is None,
        "reason": answer.reason,
        "text": answer.text,
        "plan_m": None if answer.plan_m is None else answer.plan_m.tolist(),
        **{name: None if values is None else values.tolist() for name, values in steps.items()},
        "tokens": None if answer.kept is None else len(answer.kept),
        "kept": None if answer.kept is None else answer.kept.tolist(),
    }


class RecordStore:
    """The lines of an evaluation by row and segment of samples; ``efficiency`` holds the measured columns.

    In memory it keeps the columns that figures need, for the kept tokens of a large model are many.

    Args:
        folder: of the run; None keeps everything in memory.
        identity: what the run belongs to.

    Raises:
        InputError: the folder belongs to another run, or cannot be read.
    """

    def __init__(self, folder: Path | None, identity: dict):
        self._folder = folder
        self._tables: dict[tuple[RowKey, int], pa.Table] = {}
        self.efficiency: dict[str, dict] = {}
        if folder is not None:
            _claim(folder, identity)
            self.efficiency = read_json(folder / "efficiency.json", {})

    def has(self, key: RowKey, segment: int) -> bool:
        """Whether the segment of this row is there, whole."""
        return (key, segment) in self._tables or self._read(key, segment) is not None

    def put(self, key: RowKey, segment: int, answers: Sequence[JudgedAnswer]) -> None:
        """Keep a segment of a row."""
        table = to_table(key, answers)
        self._tables[key, segment] = table.select(LEAN)
        if self._folder is not None:
            with write_atomically(self._path(key, segment)) as partial:
                pq.write_table(table, partial)

    def put_efficiency(self, key: RowKey, figures: dict) -> None:
        """Keep the efficiency columns of a row, which are those of all its seeds."""
        self.efficiency[key.kind] = figures
        if self._folder is not None:
            write_json(self._folder / "efficiency.json", self.efficiency)

    def row(self, key: RowKey, segments: Sequence[int]) -> pa.Table:
        """All lines of a row in the order of the samples, the columns that figures need."""
        return pa.concat_tables([self._tables[key, segment] for segment in segments])

    def finish(self, keys: Sequence[RowKey], segments: Sequence[int]) -> None:
        """Write ``samples.parquet``: all lines of these rows, with all columns."""
        if self._folder is not None:
            with (
                write_atomically(self._folder / "samples.parquet") as partial,
                pq.ParquetWriter(partial, SCHEMA) as out,
            ):
                for key in keys:
                    for segment in segments:
                        out.write_table(pq.read_table(self._path(key, segment), schema=SCHEMA))

    def _path(self, key: RowKey, segment: int) -> Path:
        assert self._folder is not None
        return self._folder / "parts" / key.slug / f"{segment:05d}.parquet"

    def _read(self, key: RowKey, segment: int) -> pa.Table | None:
        if self._folder is None or not self._path(key, segment).exists():
            return None
        try:
            if pq.read_schema(self._path(key, segment)) != SCHEMA:
                return None
            table = pq.read_table(self._path(key, segment), columns=LEAN)
        except (pa.ArrowException, OSError):
            return None  # damaged: it is answered again
        self._tables[key, segment] = table
        return table


def identity_of(source: ImageSource, vla: Vla, samples: SampleChoice, settings: OpenLoopSettings, segment: int) -> dict:
    """What the lines of a run depend on, besides pruner, drop and seed."""
    return {
        "dataset": str(source.root.resolve()),
        "parts": source.parts,
        "samples": samples_digest(source.names, samples, segment),
        "vla": vla_digest(vla.path),
        "dtype": str(vla.dtype),
        "pruner": _digest([settings.pruner_file]) if settings.reads_pruner and settings.pruner_file else None,
        "masks": _masks_digest(settings.masks) if settings.masks and "oracle" in settings.pruners else None,
        "shard": str(settings.shard) if settings.shard else None,
        **_pruner_files(vla.path, settings.pruners),
    }


def samples_digest(names: Sequence[str], samples: SampleChoice, segment: int) -> str:
    """Of the chosen samples, and of those whose images they see; ``names`` are those of all items."""
    chosen = [[names[index] for index in indices] for indices in (samples.own, samples.images)]
    return hashlib.sha256(json.dumps([chosen, segment]).encode()).hexdigest()


def vla_digest(folder: Path) -> str:
    """Of the files of a VLA directory that all rows depend on."""
    return _digest(model_files(folder))


def _pruner_files(folder: Path, pruners: Sequence[str]) -> dict[str, str]:
    """Of the files that single pruners have in the VLA directory, by a field of ``run.json``."""
    files = {name: own_file(folder, name) for name in pruners if not reads_given_file(name)}
    digests = {name: _digest([file]) if file.is_file() else "none" for name, file in files.items() if file is not None}
    return {f"file of {name}": digest for name, digest in digests.items()}


def _masks_digest(folder: Path) -> str:
    """Of the files of a folder of masks that change when masks are made again."""
    return _digest([folder / name for name in (MANIFEST, INDEX, *TABLES) if (folder / name).exists()])


def _digest(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _claim(folder: Path, identity: dict) -> None:
    """Write ``run.json``, or compare with the one that is there; a run without reconpruner fits any pruner file."""
    path = folder / "run.json"
    known = read_json(path, None)
    if known is not None:
        for name, value in identity.items():
            if value is not None and known.get(name) not in (value, None):
                raise InputError(f"{path}: belongs to another evaluation ({name} differs); give another --out")
    merged = {**(known or {}), **{name: value for name, value in identity.items() if value is not None}}
    write_json(path, merged)


def read_json(path: Path, default):
    return read_object(path, "remove it or give another --out") if path.exists() else default


def write_json(path: Path, content: dict) -> None:
    with write_atomically(path) as partial:
        partial.write_text(json.dumps(content, indent=1))
