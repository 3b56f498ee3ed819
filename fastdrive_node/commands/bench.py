"""``fastdrive bench``: every stage against plain transformers in one run on this machine."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fastdrive_node import __version__
from fastdrive_node.cli import write_json
from fastdrive_node.commands.options import (
    add_device_arguments,
    add_engine_arguments,
    add_json_argument,
    add_model_arguments,
    check_engine_arguments,
)
from fastdrive_node.errors import InputError, UsageError

if TYPE_CHECKING:
    from fastdrive_node.families.spec import VlaSpec
    from fastdrive_node.planning.pipeline import Pipeline
    from fastdrive_node.replay.samples import PlanningSample

EXAMPLE = """examples:
  fastdrive bench --drop 0.75 --out bench            # bench.html, bench.md and bench.json on the sample bag
  fastdrive bench --bag drive_bag --topics topics.yaml --hz 0 --json -
"""
SAMPLE_BAG = "samples/city"
NOISE = "noise"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Time this package against plain transformers (sdpa attention, cache on, the same weights, images and dtype) "
        "stage by stage, in turns. transformers reads all visual tokens. Both write as many tokens as transformers' "
        "own answer has. Times are medians; p90, p99, the worst and the jitter are in the page and in the JSON, with "
        "memory, energy where the machine tells, the machine's floor, and a prefill at 3249 visual tokens."
    )
    parser.epilog = EXAMPLE
    add_model_arguments(parser)
    add_engine_arguments(parser)
    parser.add_argument(
        "--bag", type=Path, metavar="BAG", help="frame sets (default: the sample bag, where its cameras fit)"
    )
    parser.add_argument(
        "--topics", type=Path, metavar="F", help="topic map of the bag (default: the simulator's topics)"
    )
    parser.add_argument("--sets", type=int, default=8, metavar="N", help="frame sets, taken in turn (default: 8)")
    parser.add_argument("--runs", type=int, default=20, metavar="N", help="timed runs of each stage (default: 20)")
    help_text = "rate of a second measurement, paced as a vehicle is; 0 leaves it out (default: 2)"
    parser.add_argument("--hz", type=float, default=2.0, metavar="F", help=help_text)
    parser.add_argument(
        "--no-large", action="store_true", help="leave out the prefill at 3249 visual tokens, slow with large models"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write bench.html, bench.md and bench.json there")
    add_device_arguments(parser)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> None:
    from rich.console import Console  # heavy imports, not needed for --help

    from fastdrive_node.benchmark.comparison import compare
    from fastdrive_node.benchmark.conditions import load_warning, machine_load
    from fastdrive_node.benchmark.page import summary

    for name in ("runs", "sets"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name}: {getattr(args, name)}; give 1 or more")
    if args.hz and not 0.01 <= args.hz <= 1000:
        raise UsageError(f"--hz: {args.hz:g}; give a rate of 0.01 to 1000, or 0")
    check_engine_arguments(args.backend, args.engine)
    if args.out is not None:  # before minutes of measuring
        try:
            args.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {args.out}: cannot be made ({error.strerror}); give another folder") from error
    load = machine_load()
    pipeline, engines = _pipelines(args)
    samples, source = _samples(args, pipeline.vla.spec)
    warning = load_warning(load)
    if warning is not None:
        print(f"warning: {warning}", file=sys.stderr)
    with Console(stderr=True).status("loading") as shown:  # on a terminal only
        period_s = 1 / args.hz if args.hz else 0.0
        figures = compare(pipeline, args.runs, samples, period_s, engines, shown.update, not args.no_large)
    figures |= {"source": source, "command": shlex.join(["fastdrive", *sys.argv[1:]]), "commit": _commit()}
    figures |= {"fastdrive": __version__, "load": load}
    print(table(figures), file=sys.stderr if args.json == "-" else sys.stdout)
    print(summary(figures), file=sys.stderr if args.json == "-" else sys.stdout)
    write_json(figures, args.json)
    if args.out is not None:
        _write_pages(figures, args.out)


def _pipelines(args: argparse.Namespace) -> tuple[Pipeline, Pipeline | None]:
    """In torch, and with the engines that were given."""
    from fastdrive_node.devices import choose_device, choose_dtype
    from fastdrive_node.engines.language_engine import LanguageChoice
    from fastdrive_node.engines.vision_engine import choose_engine
    from fastdrive_node.planning.loading import open_pipeline

    device = choose_device(args.device, "--device")
    dtype = choose_dtype(args.dtype, device)
    pipeline = open_pipeline(args.vla, args.pruner, args.drop, device=device, dtype=dtype)
    engine = choose_engine(args.backend or "torch", args.engine)
    language = None if args.language_engine is None else LanguageChoice(args.language_engine)
    if engine is None and language is None:
        return pipeline, None
    model = {"device": device, "dtype": dtype, "engine": engine, "language_engine": language}
    return pipeline, open_pipeline(args.vla, args.pruner, pipeline.drop, **model)


def _samples(args: argparse.Namespace, spec: VlaSpec) -> tuple[list[PlanningSample], str]:
    """Frame sets and their source; none, for noise, where the VLA's cameras are not those of the sample bag."""
    from fastdrive_node.families.spec import package_share_file
    from fastdrive_node.replay.bag import Recording
    from fastdrive_node.replay.samples import planning_samples
    from fastdrive_node.ros.topics import load_topic_map

    topics = None if args.topics is None else load_topic_map(args.topics)
    try:
        bag = args.bag or package_share_file(f"{SAMPLE_BAG}/metadata.yaml").parent
        recording = Recording.open(bag, topics, spec.cameras)
    except InputError:
        if args.bag is not None:
            raise
        return [], NOISE
    found = planning_samples(recording, max(spec.history.steps, default=0), spec.history.interval_s, args.sets)
    if not found:
        raise InputError(f"{bag}: no frame set of all cameras with odometry; see `fastdrive replay {bag}`")
    return found, str(args.bag or SAMPLE_BAG)


def _commit() -> str:
    """Of the checkout that this runs from; "unknown" elsewhere."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return found.stdout.strip() or "unknown"


def _write_pages(figures: dict, folder: Path) -> None:
    from fastdrive_node.benchmark.page import html, markdown

    write_json(figures, str(folder / "bench.json"))
    for name, text in (("bench.html", html(figures)), ("bench.md", markdown(figures))):
        (folder / name).write_text(text, encoding="utf-8")
    print(f"wrote {folder / 'bench.html'}, bench.md and bench.json", file=sys.stderr)


def table(figures: dict) -> str:
    """The figures in lines for people."""
    lines = ["stage              ours [ms]   transformers [ms]"]
    for name, times in figures["stages"].items():
        lines.append(f"{name:15} {times['ours_ms']:12.2f} {times['transformers_ms']:19.2f}")
        if name == "encode":
            lines.append(f"{'prune':15} {figures['prune_ms']:12.2f} {'-':>19}")
    same, of = figures["equal_answers"]
    lines.append(
        f"the answer without dropping is {'the same' if figures['same_text'] else 'ANOTHER'}; with drafts and engines "
        f"{same} of {of} answers are those of plain greedy decoding"
    )
    return "\n".join(lines)
