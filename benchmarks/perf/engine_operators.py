"""Engines of ONNX's operators against those with onnxruntime's own: models/tiny from camera to plan, in turns.

fastdrive export build --operators standard --out standard    # and the same with --part language
python -m benchmarks.perf.engine_operators --standard standard --fused .venv/engines --json engine_operators.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.perf.engine_threads import DROP, STOP, case
from fastdrive_node.benchmark.timing import measure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("standard", "fused"):
        parser.add_argument(f"--{name}", type=Path, required=True, help="folder of vision.onnx and language.onnx")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    cores = torch.get_num_threads()
    cases = {}
    for name in ("standard", "fused"):
        torch.set_num_threads(cores)  # that a session takes; opening it leaves torch one
        cases[name] = case(getattr(args, name), {STOP: "1"}, 1)
    timings = measure(cases, args.runs, torch.device("cpu"), 5)
    rows = {name: round(timing.median_ms, 2) for name, timing in timings.items()}
    rows["ratio"] = round(rows["standard"] / rows["fused"], 3)
    print(json.dumps(rows))
    if args.json is not None:
        args.json.write_text(json.dumps({"cores": cores, "drop": DROP, "median_ms": rows}) + "\n")


if __name__ == "__main__":
    main()
