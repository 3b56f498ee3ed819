"""What idle threads of one runtime cost the other: models/tiny with engines of both parts, from camera to plan.

    python -m benchmarks.perf.engine_threads --engines .venv/engines --json engine_threads.json

onnxruntime's threads spin on for a while after a run, and torch's do after an operation. Where the cores are few they
take the time of whatever runs next. Each row is one choice, with its own sessions.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import onnxruntime
import torch

from fastdrive_node.benchmark.implementations import FastDrive
from fastdrive_node.benchmark.timing import Case, measure
from fastdrive_node.benchmark.workload import workload
from fastdrive_node.engines.language_engine import LanguageChoice
from fastdrive_node.engines.vision_engine import EngineChoice
from fastdrive_node.planning.answer_format import answer_format
from fastdrive_node.planning.loading import open_pipeline
from fastdrive_node.replay.bag import Recording
from fastdrive_node.replay.samples import planning_samples

BAG = Path("samples/city")
DROP, ANSWER_TOKENS = 0.75, 28
STOP = "session.force_spinning_stop"
# name: what the sessions are told beside their number of threads, and torch's threads (None: one for each core)
CHOICES: dict[str, tuple[dict[str, str], int | None]] = {
    "as the runtimes come": ({}, None),
    "sessions never spin": ({"session.intra_op.allow_spinning": "0"}, None),
    "sessions never spin, one torch thread": ({"session.intra_op.allow_spinning": "0"}, 1),
    "sessions stop spinning after a run": ({STOP: "1"}, None),
    "sessions stop spinning after a run, one torch thread (as built)": ({STOP: "1"}, 1),
}


@contextmanager
def sessions_told(entries: dict[str, str]) -> Iterator[None]:
    """Sessions that are opened meanwhile get these entries and no others."""

    class Told(onnxruntime.SessionOptions):
        def __init__(self):
            super().__init__()
            for name, value in entries.items():
                super().add_session_config_entry(name, value)

        def add_session_config_entry(self, name: str, value: str) -> None:
            pass

    with patch.object(onnxruntime, "SessionOptions", Told):
        yield


def opened(engines: Path) -> FastDrive:
    """models/tiny with engines of both parts, and one frame set of the sample bag."""
    vision = EngineChoice("onnxruntime", engines / "vision.onnx")
    pipeline = open_pipeline(drop=DROP, engine=vision, language_engine=LanguageChoice(engines / "language.onnx"))
    spec, form = pipeline.vla.spec, answer_format(pipeline.vla)
    recording = Recording.open(BAG, None, spec.cameras)
    sample = planning_samples(recording, max(spec.history.steps, default=0), spec.history.interval_s, 1)[0]
    work = workload(pipeline.vla, pipeline.vision, sample)
    return FastDrive(work, ANSWER_TOKENS, pipeline.pruner, DROP, pipeline.generator.language, form.drafter)


def case(engines: Path, entries: dict[str, str], threads: int) -> Case:
    """Camera to plan."""
    with sessions_told(entries):
        one = opened(engines)
    return Case(lambda _: one.camera_to_plan(), threads=threads)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=Path, required=True, help="folder of vision.onnx and language.onnx")
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    cores, rows = torch.get_num_threads(), {}
    for name, (entries, threads) in CHOICES.items():  # one after the other: sessions that spin would disturb the rest
        torch.set_num_threads(cores)
        timing = measure({name: case(args.engines, entries, threads or cores)}, args.runs, torch.device("cpu"), 5)[name]
        rows[name] = {"median_ms": round(timing.median_ms, 2), "p99_ms": timing.spread["p99_ms"]}
        print(f"{timing.median_ms:8.1f} ms  {name}", flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps({"cores": cores, "drop": DROP, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
