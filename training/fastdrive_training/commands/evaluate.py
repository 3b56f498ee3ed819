"""``fastdrive evaluate``: open-loop planning on a dataset."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastdrive_node.cli import write_json
from fastdrive_node.cluster import open_cluster
from fastdrive_node.commands.options import add_ray_argument
from fastdrive_node.files import GEOMETRY_FILE, TOKEN_PACKER_FILE
from fastdrive_node.pruning.catalog import FILES, NAMES, PRUNERS, VARIANTS
from fastdrive_training.commands.options import (
    KEPT,
    add_dataset_arguments,
    figures_table,
    interrupted_with,
    names,
    open_dataset,
    pruner_file,
    shard_of,
)

if TYPE_CHECKING:
    from rich.table import Table

    from fastdrive_node.families import Vla
    from fastdrive_training.data.adapters import ImageSource

RATES = {  # heads of columns
    "coll. [%]": "collision_polygon",
    "any coll. [%]": "collision_any",
    "off [%]": "off_drivable",
    "cross [%]": "intersection",
}
RELATIVE = {"L2": "l2_avg_to_t", "coll.": "collision_polygon", "any coll.": "collision_any"}
TAILS = {  # heads of columns: figure, what it is multiplied by, form
    "90 % of loss in [%]": ("loss_90_samples", 100, ".1f"),
    "worst 5 % lose [m]": ("worst5_loss", 1, ".3f"),
    "new coll. [%]": ("new_collisions", 100, ".2f"),
    "gone [%]": ("gone_collisions", 100, ".2f"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compare plans with the recorded future: L2 in metres (mean of all steps up to t, and at t), collision of\n"
        "exact boxes (mean of the steps up to t) and with vehicles on BEV-Planner's raster (any step up to t),\n"
        "leaving the drivable area, intersection with its boundary, and what each pruner costs. Relative performance\n"
        "is the figure on all tokens over that on the kept ones, on the samples that both answered.\n"
        "Refused answers are counted and not scored; items without 3 s of future are skipped and counted. A dataset\n"
        "with ego motion alone gives L2; the other figures are then null.\n"
        "The row constant-velocity goes straight ahead at the current speed. Intervals are 95 % by the bootstrap;\n"
        "`comparisons` are paired, sample by sample. With --out the run can be cut off and goes on when called again,\n"
        "pruners, ratios and seeds may be added, and every answer is kept in OUT/samples.parquet.\n"
        "With --shard, give every shard the same --out: each has its own folder there, and `fastdrive evaluate-report\n"
        "OUT` merges them. Costs are measured by shard 0."
    )
    parser.epilog = (
        "example:\n  fastdrive evaluate data/sim --split val --vla models/tiny \\\n"
        "      --pruners none,random,reconpruner --drop 0.5,0.75 --seeds 3 --out runs/open_loop --json -\n"
        "  for i in 0 1 2 3; do fastdrive evaluate data/nuscenes --split val --masks masks/val --no-timing \\\n"
        "      --shard $i/4 --device cuda:$i --out runs/val & done; wait; fastdrive evaluate-report runs/val\n"
        "  fastdrive evaluate data/nuscenes --split val --no-timing --ray auto --out runs/val"
    )
    add_dataset_arguments(parser)
    parser.add_argument(
        "--pruners",
        type=names,
        metavar="A,B",
        help=f"of {', '.join(NAMES)} (all but temporal and even ones, as far as masks and calibration allow)",
    )
    parser.add_argument("--drop", type=_ratios, default=(0.25, 0.5, 0.75), metavar="P,P", help="pruning ratios p")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs of the random pruner (%(default)s)")
    parser.add_argument("--images", choices=("own", "shuffled"), default="own", help="shuffled: of another scene")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="items at a time (%(default)s)")
    parser.add_argument("--masks", type=Path, metavar="DIR", help="masks of fastdrive annotate (the dataset's own)")
    parser.add_argument("--no-timing", action="store_true", help="leave pruner_ms, prefill_ms and decode_ms out (null)")
    parser.add_argument("--shard", type=shard_of, metavar="I/N", help="part I of N of the samples, from 0 (all)")
    add_ray_argument(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep the run here and go on with it")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep encoder features here (OUT/features)")


def run(args: argparse.Namespace) -> None:
    """Raises InputError for the data or an argument, ModelError for the VLA or pruner."""
    from rich.console import Console  # heavy imports, not needed for --help

    from fastdrive_node.families.spec import SHIPPED_VLA
    from fastdrive_training.evaluation import OpenLoopSettings, evaluate

    hint = KEPT.format("segments") if args.out else "nothing is kept without --out"
    with interrupted_with(hint), open_cluster(args.ray, args.device) as cluster:
        source, vla = open_dataset(args, cluster)
        pruners = args.pruners or all_pruners(source, vla, pruner_file(args), args.drop)
        settings = OpenLoopSettings(
            pruners=pruners,
            drops=args.drop,
            seeds=args.seeds,
            pruner_file=pruner_file(args),
            shuffled=args.images == "shuffled",
            limit=args.limit,
            batch=args.batch,
            out=args.out,
            cache=args.cache,
            timing=not args.no_timing,
            masks=args.masks,
            shard=args.shard,
        )
        if args.shard and not args.out:
            print("--shard without --out: the figures are of this shard alone and cannot be merged", file=sys.stderr)
        figures = evaluate(source, vla, settings, cluster=cluster)
    console = Console(file=sys.stderr, width=None if sys.stderr.isatty() else 132)
    for each in tables(figures):
        console.print(each)
    for text in unknown_figures(figures, source.missing_maps):
        console.print(text)
    write_json({"dataset": args.dataset, "split": args.split, "vla": args.vla or SHIPPED_VLA, **figures}, args.json)


def all_pruners(source: ImageSource, vla: Vla, file: Path, drops: Sequence[float] = ()) -> tuple[str, ...]:
    """What the data, the pruner file and the pruning ratios allow.

    Left out are the oracle without masks or for a VLA of past images, ring-view without the cameras' geometry beside
    the VLA, tokenpacker and others whose own file is not there, pruners that keep more tokens than a ratio leaves, the
    variants that are calibrated without a calibration for all cameras, those of even spacing and of pooled cells, and
    the one with a memory, which at the usual two keyframes a second is as without.
    """
    from fastdrive_node.pruning.checkpoint import load_calibration  # these import torch
    from fastdrive_node.pruning.registry import least_keep

    calibration = load_calibration(file)
    allowed = {
        "oracle": source.has_masks and not vla.spec.frames,
        "ring-view": (vla.path / GEOMETRY_FILE).exists(),
        "tokenpacker": (vla.path / TOKEN_PACKER_FILE).exists(),
    }
    fewest = _kept(vla.tokens, max(drops, default=0.0))
    names = [name for name in PRUNERS if allowed.get(name, True) and least_keep(name, vla) <= fewest]
    names += [name for name, own in FILES.items() if (vla.path / own).exists()]
    if calibration is not None and not vla.spec.image_sizes and set(vla.spec.cameras) <= set(calibration.cameras):
        names += [name for name, options in VARIANTS.items() if options.needs_calibration]
    return tuple(names)


def _kept(tokens: int, drop: float) -> int:
    """K; 1 for a ratio out of range, which the settings refuse."""
    from fastdrive_node.pruning.select import keep_count  # imports torch

    try:
        return keep_count(tokens, drop)
    except ValueError:
        return 1


def unknown_figures(figures: dict, missing_maps: Sequence[str] = ()) -> list[str]:
    """A line for the figures that are null in every row, and why; and for those that miss samples for want of maps."""
    lines = []
    if not _most_judged(figures, "collision_polygon"):
        lines.append("collision_polygon is null: the dataset does not have objects for these samples")
    elif not _most_judged(figures, "collision_any"):
        lines.append("collision_any is null: the dataset does not say which objects are vehicles")
    roads = _most_judged(figures, "off_drivable")
    state = f"are of {roads} samples only" if roads else "are null"
    if missing_maps:
        lines.append(
            f"off_drivable and intersection {state}: {len(missing_maps)} map masks are missing ({missing_maps[0]}); "
            "nuScenes' come with its metadata archive, a simulated dataset must be written again (docs/nuscenes.md)"
        )
    elif not roads:
        lines.append(f"off_drivable and intersection {state}: the dataset has no drivable area for these samples")
    return lines


def _most_judged(figures: dict, name: str) -> int:
    return max((row["judged"][name] for row in figures["rows"]), default=0)


def tables(figures: dict) -> list[Table]:
    """Tables of the rows, no wider than 100 columns: planning figures, with rates as the mean of 1, 2 and 3 s, relative
    performance, and costs."""
    title = f"{figures['samples']} samples, {figures['images']} images; {figures['without_future']} without future"
    planned = ("seed", "refused", "L2 [m]", "95 % [m]", "L2 at 3 s [m]", *RATES)
    measured = ("tokens", "GFLOPs", "pruner [ms]", "prefill [ms]", "token [ms]", "memory [MB]")
    planning = figures_table(title, "pruner", "drop", *planned)
    title = "relative performance in %, all tokens = 100; what is lost in L2 against all tokens, and collisions"
    relative = figures_table(title, "pruner", "drop", "seed", *RELATIVE, *TAILS)
    costs = figures_table("medians of single samples", "pruner", "drop", *measured)
    for row in figures["rows"]:
        l2, ends = row["l2_avg_to_t"], row["interval_95"]["l2_avg_to_t"]
        rates = [row[name] and 100 * row[name]["avg"] for name in RATES.values()]
        planning.add_row(
            row["pruner"],
            f"{row['drop']:g}",
            str(row["seed"]),
            str(row["refused"]),
            _text(l2["avg"], ".3f"),
            "-" if ends is None else f"{ends[0]:.3f}..{ends[1]:.3f}",
            _text(l2["3s"], ".3f"),
            *(_text(rate, ".2f") for rate in rates),
        )
        if row["relative_performance"] is not None and row["drop"]:
            found = [row["relative_performance"][name] for name in RELATIVE.values()]
            texts = ("-" if one is None else f"{100 * one:.1f}" for one in found)
            relative.add_row(row["pruner"], f"{row['drop']:g}", str(row["seed"]), *texts, *_tail_texts(row["tails"]))
        if row["seed"] or row["flops"] is None:
            continue  # seeds cost the same, and a plan without a model nothing
        costs.add_row(
            row["pruner"],
            f"{row['drop']:g}",
            _text(row["tokens"], ".4g"),
            _text(row["flops"] / 1e9, ".3g"),
            *(_text(row[name], ".2f") for name in ("pruner_ms", "prefill_ms", "decode_ms_per_token")),
            _text(row["peak_memory_mb"], ".4g"),
        )
    return [table for table in (planning, relative, costs) if table.row_count or table is not relative]


def _tail_texts(tails: dict[str, float | None]) -> list[str]:
    values = ((tails[name], scale, form) for name, scale, form in TAILS.values())
    return [_text(None if value is None else scale * value, form) for value, scale, form in values]


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _ratios(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write ratios as in 0.25,0.5") from None
