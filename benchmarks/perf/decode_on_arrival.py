"""The node with JPEGs decoded as they arrive against the node whose planner decodes them, on models/tiny.

    fastdrive sim bag data/large --seconds 10 --hz 2 --seed 3 --size 1600x896 --transport compressed
    python -m benchmarks.perf.decode_on_arrival --bag data/large --json decode_on_arrival.json

Each round replays the bag in real time once in each way. Reported are medians of a round's plans in ms, the ratios of
"as they arrive" to "by the planner" in the same round, and of these ratios the median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.perf.planner_process import run

WAYS = {"by the planner": False, "as they arrive": True}
FIGURES = ("load", "total", "planning", "latency")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bag", type=Path, required=True, help="with compressed images")
    parser.add_argument("--topics", type=Path, help="topic map of the bag")
    parser.add_argument("--passes", type=int, default=1, help="how often a round plays the bag (default: 1)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    rounds = []
    for _ in range(args.rounds):
        how = {"topics": args.topics, "passes": args.passes}
        rounds.append({name: run(args.bag, {"decode_on_arrival": early}, **how) for name, early in WAYS.items()})
        print(json.dumps(rounds[-1]), f"load {os.getloadavg()[0]:.1f}", flush=True)
    before, after = WAYS
    ratios = {key: [round(each[after][key] / each[before][key], 3) for each in rounds] for key in FIGURES}
    medians = {name: {key: round(median(each[name][key] for each in rounds), 1) for key in FIGURES} for name in WAYS}
    figures = {
        "cpus": os.cpu_count(),
        "median_ms": medians,
        "plans": {name: [each[name]["plans"] for each in rounds] for name in WAYS},
        "ratios": ratios,
        "median_ratio": {key: median(values) for key, values in ratios.items()},
    }
    print(json.dumps(figures, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
