"""Runs on disk: one JSON object a line, so that a run can be scored again, by this program or another.

The first line has everything but the steps and plans (``head``), the next ones a step or a plan each. Floats are
written in full: what is read equals what was written, bit for bit. Behind them a line has the kept tokens (``kept``),
where they are known, and the last one (``end``) the numbers of steps and plans: without it a file was cut off.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastdrive_node.errors import InputError
from fastdrive_node.files import write_atomically
from fastdrive_node.types import Vehicle
from fastdrive_sim.drive.kept import KEPT, KEPT_START, kept_values
from fastdrive_sim.drive.types import (
    Collision,
    DriveRow,
    EgoStep,
    Lane,
    Light,
    Other,
    PlanStep,
    RunRecord,
    RunStep,
    StaticMap,
)

FORMAT = 1
END = "end"  # type of the last line
END_START = f'{{"type":"{END}"'
AGAIN = "delete it, and it is driven again with the same --out"
_OTHER_FILE = "give a whole file of runs/ of a drive, or drive it again"


def lines(run: RunRecord) -> Iterator[str]:
    """The lines of a run's file that scores and hash depend on: all but those of the kept tokens and the end."""
    head = {field.name: getattr(run, field.name) for field in fields(run) if field.name not in ("steps", "plans")}
    yield _line("run", {"format": FORMAT, **head})
    for step in run.steps:
        yield _line("step", step)
    for plan in run.plans:
        yield _line("plan", plan)


def save_run(path: Path, run: RunRecord) -> None:
    """Write a run. Raises InputError where the file cannot be written."""
    try:
        with write_atomically(path) as partial:
            kept = kept_values(run)
            end = _line(END, {"steps": len(run.steps), "plans": len(run.plans)})
            text = [*lines(run), *([] if kept is None else [_line(KEPT, kept)]), end]
            partial.write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error


def load_run(path: Path, earlier: bool = False) -> RunRecord:
    """Read a run, without the kept tokens of its plans, which ``with_kept`` adds.

    Args:
        earlier: take a file without its last line too, as earlier versions wrote it.

    Raises:
        InputError: the file is missing, damaged, cut off, or of another version.
    """
    hint = _OTHER_FILE if earlier else AGAIN
    text = _read_lines(path, hint)
    try:
        if not (earlier and not text[-1].startswith(END_START)):
            _check_end(text)
        values = [json.loads(line) for line in text if not line.startswith((KEPT_START, END_START))]
        head = values[0]
        if head["type"] != "run" or head["format"] != FORMAT:
            raise ValueError(f"format {head.get('format')}, expected {FORMAT}")
        steps = tuple(_step(each) for each in values if each["type"] == "step")
        plans = tuple(_plan(each) for each in values if each["type"] == "plan")
        if max((step.plan for step in steps), default=-1) >= len(plans):
            raise ValueError(f"its steps name plans that it does not have: it has {len(plans)}")
        return _run(head, steps, plans)
    except _UNREADABLE as error:
        raise _damaged(path, error, hint) from error


def check_file(path: Path, row: str, family: str, seed: int) -> None:
    """See that a run's file is whole and of this run, in less time than ``load_run`` takes.

    Args:
        row: name of the run's row.

    Raises:
        InputError: the file cannot be read, was cut off, or is of another run.
    """
    text = _read_lines(path, AGAIN)
    try:
        _check_end(text)
        head = json.loads(text[0])
        found = _build(DriveRow, head["row"]).name, head["family"], head["seed"]
    except _UNREADABLE as error:
        raise _damaged(path, error, AGAIN) from error
    if found != (row, family, seed):
        own = "{}, {} {}".format(*found)
        raise InputError(f"{path}: the file is of another run, {own}, not of {row}, {family} {seed}; {AGAIN}")


_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


def _read_lines(path: Path, hint: str) -> list[str]:
    """At least one."""
    try:
        text = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a file of runs/ of a drive") from error
    except ValueError as error:
        raise _damaged(path, error, hint) from error
    if not text:
        raise InputError(f"{path}: the file is empty; {hint}")
    return text


