"""What it saves not to encode cameras again whose image did not change, and that plans stay equal.

    python -m benchmarks.studies.token_reuse --json token_reuse.json

``encode`` has the encoder's time by the number of cameras whose image changed, in turns. ``plans`` are those of the
bag's sets, in each of which some cameras go on with their last frame, against a planner that encodes every camera.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.studies.summary import summarize, to_text
from fastdrive_node.benchmark.timing import Case, measure
from fastdrive_node.devices import choose_device, choose_dtype, describe
from fastdrive_node.errors import AnswerError, FastDriveError
from fastdrive_node.families import VisualTokens
from fastdrive_node.planning.loading import open_pipeline
from fastdrive_node.planning.pipeline import Pipeline
from fastdrive_node.planning.reuse import TokenReuse
from fastdrive_node.replay.bag import Recording
from fastdrive_node.replay.samples import PlanningSample, planning_samples
from fastdrive_node.types import FrameSet


class Turns:
    """Encodes two sets in turns, of which the first ``changed`` cameras differ."""

    def __init__(self, pipeline: Pipeline, sets: Sequence[FrameSet], changed: int):
        self.encoder = TokenReuse(pipeline.vision)
        self.encoder.verify(pipeline.vla.spec.sizes)
        first, second = (frames.frames for frames in sets)
        self._turns = itertools.cycle(
            pipeline.vision.preprocess([frame.load() for frame in frames])
            for frames in (first, (*second[:changed], *first[changed:]))
        )

    def __call__(self) -> VisualTokens:
        return self.encoder.encode(next(self._turns))


@torch.inference_mode()
def encode_rows(pipeline: Pipeline, samples: Sequence[PlanningSample], runs: int) -> list[dict[str, Any]]:
    """Of each number of changed cameras: how many were encoded, and the time."""
    cameras = range(len(pipeline.vla.spec.cameras) + 1)
    turns = {str(changed): Turns(pipeline, [each.frames for each in samples[:2]], changed) for changed in cameras}
    timings = measure(
        {name: Case(lambda _, turn=turn: turn()) for name, turn in turns.items()}, runs, pipeline.vla.device
    )
    return [
        {
            "changed": int(name),
            "encoded": len(pipeline.vla.spec.cameras) - len(turns[name].encoder.reused),
            "median_ms": round(timing.median_ms, 2),
        }
        for name, timing in timings.items()
    ]


def answer(pipeline: Pipeline, frames: FrameSet, sample: PlanningSample) -> tuple[str, list[int], int]:
    """The text, the kept tokens, and the number of cameras that were not encoded; of a refused plan too."""
    try:
        plan = pipeline.plan(frames, sample.history, sample.command)
        output = plan.output
    except AnswerError as error:
        output = error.output
    assert output is not None
    return output.text, output.kept.indices.tolist(), len(pipeline._encoder.reused)


def compare(ours: Pipeline, plain: Pipeline, samples: Sequence[PlanningSample]) -> dict[str, int]:
    """Plans of sets in which one camera, then two, ... go on with their last frame."""
    cameras, before = len(ours.vla.spec.cameras), samples[0].frames
    figures = {"plans": 0, "equal": 0, "with_reused_cameras": 0, "reused_cameras": 0}
    answer(ours, before, samples[0])
    for number, sample in enumerate(samples[1:]):
        held = {(number + step) % cameras for step in range(1 + number % (cameras - 1))}
        frames = tuple((before if place in held else sample.frames).frames[place] for place in range(cameras))
        before = replace(sample.frames, frames=frames)
        *text, reused = answer(ours, before, sample)
        plain._encoder._before = None  # every camera is encoded
        *expected, none = answer(plain, before, sample)
        assert none == 0
        figures["plans"] += 1
        figures["equal"] += text == expected
        figures["with_reused_cameras"] += reused > 0
        figures["reused_cameras"] += reused
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vla", type=Path, help="VLA directory (default: the shipped one)")
    parser.add_argument("--bag", type=Path, default=Path("samples/city"), help="(default: samples/city)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--drop", type=float, default=0.5)
    parser.add_argument("--sets", type=int, default=100, help="of the bag, at most (default: 100)")
    parser.add_argument("--runs", type=int, default=50, help="timed runs of each number of cameras (default: 50)")
    parser.add_argument("--json", type=Path, help="(default: standard output)")
    args = parser.parse_args(arguments)
    if args.runs < 1:
        parser.error(f"--runs: {args.runs}; give 1 or more")
    device = choose_device(args.device)
    options = {"drop": args.drop, "device": device, "dtype": choose_dtype(args.dtype, device)}
    ours, plain = (open_pipeline(args.vla, **options) for _ in range(2))
    ours.warm_up()
    history, cameras = ours.vla.spec.history, ours.vla.spec.cameras
    recording = Recording.open(args.bag, None, cameras)
    samples = planning_samples(recording, max(history.steps, default=0), history.interval_s, args.sets)
    figures = {
        "vla": ours.vla.path.name,
        "dtype": str(ours.vla.dtype).removeprefix("torch."),
        "encode": encode_rows(ours, samples, args.runs),
        "plans": compare(ours, plain, samples),
        "device": describe(device),
    }
    text = to_text(summarize(figures))
    if args.json is None:
        print(text)
    else:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    try:
        main()
    except FastDriveError as error:
        sys.exit(f"token_reuse: {error}")
