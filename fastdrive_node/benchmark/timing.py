"""Wall time of calls that take turns, so that a change of the machine's speed affects all of them alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

MIB = 1 << 20
# Before each run. After an operation torch's OpenMP threads spin for some ms and would take a core from what runs next:
# transformers' from ours, which then takes half as long again, and ours from transformers'. After it all of them sleep.
REST_S = 0.02


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Case:
    """A call to time. ``prepare`` runs once, untimed, and gives what ``run`` is called with."""

    run: Callable[[Any], object]
    prepare: Callable[[], Any] = _nothing
    threads: int | None = None  # of torch, set before each run; None: as they are


@dataclass
class Timing:
    """Times of one case in milliseconds, in the order of its runs; ``error`` where it failed."""

    ms: list[float] = field(default_factory=list)
    peak_mib: float | None = None  # of GPU memory while it ran, the weights included; None on a CPU
    error: str | None = None

    @property
    def median_ms(self) -> float:
        return float(np.median(self.ms))

    @property
    def per_second(self) -> float:
        """Runs one after the other, the rests between them left out."""
        return 1e3 / float(np.mean(self.ms))

    @property
    def spread(self) -> dict[str, float]:
        """p90, p99, worst and the standard deviation, in ms."""
        p90, p99 = np.percentile(self.ms, [90, 99])
        values = {"p90_ms": p90, "p99_ms": p99, "worst_ms": max(self.ms), "jitter_ms": float(np.std(self.ms))}
        return {name: round(float(value), 3) for name, value in values.items()}

    def figures(self, parts: int = 1) -> dict:
        """For JSON: median, p99 and minimum of one of ``parts`` equal parts of a run, or the error."""
        if self.error is not None:
            return {"error": self.error}
        values = np.asarray(self.ms) / parts
        figures = {
            "median_ms": round(float(np.median(values)), 4),
            "p99_ms": round(float(np.percentile(values, 99)), 4),
            "min_ms": round(float(values.min()), 4),
            "runs": len(self.ms),
        }
        return figures if self.peak_mib is None else {**figures, "peak_memory_mib": round(self.peak_mib, 1)}


@torch.inference_mode()
def measure(
    cases: Mapping[str, Case],
    runs: int,
    device: torch.device,
    warm_up: int = 2,
    tolerant: bool = False,
    period_s: float = 0.0,
) -> dict[str, Timing]:
    """Time cases in turn: A B C, A B C, ..., each run after a rest of ``REST_S`` or more.

    Args:
        runs: timed runs of each case, at least 1.
        device: waited for at both ends of a run, where it is a GPU.
        warm_up: untimed runs of each case before.
        tolerant: a case that raises is recorded with its error and left out from there on, the others go on;
            else the error is raised.
        period_s: between the beginnings of two runs, so that the machine rests as it does in a vehicle; 0 for runs
            one after the other.
    """
    timings = {name: Timing() for name in cases}
    states: dict[str, Any] = {}

    def attempt(name: str, step: Callable[[], None]) -> None:
        if timings[name].error is not None:
            return
        try:
            step()
        except Exception as error:
            if not tolerant:
                raise
            timings[name].error = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if timings[name].error is not None:  # outside of the handler, whose traceback holds tensors
            states.pop(name, None)
            _release(device)

    def get_ready(name: str) -> None:
        set_threads(cases[name])
        states[name] = cases[name].prepare()
        for _ in range(warm_up):
            cases[name].run(states[name])

    for name in cases:
        attempt(name, lambda name=name: get_ready(name))
    begun = time.perf_counter()
    for _ in range(runs):
        for name, case in cases.items():
            set_threads(case)
            rest(begun + period_s - time.perf_counter())
            begun = time.perf_counter()
            attempt(name, lambda name=name, case=case: _time(case, states[name], timings[name], device))
    return timings


def rest(seconds: float = REST_S) -> None:
    """Wait until all threads sleep, or longer."""
    time.sleep(max(seconds, REST_S))


def set_threads(case: Case) -> None:
    """Give torch as many threads as a case has."""
    if case.threads is not None:
        torch.set_num_threads(case.threads)


def ratio(slow: Timing, fast: Timing) -> float | None:
    """How many times ``fast`` is faster, by medians; None where one of them failed."""
    if slow.error is not None or fast.error is not None:
        return None
    return round(slow.median_ms / fast.median_ms, 3)


def _time(case: Case, state: Any, timing: Timing, device: torch.device) -> None:
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    result = case.run(state)
    if cuda:
        torch.cuda.synchronize(device)
    timing.ms.append((time.perf_counter() - start) * 1e3)
    del result
    if cuda:
        timing.peak_mib = max(timing.peak_mib or 0.0, torch.cuda.max_memory_allocated(device) / MIB)


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
