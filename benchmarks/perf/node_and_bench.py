"""The same stages in the node and in ``fastdrive bench``, both at the same pace, on models/tiny and samples/city.

    python -m benchmarks.perf.node_and_bench --rounds 4 --json benchmarks/results/node_and_bench.json
    python -m benchmarks.perf.node_and_bench --engines .venv/engines --threads 2

Each round replays the bag in real time through the node, whose planner has a process of its own, and then runs the
paced part of the bench in a process with as many threads. Both decode the images, preprocess, encode, prune, prefill
and decode. A round's figure is the node's median over the bench's, and how many times faster than transformers, paced
in that bench, each of them is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from fastdrive_node.commands.replay import ReplayOptions, node_options, open_recording
from fastdrive_node.replay.report import tally
from fastdrive_node.replay.session import play_bag

BAG = Path("samples/city")
STAGES = ("load", "preprocess", "encode", "score", "select", "prefill", "decode")
AGES = {"max_plan_age_s": 60.0, "max_set_age_s": 60.0}  # the machine may be loaded; every plan counts


def node_ms(drop: float, threads: int, engines: Path | None) -> dict[str, float]:
    """Medians over the plans of one replay in ms: each stage, and their sum."""
    options = ReplayOptions(bag=BAG, drop=drop)
    recording, node = open_recording(options), node_options(options, None)
    parameters = {**node.parameters, **AGES, "planner_process": True, "planner_threads": threads, "device": "cpu"}
    if engines is not None:
        vision, language = str(engines / "vision.onnx"), str(engines / "language.onnx")
        parameters |= {"vision_backend": "onnxruntime", "engine": vision, "language_engine": language}
    played = play_bag(recording, replace(node, parameters=parameters), 1.0, 1)
    plans = [each.record.plan.stage_ms for each in tally(played.passes).plans]
    sums = [sum(plan.get(stage, 0.0) for stage in STAGES) for plan in plans]
    return {stage: median(plan.get(stage, 0.0) for plan in plans) for stage in STAGES} | {"sum": median(sums)}


def bench_ms(drop: float, threads: int, engines: Path | None, runs: int) -> dict[str, float]:
    """Medians of the bench in ms: paced, transformers paced, and ours one run after the other."""
    command = [sys.executable, "-m", "fastdrive_node.cli", "bench", "--bag", str(BAG), "--drop", str(drop)]
    command += ["--device", "cpu", "--hz", "2", "--runs", str(runs), "--no-large", "--json", "-"]
    if engines is not None:
        command += ["--backend", "onnxruntime", "--engine", str(engines / "vision.onnx")]
        command += ["--language-engine", str(engines / "language.onnx")]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    figures = json.loads(done.stdout)
    paced, loop = figures["paced"], figures["stages"]["camera_to_plan"]
    return {"paced": paced["ours_ms"], "transformers": paced["transformers_ms"], "loop": loop["ours_ms"]}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--drop", type=float, default=0.75)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=20, help="of the bench in a round")
    parser.add_argument("--engines", type=Path, help="folder of vision.onnx and language.onnx; without: torch")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    rounds = []
    for _ in range(args.rounds):
        node = node_ms(args.drop, args.threads, args.engines)
        bench = bench_ms(args.drop, args.threads, args.engines, args.runs)
        ratio = round(node["sum"] / bench["paced"], 3)
        times = {"node": node["sum"], "bench": bench["paced"]}
        faster = {name: round(bench["transformers"] / ms, 3) for name, ms in times.items()}
        node, bench = ({name: round(value, 2) for name, value in each.items()} for each in (node, bench))
        load = round(os.getloadavg()[0], 1)
        rounds.append({"node_ms": node, "bench_ms": bench, "ratio": ratio, "times_faster": faster, "load": load})
        print(json.dumps(rounds[-1]), flush=True)
    result = {
        "median_ratio": round(median(each["ratio"] for each in rounds), 3),
        "times_faster": {name: median(each["times_faster"][name] for each in rounds) for name in ("node", "bench")},
        "engines": args.engines is not None,
        "drop": args.drop,
        "threads": args.threads,
        "cpus": os.cpu_count(),
        "rounds": rounds,
    }
    print(json.dumps({name: value for name, value in result.items() if name != "rounds"}))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
