"""The files of a training run, read and checked. They are data from outside: nothing in them is trusted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from fastdrive_node.errors import FastDriveError
from fastdrive_training.reports.pruner_run.samples import HeldOutSamples, read_samples

LOG, RECIPE, SAMPLES, CURVE, FIGURES = "log.jsonl", "recipe.yaml", "samples.npz", "curve.json", "figures.json"
PHASES = ("warmup", "joint")
_MAX_LOG_BYTES, _MAX_TEXT_BYTES = 1 << 29, 1 << 20
_MAX_CURVE_POINTS = 100_000
_LARGEST = 1e30

Part = TypeVar("Part")


class ReportError(FastDriveError):
    """A run folder of which no page can be made; names the file and the fix."""


@dataclass(frozen=True)
class PrecisionRecallCurve:
    """Precision and recall of held-out scores by threshold; no points where all tokens are of one class."""

    step: int | None
    precision: tuple[float, ...]
    recall: tuple[float, ...]
    positives: int | None  # tokens that are foreground
    tokens: int | None

    @property
    def positive_fraction(self) -> float | None:
        """The precision of random scores."""
        return self.positives / self.tokens if self.positives is not None and self.tokens else None


@dataclass(frozen=True)
class RunFolder:
    """What a run has written so far."""

    path: Path
    log: tuple[dict[str, Any], ...]  # by step, ascending
    recipe_text: str | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    samples: HeldOutSamples | None = None
    curve: PrecisionRecallCurve | None = None
    figures: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()  # what was left out of the log, for people

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def trains_pruner(self) -> bool:
        """Whether this is the reconstruction that trains a pruner; else it is a run with other losses."""
        return any(entry.get("phase") in PHASES for entry in self.log) or self.recipe.get("kind") == "recon_pruner"

    @property
    def masks(self) -> str:
        """Where the joint phase's masks come from: ``pruner``, or for comparison ``oracle`` or ``random``."""
        mask = self.recipe.get("mask")
        return mask if mask in ("oracle", "random") else "pruner"

    def group(self, key: str) -> dict[str, Any]:
        """A group of keys of the recipe; {} where it has none."""
        value = self.recipe.get(key)
        return value if isinstance(value, dict) else {}

    @property
    def missing(self) -> tuple[str, ...]:
        """Files that a run of this kind can write and this one has not."""
        parts = {RECIPE: self.recipe_text, FIGURES: self.figures}
        if self.trains_pruner and self.masks == "pruner":
            parts |= {SAMPLES: self.samples, CURVE: self.curve}
        return tuple(name for name, part in parts.items() if part is None)


def read_run(path: str | Path) -> RunFolder:
    """Read a run's folder.

    Raises:
        ReportError: no such folder, no log or an empty one, or a file that is damaged; the text names the file.
    """
    path = Path(path)
    if not path.is_dir():
        raise ReportError(f"{path}: no such folder; give the folder that the recipe's key `out` names")
    log, notes = _read_log(path / LOG)
    recipe_text = _optional(path / RECIPE, _read_text)
    return RunFolder(
        path=path,
        log=log,
        recipe_text=recipe_text,
        recipe={} if recipe_text is None else _parse_recipe(path / RECIPE, recipe_text),
        samples=_optional(path / SAMPLES, _read_samples),
        curve=_optional(path / CURVE, _read_curve),
        figures=_optional(path / FIGURES, _read_object),
        notes=notes,
    )


def number(value: Any) -> float | None:
    """A number of a JSON file as float; None for anything else, and where it is too large to be drawn."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if -_LARGEST <= value <= _LARGEST else None


def _optional(path: Path, read: Callable[[Path], Part]) -> Part | None:
    return read(path) if path.exists() else None


def _read_samples(path: Path) -> HeldOutSamples:
    try:
        return read_samples(path)
    except ValueError as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, problem: str) -> ReportError:
    return ReportError(f"{path}: {problem}; remove it, or train again with --resume so that it is rewritten")


def _read_text(path: Path, limit: int = _MAX_TEXT_BYTES) -> str:
    try:
        size = path.stat().st_size
        if size > limit:
            raise ReportError(f"{path}: {size} bytes, more than {limit}; this is no file of a training run")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _damaged(path, "not UTF-8") from error
    except OSError as error:
        raise ReportError(f"{path}: cannot be read ({error.strerror})") from error


def _read_log(path: Path) -> tuple[tuple[dict[str, Any], ...], tuple[str, ...]]:
    """The entries by step, and notes. A last line that is cut off belongs to a run that is still writing or died."""
    if not path.exists():
        raise ReportError(f"{path}: missing; a run writes it from its first steps on, so give a run's folder")
    text = _read_text(path, _MAX_LOG_BYTES)
    if not text.strip():
        raise ReportError(f"{path}: empty; the run has logged no step yet, or died before; start it again")
    entries: list[dict[str, Any]] = []
    notes = []
    lines = text.split("\n")
    for place, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        entry = _log_entry(line)
        if entry is not None:
            entries.append(entry)
        elif place == len(lines) and entries:
            notes.append(f"The last line of {LOG} is cut off and left out.")
        else:
            raise ReportError(
                f"{path}: line {place} is no JSON object with a whole number `step`; remove the line, or train again"
            )
    kept = _latest(entries)
    if len(kept) < len(entries):
        notes.append(f"{len(entries) - len(kept)} lines of {LOG} are of an earlier start of the run and left out.")
    return tuple(kept), tuple(notes)


def _log_entry(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = entry.get("step") if isinstance(entry, dict) else None
    return entry if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 1 << 53 else None


def _latest(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the entries that a later start of the run has done again."""
    kept: list[dict[str, Any]] = []
    for entry in reversed(entries):
        if not kept or entry["step"] < kept[-1]["step"]:
            kept.append(entry)
    return kept[::-1]


def _parse_recipe(path: Path, text: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise _damaged(path, "no valid YAML") from error
    if not isinstance(content, dict):
        raise _damaged(path, "no mapping of keys")
    return content


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(path, 16 * _MAX_TEXT_BYTES))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "no valid JSON") from error
    if not isinstance(content, dict):
        raise _damaged(path, "no JSON object")
    return content


def _read_curve(path: Path) -> PrecisionRecallCurve:
    content = _read_object(path)
    precision, recall = (_fractions(path, key, content.get(key)) for key in ("precision", "recall"))
    if len(precision) != len(recall):
        raise _damaged(path, f"precision has {len(precision)} values and recall {len(recall)}")
    counts = [_count(content.get(key)) for key in ("step", "positives", "tokens")]
    return PrecisionRecallCurve(counts[0], precision, recall, *counts[1:])


def _fractions(path: Path, key: str, values: Any) -> tuple[float, ...]:
    if not isinstance(values, list) or len(values) > _MAX_CURVE_POINTS:
        raise _damaged(path, f"{key} must be a list of at most {_MAX_CURVE_POINTS} numbers")
    numbers = tuple(value for value in map(number, values) if value is not None and 0 <= value <= 1)
    if len(numbers) < len(values):
        raise _damaged(path, f"{key} must hold numbers in 0..1")
    return numbers


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
