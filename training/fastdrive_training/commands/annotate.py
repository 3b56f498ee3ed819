"""``fastdrive annotate``: foreground masks by Grounding DINO and SAM."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fastdrive_node.cli import write_json
from fastdrive_node.cluster import open_cluster
from fastdrive_node.commands.options import add_ray_argument
from fastdrive_training.commands.options import (
    KEPT,
    figures_table,
    interrupted_with,
    names,
    require_positive,
    shard_of,
)
from fastdrive_training.data.adapters import KINDS

if TYPE_CHECKING:
    from rich.table import Table

    from fastdrive_training.annotate.models import GroundedSam
    from fastdrive_training.annotate.settings import AnnotateSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make foreground masks: Grounding DINO finds humans, roads, vehicles, traffic signs and barriers by text, SAM\n"
        "cuts them out. What is in doubt is marked to be ignored. A run that stopped goes on where it was; finished\n"
        "images are skipped, damaged masks are made again. Trainers read the folder in place of a dataset's own masks."
    )
    parser.epilog = (
        "examples:\n"
        "  fastdrive annotate data/nuscenes masks/try --split train --limit 10     # look at masks/try/samples.html\n"
        "  fastdrive annotate data/nuscenes masks/train --split train --shard 0/4  # and 1/4, 2/4, 3/4 elsewhere\n"
        "  fastdrive annotate data/nuscenes masks/train --split train --ray auto\n"
        "  fastdrive annotate data/nuscenes masks/train --split train --recompose --set composition.accept=0.4"
    )
    parser.add_argument("source", metavar="SOURCE", help="nuScenes-schema dataset, KITTI, Waymo, or a folder of images")
    parser.add_argument("out", metavar="OUT", help="folder of the masks; one for each split")
    parser.add_argument("--split", metavar="S", help="of the dataset; must be named where it has several")
    parser.add_argument("--kind", choices=("auto", *KINDS), default="auto", help="layout of SOURCE (by its files)")
    parser.add_argument("--cameras", type=names, metavar="A,B", help="only these (all)")
    parser.add_argument(
        "--config", metavar="FILE", help="YAML of groups, prompts, models, thresholds (the shipped one)"
    )
    parser.add_argument("--detector", metavar="M", help="Grounding DINO: a name on the hub or a folder")
    parser.add_argument("--segmenter", metavar="M", help="SAM: a name on the hub or a folder")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key; repeatable")
    parser.add_argument("--shard", type=shard_of, default="0/1", metavar="I/N", help="part I of N, from 0 (0/1)")
    parser.add_argument("--limit", type=int, metavar="N", help="so many items only, evenly spread, to try things out")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at a time (%(default)s)")
    parser.add_argument("--recompose", action="store_true", help="new thresholds: masks anew from stored instances")
    parser.add_argument("--samples", type=int, default=24, metavar="N", help="images on the page (%(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, or auto: cuda where there is one")
    add_ray_argument(parser)
    parser.add_argument("--json", metavar="FILE", help="write the figures here; - is standard output")


def run(args: argparse.Namespace) -> None:
    """Raises InputError for the data, the configuration or OUT, ModelError for the models."""
    from rich.console import Console  # heavy imports, not needed for --help

    from fastdrive_training.annotate.run import Annotation, raise_failures
    from fastdrive_training.annotate.settings import load_settings
    from fastdrive_training.data.adapters import open_source

    require_positive("--limit", args.limit)
    require_positive("--batch-size", args.batch_size)
    named = {"detector": args.detector, "segmenter": args.segmenter}
    models = [f"models.{role}={name}" for role, name in named.items() if name]
    settings = load_settings(args.config, [*args.set, *models])
    source = open_source(args.source, args.split, args.kind, cameras=args.cameras, own_masks=False)
    with interrupted_with(KEPT.format("images")), open_cluster(args.ray, args.device) as cluster:
        load = partial(load_models, settings, cluster.device if cluster else args.device)
        options = (args.shard, load, args.recompose, args.limit, args.batch_size, cluster)
        annotation = Annotation(source, Path(args.out), settings, *options)
        outcome = annotation.run()
    figures = annotation.finish(outcome, args.samples)
    console = Console(file=sys.stderr)
    console.print(table(figures))
    if not figures["complete"]:
        console.print(f"{figures['images'] - figures['finished']} images are left; run again, or the other shards")
    write_json({"source": args.source, "out": args.out, "shard": str(args.shard), **figures}, args.json)
    raise_failures(outcome)


def load_models(settings: AnnotateSettings, device: str) -> GroundedSam:
    """Detector and segmenter, in the process that calls it."""
    from fastdrive_node.devices import choose_device
    from fastdrive_training.annotate.models import GroundedSam

    return GroundedSam(settings, choose_device(device, "--device"))


def table(figures: dict) -> Table:
    """The counts by class for people."""
    title = f"{figures['finished']} of {figures['images']} images, split {figures['split'] or 'none'}"
    result = figures_table(title, "class", "instances", "in doubt", "images", "pixels", "mean score")
    for name, count in figures["classes"].items():
        score = "-" if count["mean_score"] is None else f"{count['mean_score']:.2f}"
        counts = [str(count[key]) for key in ("instances", "in_doubt", "images")]
        result.add_row(name, *counts, f"{count['pixel_share']:.2%}", score)
    return result
