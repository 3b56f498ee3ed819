"""Whether ``deadline_ms`` is met when the machine becomes slower: every stage of the real pipeline takes longer.

    python -m benchmarks.studies.deadline --json benchmarks/results/deadline.json

The sets of a bag are planned again and again: as fast as the machine is, then with every stage stretched (its own time
is waited again), then as fast as before. The deadline is a multiple of the median time of a plan without a deadline.
A plan is late where it takes longer than the deadline; the first ten of each phase are reported apart.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

from fastdrive_node.commands.replay import ReplayOptions, open_recording
from fastdrive_node.errors import PlannerError
from fastdrive_node.planning import pipeline as pipeline_module
from fastdrive_node.planning.loading import open_pipeline
from fastdrive_node.planning.pipeline import Pipeline, StageTimes
from fastdrive_node.replay.frame_sets import SetCounter
from fastdrive_node.types import EgoHistory, EgoState, FrameSet

K_MIN = 16
SETTLING = 10  # plans of a phase that are reported apart
SPEED_MPS = 5.0  # of the made ego history; it does not matter here


class StretchedTimes(StageTimes):
    """Stages that take ``load`` times as long."""

    load = 1.0

    @contextmanager
    def __call__(self, name: str):
        start = time.perf_counter()
        with super().__call__(name):
            yield
            if name != "total":
                time.sleep((time.perf_counter() - start) * (self.load - 1))


def frame_sets(bag: Path) -> list[FrameSet]:
    """The complete frame sets of a bag."""
    recording, found = open_recording(ReplayOptions(bag)), []
    counter = SetCounter(recording.topics, recording.compressed, on_set=found.append)
    for message in recording.bag.messages(list(recording.topics.cameras.values())):
        counter.add(message)
    return found


def phase(pipeline: Pipeline, sets: list[FrameSet], plans: int, load: float) -> list[dict[str, Any]]:
    """``total_ms`` and ``keep`` of each plan; None where the set was dropped."""
    StretchedTimes.load = load
    rows = []
    for number in range(plans):
        frames = sets[number % len(sets)]
        state = EgoState(frames.t0_ns, 0.0, 0.0, 0.0, SPEED_MPS)
        history = EgoHistory((state,) * 5, pipeline.vla.spec.history.interval_s)
        try:
            plan = pipeline.plan(frames, history)
            assert plan.kept is not None
            rows.append({"total_ms": plan.stage_ms["total"], "keep": len(plan.kept.indices)})
        except PlannerError:
            rows.append({"total_ms": None, "keep": None})
    return rows


def summary(rows: list[dict[str, Any]], deadline_ms: float) -> dict[str, Any]:
    """What became of a phase's sets after the first ten, and of those."""
    late = [row["keep"] is not None and row["total_ms"] > deadline_ms for row in rows]
    settled = rows[SETTLING:]
    planned = [row for row in settled if row["keep"] is not None]
    met = len(planned) - sum(late[SETTLING:])
    return {
        "sets": len(settled),
        "planned": len(planned),
        "met": met,
        "met_or_dropped": round((len(settled) - sum(late[SETTLING:])) / len(settled), 4),
        "median_keep": median(row["keep"] for row in planned) if planned else None,
        "median_ms": round(median(row["total_ms"] for row in planned), 2) if planned else None,
        "late_of_the_first_ten": sum(late[:SETTLING]),
    }


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bag", type=Path, default=Path("samples/city"), help="(default: samples/city)")
    parser.add_argument("--vla", type=Path, help="VLA directory (default: the shipped one)")
    parser.add_argument("--drop", type=float, default=0.25, help="without the deadline (default: 0.25)")
    parser.add_argument("--plans", type=int, default=200, help="of each phase (default: 200)")
    parser.add_argument("--load", type=float, default=2.0, help="of the second phase (default: 2)")
    parser.add_argument("--factors", default="1.5,2.2,3", help="of the deadlines, with commas (default: 1.5,2.2,3)")
    parser.add_argument("--json", type=Path, help="(default: standard output)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    pipeline = open_pipeline(args.vla, drop=args.drop)
    sets = frame_sets(args.bag)
    pipeline_module.StageTimes = StretchedTimes  # type: ignore[misc]
    try:
        phase(pipeline, sets, SETTLING, 1.0)
        usual_ms = median(row["total_ms"] for row in phase(pipeline, sets, 3 * SETTLING, 1.0))
        report: dict[str, Any] = {"vla": pipeline.vla.path.name, "drop": args.drop, "plan_ms": round(usual_ms, 2)}
        report |= {"load": args.load, "deadlines": {}}
        for factor in map(float, args.factors.split(",")):
            StretchedTimes.load = 1.0
            pipeline.set_deadline(usual_ms * factor, K_MIN)
            loads = {"before": 1.0, "loaded": args.load, "after": 1.0}
            found = {name: phase(pipeline, sets, args.plans, load) for name, load in loads.items()}
            report["deadlines"][f"{factor:g}"] = {
                "deadline_ms": round(usual_ms * factor, 2),
                **{name: summary(rows, usual_ms * factor) for name, rows in found.items()},
            }
    finally:
        pipeline_module.StageTimes = StageTimes  # type: ignore[misc]
    text = json.dumps(report, indent=2)
    if args.json is None:
        print(text)
    else:
        args.json.write_text(text + "\n")
    return report


if __name__ == "__main__":
    main()
