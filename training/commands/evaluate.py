"""``fastdrive evaluate``: open-loop planning on a dataset."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console
from rich.table import Table

from fastdrive_node.cli import write_json
from fastdrive_node.pruning.baselines import PRUNERS
from fastdrive_training.commands.options import add_dataset_arguments, open_dataset, pruner_file
from fastdrive_training.open_loop import OpenLoopSettings, evaluate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compare plans with the recorded future: L2 in metres, as the mean of all steps up to t and at t.\n"
        "Refused answers are counted and not scored; keyframes without 3 s of future are skipped and counted.\n"
        "The row constant-velocity goes straight ahead at the current speed."
    )
    parser.epilog = (
        "example:\n  fastdrive evaluate data/sim --split val --vla models/tiny \\\n"
        "      --pruners none,random,reconpruner --drop 0.5,0.75 --seeds 3 --json -"
    )
    add_dataset_arguments(parser)
    parser.add_argument("--pruners", type=_names, default=PRUNERS, metavar="A,B", help=f"of {', '.join(PRUNERS)} (all)")
    parser.add_argument("--drop", type=_ratios, default=(0.25, 0.5, 0.75), metavar="P,P", help="pruning ratios p")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs of the random pruner (%(default)s)")
    parser.add_argument("--images", choices=("own", "shuffled"), default="own", help="shuffled: of another scene")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="keyframes at a time (%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Raises InputError for the data or an argument, ModelError for the VLA or pruner."""
    settings = OpenLoopSettings(
        pruners=args.pruners,
        drops=args.drop,
        seeds=args.seeds,
        pruner_file=pruner_file(args) if "reconpruner" in args.pruners else None,
        shuffled=args.images == "shuffled",
        limit=args.limit,
        batch=args.batch,
    )
    dataset, vla = open_dataset(args)
    figures = evaluate(dataset, vla, settings)
    Console(file=sys.stderr).print(table(figures))
    write_json({"dataset": args.dataset, "split": args.split, "vla": str(vla.path), **figures}, args.json)


def table(figures: dict) -> Table:
    """The rows for people; L2 as avg-to-t."""
    title = f"{figures['samples']} samples, {figures['images']} images; {figures['without_future']} without future"
    result = Table(title=title)
    for name in (
        "pruner",
        "drop",
        "seed",
        "tokens",
        "refused",
        "L2 1s",
        "2s",
        "3s",
        "avg [m]",
        "prefill ms",
        "ms/token",
    ):
        result.add_column(name, justify="left" if name == "pruner" else "right")
    for row in figures["rows"]:
        errors = [_text(row["l2_avg_to_t"][key], ".3f") for key in ("1s", "2s", "3s", "avg")]
        times = [_text(row.get(key), ".1f") for key in ("prefill_ms", "decode_ms_per_token")]
        head = [row["pruner"], f"{row['drop']:g}", str(row["seed"]), str(row.get("tokens", "-")), str(row["refused"])]
        result.add_row(*head, *errors, *times)
    return result


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _ratios(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write ratios as in 0.25,0.5") from None
