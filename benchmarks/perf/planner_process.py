"""The planner in a process of its own against the planner in the node's process, on models/tiny and samples/city.

    python -m benchmarks.perf.planner_process --rounds 4 --json planner_process.json

Each round replays the bag in real time once with every configuration, in turn, so that they meet the same load of the
machine. Reported are medians of a round's plans, as ratios to the first configuration of the same round, and of these
ratios the median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from fastdrive_node.commands.replay import ReplayOptions, node_options, open_recording
from fastdrive_node.replay.report import tally
from fastdrive_node.replay.session import play_bag

STAGES = ("load", "preprocess", "encode", "score", "prefill", "decode", "total")
# name: (parameters of the node, its OMP_NUM_THREADS)
CONFIGURATIONS = {
    "node's process": ({"planner_process": False}, None),
    "node's process, 1 thread": ({"planner_process": False}, "1"),
    "own process, 1 thread": ({"planner_threads": 1}, None),
    "own process, 2 threads": ({"planner_threads": 2}, None),
}


@contextmanager
def omp_threads(count: str | None):
    before = os.environ.pop("OMP_NUM_THREADS", None)
    if count is not None:
        os.environ["OMP_NUM_THREADS"] = count
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS", None)
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


def run(
    bag: Path, changed: Mapping[str, Any], omp: str | None = None, topics: Path | None = None, passes: int = 1
) -> dict[str, float]:
    """Medians over the plans of one replay: stages, planning and latency in milliseconds; plans and sets counted."""
    options = ReplayOptions(bag=bag, topics=topics)
    recording = open_recording(options)
    node = node_options(options, None)
    ages = {"max_plan_age_s": 60.0, "max_set_age_s": 60.0}  # the machine may be loaded; every plan counts
    parameters = {**node.parameters, **ages, "device": "cpu", **changed}
    with omp_threads(omp):
        played = play_bag(recording, replace(node, parameters=parameters), 1.0, passes)
    plans = [each.record for each in tally(played.passes).plans]
    values = {stage: median(plan.plan.stage_ms.get(stage, 0.0) for plan in plans) for stage in STAGES}
    values["planning"] = median(plan.planning_ms for plan in plans)
    values["latency"] = median(plan.latency_ms for plan in plans)
    return {**values, "plans": float(len(plans))}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--bag", type=Path, default=Path("samples/city"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    rounds, loads = [], []
    for _ in range(args.rounds):
        rounds.append({name: run(args.bag, *values) for name, values in CONFIGURATIONS.items()})
        loads.append(os.getloadavg()[0])
        print(json.dumps(rounds[-1]), f"load {loads[-1]:.1f}", flush=True)
    first = next(iter(CONFIGURATIONS))
    ratios = {
        name: {
            key: round(median(each[name][key] / each[first][key] for each in rounds if each[first][key]), 3)
            for key in rounds[0][first]
        }
        for name in CONFIGURATIONS
    }
    result = {"cpus": os.cpu_count(), "load": loads, "rounds": rounds, "median_ratio": ratios}
    print(json.dumps(ratios, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
