"""The simulated latency of plans in lockstep: the same for each, or drawn from recorded ones."""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastdrive_node.errors import UsageError

MAX_LATENCY_S = 10.0


class Latency:
    """Latencies of the plans of one run after another, in seconds; call it for the next one.

    Of several values each plan draws one, with replacement. The draws follow from the scenario and the number of plans
    before, so the rows of a drive meet the same latencies.
    """

    def __init__(self, *values_s: float):
        self._values_s = values_s or (0.0,)
        self._rng = np.random.default_rng(0)

    def begin(self, family: str, seed: int) -> None:
        """A new run."""
        self._rng = np.random.default_rng([zlib.crc32(family.encode()), seed])

    def __call__(self) -> float:
        if len(self._values_s) == 1:
            return self._values_s[0]
        return self._values_s[int(self._rng.integers(len(self._values_s)))]


def read_latencies(text: str) -> tuple[float, ...]:
    """Seconds, from ``--latency-ms``: a number of milliseconds, or a file with a JSON list of them.

    Raises:
        UsageError: neither a number nor such a file, or a value that is out of range.
    """
    try:
        values, where = [float(text)], ""
    except ValueError:
        values, where = _read_list(Path(text)), f" in {text}"
    for value in values:
        if not 0 <= value <= MAX_LATENCY_S * 1e3:
            raise UsageError(f"--latency-ms {value:g}{where}: give 0 to {MAX_LATENCY_S * 1e3:g}")
    return tuple(value * 1e-3 for value in values)


def _read_list(path: Path) -> list[float]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"), parse_int=float)
    except OSError as error:
        raise UsageError(
            f"--latency-ms {path}: neither a number of milliseconds nor a file that can be read ({error.strerror})"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--latency-ms {path}: not readable as JSON ({error})") from None
    if not isinstance(found, list) or not found or not all(isinstance(each, float) for each in found):
        raise UsageError(f"--latency-ms {path}: give a JSON list of milliseconds, such as [38.5, 41.2]")
    return found


def mean_s(values_s: Sequence[float]) -> float:
    return math.fsum(values_s) / len(values_s)


def describe(values_s: Sequence[float]) -> dict[str, float | int | str]:
    """What ``settings.json`` says of them; two drives with other latencies differ in it."""
    found: dict[str, float | int | str] = {"latency_ms": mean_s(values_s) * 1e3}
    if len(values_s) > 1:
        digest = hashlib.sha256(json.dumps(list(values_s)).encode()).hexdigest()
        found |= {"latency_values": len(values_s), "latency_sha256": digest[:16]}
    return found
