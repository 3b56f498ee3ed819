"""What a plan costs by visual tokens kept, cameras, image size and length of the answer.

    python -m benchmarks.studies.curves --json benchmarks/results/curves_tiny.json --picture docs/images/curves.png

The shipped VLA on noise images, in torch on this machine, without drafts: its own form, and forms that differ in one
thing each. The cases of a curve take turns. Times are medians in ms: ``encode`` is images to scored tokens, ``prefill``
and ``decode`` are the language model's. Each curve also says what one more unit costs, by least squares.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.studies.summary import summarize, to_text
from fastdrive_node.benchmark.implementations import FastDrive
from fastdrive_node.benchmark.timing import Case, Timing, measure
from fastdrive_node.benchmark.workload import noise_sample, workload
from fastdrive_node.devices import describe
from fastdrive_node.families.spec import default_vla_dir
from fastdrive_node.planning.loading import open_pipeline

STAGES = ("encode", "prefill", "decode")
ANSWER_TOKENS = 28
DROP = 0.5
# name, unit of one step, and the values of each curve
CURVES: dict[str, tuple[str, tuple[int, ...]]] = {
    "kept_tokens": ("visual tokens that the language model reads", (10, 48, 96, 144, 192)),
    "cameras": ("cameras of 32 visual tokens, all kept", (1, 2, 3, 4, 5, 6)),
    "visual_tokens": ("visual tokens of six cameras, half of them kept", (96, 192, 432, 768)),
    "answer_tokens": ("tokens of the answer, one by one", (8, 28, 56, 112)),
}
_SIZES = {96: (112, 112), 192: (224, 112), 432: (336, 168), 768: (448, 224)}  # width, height by visual tokens


def variant(source: Path, folder: Path, cameras: int | None = None, size: tuple[int, int] | None = None) -> Path:
    """A directory that links to a VLA's files, with fewer cameras or another image size."""
    folder.mkdir()
    for file in source.iterdir():
        if file.name != "vla.json":
            (folder / file.name).symlink_to(file.resolve())
    spec = json.loads((source / "vla.json").read_text())
    if cameras is not None:
        spec["cameras"] = spec["cameras"][:cameras]
    if size is not None:
        spec["image_size"] = {"width": size[0], "height": size[1]}
    (folder / "vla.json").write_text(json.dumps(spec))
    return folder


def implementation(curve: str, value: int, source: Path, folder: Path) -> FastDrive:
    """One point of a curve."""
    vla, drop, answer = source, DROP, ANSWER_TOKENS
    if curve == "cameras":
        vla, drop = variant(source, folder / f"cameras{value}", cameras=value), 0.0
    elif curve == "visual_tokens":
        vla = variant(source, folder / f"tokens{value}", size=_SIZES[value])
    elif curve == "answer_tokens":
        answer = value
    pipeline = open_pipeline(vla, drop=drop)
    if curve == "kept_tokens":
        drop = 1 - value / pipeline.vla.tokens
    work = workload(pipeline.vla, pipeline.vision, noise_sample(pipeline.vla))
    return FastDrive(work, answer, pipeline.pruner, drop, pipeline.generator.language)


def cases(one: FastDrive) -> dict[str, Case]:
    """The stages of one point; each starts from its own results of the stage before."""

    def scored():
        visual = one.encode()
        return visual, one.prune(visual)

    return {
        "encode": Case(lambda _: scored()),
        "prefill": Case(lambda state: one.prefill(*state), scored),
        "decode": Case(one.decode, lambda: one.prefill(*scored())),
    }


@torch.inference_mode()
def run(source: Path, runs: int, curves: Mapping[str, tuple[str, tuple[int, ...]]] = CURVES) -> dict[str, Any]:
    """The figures of all curves."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (unit, values) in curves.items():
            points = {value: implementation(name, value, source, Path(folder)) for value in values}
            all_cases = {f"{stage} {value}": case for value in values for stage, case in cases(points[value]).items()}
            timings = measure(all_cases, runs, torch.device("cpu"))
            found[name] = {"unit": unit, **_curve(values, timings)}
    return {"vla": source.name, "answer_tokens": ANSWER_TOKENS, "curves": found, **describe(torch.device("cpu"))}


def _curve(values: Sequence[int], timings: Mapping[str, Timing]) -> dict[str, Any]:
    rows = [
        {"at": value, **{stage: round(timings[f"{stage} {value}"].median_ms, 2) for stage in STAGES}}
        for value in values
    ]
    for row in rows:
        row["sum"] = round(sum(row[stage] for stage in STAGES), 2)
    each = {name: round(float(np.polyfit(values, [row[name] for row in rows], 1)[0]), 4) for name in (*STAGES, "sum")}
    return {"rows": rows, "ms_for_one_more": each}


def draw(figures: Mapping[str, Any], file: Path) -> None:
    """The curves as one picture, stacked by stage."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3), layout="constrained")
    for axes, (_, curve) in zip(figure.subplots(1, len(figures["curves"])), figures["curves"].items(), strict=True):
        at = [row["at"] for row in curve["rows"]]
        axes.stackplot(at, *[[row[stage] for row in curve["rows"]] for stage in STAGES], labels=STAGES)
        axes.set_xlabel(curve["unit"], fontsize=8)
        axes.set_ylim(bottom=0)
    figure.axes[0].set_ylabel("ms")
    figure.axes[0].legend(loc="lower right", fontsize=8)
    figure.savefig(file, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vla", type=Path, help="VLA directory (default: the shipped one)")
    parser.add_argument("--runs", type=int, default=30, help="timed runs of each case (default: 30)")
    parser.add_argument("--json", type=Path, help="(default: standard output)")
    parser.add_argument("--picture", type=Path, help="PNG to write")
    args = parser.parse_args(arguments)
    figures = run(args.vla or default_vla_dir(), args.runs)
    text = to_text(summarize(figures))
    if args.json is None:
        print(text)
    else:
        args.json.write_text(text + "\n")
    if args.picture is not None:
        draw(figures, args.picture)


if __name__ == "__main__":
    main()
