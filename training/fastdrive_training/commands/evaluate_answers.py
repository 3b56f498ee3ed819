"""``fastdrive evaluate-answers``: open-loop figures of answers that another program wrote."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fastdrive_node.cli import write_json
from fastdrive_node.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from fastdrive_node.families.spec import VlaSpec

COLUMNS = {
    "L2 avg-to-t [m]": "l2_avg_to_t",
    "L2 at t [m]": "l2_at_t",
    "polygons": "collision_polygon",
    "ST-P3": "collision_st_p3",
    "VAD": "collision_vad",
    "UniAD": "collision_uniad",
    "BEV-Planner, any": "collision_any",
    "boundary, any": "intersection",
    "off road, any": "off_drivable",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Judge recorded answers of any model by all open-loop conventions side by side: L2 (mean up to t, and at t),\n"
        "collision by polygons and by the rasters of ST-P3, VAD, UniAD and BEV-Planner, crossing of the boundary of\n"
        "the road, and leaving it. ANSWERS is JSON lines or one JSON array: texts (`text`, `predict`, or the last\n"
        "turn of ShareGPT's `messages` or `conversations`) or paths (`waypoints`: [x, y] of the rear axle in the ego\n"
        "frame, 0.5 s apart). A keyframe is named by `sample_token`, `token`, `id`, or an image's file (`images`).\n"
        "UniAD's and BEV-Planner's rasters count vehicles, the others objects of all classes."
    )
    parser.epilog = (
        "examples:\n  fastdrive evaluate-answers answers.jsonl --dataset data/nuscenes --split val --json -\n"
        "  fastdrive evaluate-answers generated_predictions.jsonl --questions nuscenes_test.json \\\n"
        "      --dataset data/nuscenes --split val --zeros\n"
        "  fastdrive evaluate-answers answers.jsonl --vla models/tiny --dataset data/sim_test --split test"
    )
    parser.add_argument("answers", metavar="ANSWERS", type=Path, help="recorded answers")
    parser.add_argument("--dataset", metavar="DATASET", required=True, help="with keyframes and their future")
    parser.add_argument("--split", metavar="S", help="train, val, test, or one of nuScenes' (all items)")
    parser.add_argument(
        "--questions",
        metavar="FILE",
        type=Path,
        help="what was answered, in the same order, if answers name nothing",
    )
    parser.add_argument("--vla", metavar="DIR", type=Path, help="whose vla.json says how an answer is read")
    parser.add_argument(
        "--template",
        metavar="T",
        help="how an answer is read, without --vla: impromptu-1v (default), impromptu-6v, impromptu-waymo, or tiny",
    )
    parser.add_argument(
        "--zeros",
        action="store_true",
        help="score unreadable answers as paths of zeros, as Impromptu-VLA's script does",
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures here; - is standard output")


def run(args: argparse.Namespace) -> None:
    """Raises UsageError, or InputError where a file or an answer's keyframe is wrong."""
    from rich.console import Console  # heavy imports, not needed for --help

    from fastdrive_training.data.adapters import open_source
    from fastdrive_training.evaluation.recorded_answers import judge_answers, match, read_recorded

    spec = _spec(args)
    answers = read_recorded(args.answers)
    questions = None if args.questions is None else read_recorded(args.questions)
    source = open_source(args.dataset, args.split, all_splits=True)
    places = match(answers, source, questions)
    figures = judge_answers(answers, places, source, spec, args.zeros)
    console = Console(file=sys.stderr, width=None if sys.stderr.isatty() else 160)
    console.print(table(figures))
    console.print(
        f"{figures['answers']} answers to {figures['keyframes']} keyframes, {figures['unreadable']} unreadable"
    )
    for reason, count in figures["reasons"].items():
        console.print(f"{count:6}  {reason}", markup=False)
    write_json(figures, args.json)


def _spec(args: argparse.Namespace) -> VlaSpec:
    from fastdrive_node.families.spec import load_spec
    from fastdrive_node.families.templates import TEMPLATES

    if args.vla is not None and args.template is not None:
        raise UsageError("--template: --vla says already how an answer is read; give one of the two")
    if args.vla is not None:
        return load_spec(args.vla)
    name = args.template or "impromptu-1v"
    if name not in TEMPLATES:
        raise UsageError(f"--template {name}: use {', '.join(TEMPLATES)}")
    return TEMPLATES[name]().spec


def table(figures: dict) -> Table:
    """For people: the mean of 1, 2 and 3 s."""
    from rich.table import Table

    result = Table(title=f"mean of 1, 2 and 3 s; unreadable answers are {figures['unreadable_are']}")
    result.add_column("plans")
    for name in ("scored", *COLUMNS):
        result.add_column(name, justify="right")
    for row in figures["rows"]:
        values = [row.get(column) for column in COLUMNS.values()]
        texts = ["-" if value is None else f"{value['avg']:.4f}" for value in values]
        result.add_row(row["name"], str(row["scored"]), *texts)
    return result
