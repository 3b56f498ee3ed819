"""Why a plan takes longer at the pace of a vehicle than in a loop: models/tiny with engines, from camera to plan.

    python -m benchmarks.studies.paced --engines .venv/engines --json benchmarks/results/paced.json

Each case does one thing before a plan, and the cases take turns. Where a pause costs nothing once the cores have been
busy again, without having touched the plan's memory, it was the cores that had gone to sleep. What a plan loses behind
other reads is what cold caches cost. No other thread of the process runs Python, so none holds the interpreter's lock.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.perf.engine_threads import opened
from benchmarks.studies.summary import summarize, to_text
from fastdrive_node.errors import FastDriveError

PAUSE_S = 0.3
BUSY_S = 0.03
CACHE_BYTES = 64 << 20  # more than the last level of most caches
LOOP = "in a loop"
WARM_UP = 5


def busy(seconds: float, cores: int) -> None:
    """Keep cores busy with 64 kB each; a hash releases the interpreter's lock."""
    until = time.perf_counter() + seconds

    def work() -> None:
        block = bytes(1 << 16)
        while time.perf_counter() < until:
            hashlib.sha256(block)

    others = [threading.Thread(target=work) for _ in range(cores - 1)]
    for each in others:
        each.start()
    work()
    for each in others:
        each.join()


def preparations(cores: int) -> dict[str, Callable[[], object]]:
    """What each case does before a plan."""
    other = np.ones(CACHE_BYTES // 8)
    pause, length = f"after a pause of {PAUSE_S:g} s", f"{1e3 * BUSY_S:g} ms"

    def pause_and_busy(busy_cores: int) -> None:
        time.sleep(PAUSE_S)
        busy(BUSY_S, busy_cores)

    return {
        LOOP: lambda: None,
        f"in a loop, behind {CACHE_BYTES >> 20} MB of other reads": other.sum,
        pause: lambda: time.sleep(PAUSE_S),
        f"{pause}, then {length} with one busy core": lambda: pause_and_busy(1),
        f"{pause}, then {length} with all cores busy": lambda: pause_and_busy(cores),
    }


def measure(call: Callable[[], object], cases: dict[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Milliseconds of ``call`` behind each preparation, in turns."""
    for _ in range(WARM_UP):
        call()
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(runs):
        for name, prepare in cases.items():
            prepare()
            begun = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - begun))
    return times


@torch.inference_mode()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=Path, required=True, help="folder of vision.onnx and language.onnx")
    parser.add_argument("--runs", type=int, default=40, help="of each case (%(default)s)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    if args.runs < 1:
        parser.error(f"--runs: {args.runs}; give 1 or more")
    try:
        plan = opened(args.engines).camera_to_plan
    except FastDriveError as error:
        sys.exit(f"paced: {error}")
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    times = measure(plan, preparations(cores), args.runs)
    medians = {name: float(np.median(each)) for name, each in times.items()}
    rows = {
        name: {"median_ms": each, "p90_ms": float(np.percentile(times[name], 90)), "to_loop": each / medians[LOOP]}
        for name, each in medians.items()
    }
    for name, row in rows.items():
        print(f"{row['median_ms']:8.1f} ms  {row['to_loop']:5.2f}  {name}", flush=True)
    if args.json is not None:
        report = {"cores": cores, "load": load, "runs": args.runs, "rows": rows}
        args.json.write_text(to_text(summarize(report)) + "\n")


if __name__ == "__main__":
    main()
