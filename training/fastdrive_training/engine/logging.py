"""The log of a run: one JSON object a line in ``log.jsonl``, TensorBoard events, a progress bar with the time left."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fastdrive_node.files import write_atomically

LOG, EVENTS = "log.jsonl", "tensorboard"
SHOWN = ("total", "positive_share", "auroc")  # beside the bar


class RunLog:
    """The log of one call of a run, which starts at step ``start``; lines of later steps are deleted.

    Args:
        folder: of the run.
        total: steps of the whole run.
        images: camera images per step.
        tensorboard: write events too, where the package is installed.
    """

    def __init__(self, folder: Path, start: int, total: int, images: int, tensorboard: bool = False):
        self._start, self._images, self._done = start, images, start
        self._started = time.perf_counter()
        _cut(folder / LOG, start)
        self._file = open(folder / LOG, "a")  # noqa: SIM115  (closed by close)
        self._events = _events(folder / EVENTS, start) if tensorboard else None
        self._bar = tqdm(total=total, initial=start, desc=folder.name, unit="step")

    def advance(self) -> float:
        """One step is done; returns the images per second of this call so far."""
        self._done += 1
        self._bar.update()
        return (self._done - self._start) * self._images / (time.perf_counter() - self._started)

    def write(self, figures: dict[str, Any]) -> None:
        """One line, and one point of each number in TensorBoard."""
        self._file.write(json.dumps(figures) + "\n")
        self._file.flush()
        self._bar.set_postfix({key: f"{figures[key]:.3g}" for key in SHOWN if figures.get(key) is not None})
        if self._events is not None:
            for name, value in _numbers(figures):
                self._events.add_scalar(name, value, figures["step"])

    def close(self) -> None:
        self._file.close()
        self._bar.close()
        if self._events is not None:
            self._events.close()


class NoLog:
    """Takes the place of a RunLog in the processes that write nothing."""

    def advance(self) -> float:
        return 0.0

    def write(self, figures: dict[str, Any]) -> None:
        return

    def close(self) -> None:
        return


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The complete lines of a run's log; [] where there is none."""
    path = folder / LOG
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:  # the last line of a run that was cut off
            continue
    return rows


def _cut(path: Path, start: int) -> None:
    """Delete the lines of steps that will be done again."""
    kept = [row for row in read_log(path.parent) if row["step"] < start]
    with write_atomically(path) as partial:
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))


def _events(folder: Path, start: int):
    """A TensorBoard writer; None, with a message on stderr, where the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("tensorboard is not installed: log.jsonl only (pip install tensorboard)", file=sys.stderr)
        return None
    return SummaryWriter(str(folder), purge_step=start)


def _numbers(figures: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """(name, value) of all numbers; those of nested mappings as ``recall/0.5``."""
    found = []
    for key, value in figures.items():
        if isinstance(value, dict):
            found += _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and key != "step":
            found.append((prefix + key, float(value)))
    return found