def _check_end(text: Sequence[str]) -> None:
    """Raises ValueError where the last line is missing, or does not agree with those before it."""
    if not text[-1].startswith(END_START):
        raise ValueError("it was cut off, or an earlier version wrote it: its last line is not `end`")
    end = json.loads(text[-1])
    for kind in ("step", "plan"):
        number = sum(line.startswith(f'{{"type":"{kind}"') for line in text)
        if number != end[f"{kind}s"]:
            raise ValueError(
                f"lines are missing or doubled: it has {number} {kind}s, by its last line {end[kind + 's']}"
            )


def _damaged(path: Path, error: Exception, hint: str) -> InputError:
    detail = " ".join(str(error).split())[:200]
    name = "" if type(error) is ValueError else f"{type(error).__name__}: "
    return InputError(f"{path}: not a whole run of `fastdrive sim drive` ({name}{detail}); {hint}")


def read_ending(path: Path) -> str:
    """How a run ended, from the first line of its file; "" where that cannot be read."""
    try:
        with path.open(encoding="utf-8") as file:
            return str(json.loads(file.readline())["ending"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""  # ``load_run`` tells what is wrong with it


def hash_run(run: RunRecord) -> str:
    """sha256 over the lines of a run; of a pruner's file its name counts, not where it is."""
    run = replace(run, row=replace(run.row, pruner=Path(run.row.pruner).name))
    return hashlib.sha256("\n".join(lines(run)).encode()).hexdigest()


def join_hashes(hashes: Iterable[str]) -> str:
    """One hash of the hashes of runs, whatever their order."""
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()


def _line(kind: str, values: Any) -> str:
    plain = values
    if not isinstance(values, dict):
        plain = {field.name: getattr(values, field.name) for field in fields(values) if field.name != KEPT}
    return json.dumps({"type": kind, **plain}, default=_plain, separators=(",", ":"), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _build(kind: type, values: Mapping, **replaced: Any) -> Any:
    names = [field.name for field in fields(kind)]
    return kind(**{name: replaced[name] if name in replaced else values[name] for name in names})


def _points(values: Any) -> np.ndarray:
    return np.array(values, np.float64).reshape(-1, 2)


def _pairs(values: Any) -> tuple[tuple[float, float], ...]:
    return tuple((float(x), float(y)) for x, y in values)


def _others(values: Any) -> tuple[Other, ...]:
    return tuple(_build(Other, each) for each in values)


def _step(values: Mapping) -> RunStep:
    lights = tuple(
        _build(Light, each, stop_line=_pairs(each["stop_line"]), area=_pairs(each["area"])) for each in values["lights"]
    )
    return _build(RunStep, values, ego=_build(EgoStep, values["ego"]), others=_others(values["others"]), lights=lights)


def _plan(values: Mapping) -> PlanStep:
    ego = None if values["ego"] is None else _build(EgoStep, values["ego"])
    times = np.array(values["times_s"], np.float64)
    return _build(PlanStep, values, ego=ego, xy=_points(values["xy"]), times_s=times, kept={})


def _map(values: Mapping) -> StaticMap:
    lanes = tuple(
        _build(Lane, each, polygon=_points(each["polygon"]), center=_points(each["center"])) for each in values["lanes"]
    )
    return _build(
        StaticMap,
        values,
        route=_points(values["route"]),
        drivable=tuple(map(_points, values["drivable"])),
        lanes=lanes,
        junctions=tuple(map(_points, values["junctions"])),
        obstacles=_others(values["obstacles"]),
    )


def _run(head: Mapping, steps: tuple[RunStep, ...], plans: tuple[PlanStep, ...]) -> RunRecord:
    collisions = tuple(
        _build(Collision, each, other=_build(Other, each["other"]), ego=_build(EgoStep, each["ego"]))
        for each in head["collisions"]
    )
    return _build(
        RunRecord,
        head,
        row=_build(DriveRow, head["row"]),
        map=_map(head["map"]),
        steps=steps,
        plans=plans,
        collisions=collisions,
        expert_progress_m=np.array(head["expert_progress_m"], np.float64),
        vehicle=_build(Vehicle, head["vehicle"]),
    )
