"""``fastdrive sim``: what the simulator writes, one subcommand each."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastdrive_node.cli import write_json
from fastdrive_node.errors import FastDriveError, UsageError
from fastdrive_sim.bag import STORAGES, TRANSPORTS, BagSpec, write_bag
from fastdrive_sim.dataset import SPLITS, DatasetSpec, write_dataset
from fastdrive_sim.errors import SimError, SimUsageError
from fastdrive_sim.scenarios import SCENARIOS


@dataclass(frozen=True)
class Subcommand:
    """``run`` returns the figures for ``--json``."""

    summary: str
    description: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], dict]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Write what the simulated vehicle sees: a dataset or a bag."
    parser.epilog = "`fastdrive sim SUBCOMMAND --help` shows more. " + SUBCOMMANDS["dataset"].example
    subparsers = parser.add_subparsers(dest="subcommand", metavar="SUBCOMMAND", required=True)
    for name, subcommand in SUBCOMMANDS.items():
        child = subparsers.add_parser(
            name,
            help=subcommand.summary,
            description=subcommand.description,
            epilog=subcommand.example,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        subcommand.add_arguments(child)
        child.add_argument("--json", metavar="FILE", help="write the figures here; - is standard output")


def run(args: argparse.Namespace) -> None:
    """Run one subcommand. Raises FastDriveError with the simulator's own one-line reason."""
    try:
        figures = SUBCOMMANDS[args.subcommand].run(args)
    except SimUsageError as error:
        raise UsageError(str(error)) from error
    except SimError as error:
        raise FastDriveError(str(error)) from error
    write_json(figures, args.json)


def size(text: str) -> tuple[int, int]:
    """``280x168`` as (width, height); an argparse type."""
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write WIDTHxHEIGHT, as in 280x168")
    return int(match[1]), int(match[2])


def _workers(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give 1 or more")
    return int(text)


def _picture_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to write")
    parser.add_argument("--seed", type=int, required=True, help="decides the worlds; same seed, same bytes")
    parser.add_argument("--size", type=size, default=(280, 168), metavar="WxH", help="of each image (280x168)")
    parser.add_argument("--jpeg-quality", type=int, default=92, help="1 to 100 (92)")
    parser.add_argument(
        "--scenario",
        choices=SCENARIOS,
        default="default",
        help="step-out: pedestrians step out in front of the vehicle from behind parked trucks and buses (default)",
    )


def _dataset_arguments(parser: argparse.ArgumentParser) -> None:
    _picture_arguments(parser)
    parser.add_argument("--keyframes", type=int, required=True, help="of all scenes together; six images each")
    parser.add_argument("--split", choices=SPLITS, help="put all scenes into one split (default: 70/15/15)")
    parser.add_argument("--hz", type=int, default=2, help="keyframes a second, a divisor of 20 (2)")
    parser.add_argument("--scene-keyframes", type=int, default=40, help="keyframes of a scene (40)")
    parser.add_argument("--workers", type=_workers, default=2, help="processes, one per core (2)")


def _run_dataset(args: argparse.Namespace) -> dict:
    width, height = args.size
    spec = DatasetSpec(
        keyframes=args.keyframes,
        seed=args.seed,
        split=args.split,
        width=width,
        height=height,
        hz=args.hz,
        scene_keyframes=args.scene_keyframes,
        jpeg_quality=args.jpeg_quality,
        scenario=args.scenario,
    )
    return write_dataset(args.out, spec, workers=args.workers)


def _bag_arguments(parser: argparse.ArgumentParser) -> None:
    _picture_arguments(parser)
    parser.add_argument("--seconds", type=float, required=True, help="length of the drive")
    parser.add_argument("--hz", type=float, required=True, help="image sets a second, a rate that divides 20")
    parser.add_argument("--storage", choices=tuple(STORAGES), default="mcap", help="(mcap)")
    parser.add_argument("--transport", choices=TRANSPORTS, default="raw", help="raw rgb8 or JPEG (raw)")


def _run_bag(args: argparse.Namespace) -> dict:
    width, height = args.size
    spec = BagSpec(
        seconds=args.seconds,
        hz=args.hz,
        seed=args.seed,
        storage=args.storage,
        transport=args.transport,
        width=width,
        height=height,
        jpeg_quality=args.jpeg_quality,
        scenario=args.scenario,
    )
    return write_bag(args.out, spec)


SUBCOMMANDS = {
    "dataset": Subcommand(
        "a dataset in the nuScenes schema, with exact masks",
        "Write a dataset in the nuScenes schema: six cameras, 3D boxes, drivable area, and beside them the class of\n"
        "each pixel and the future of each keyframe. A run that was stopped goes on with the same arguments.\n"
        "With --scenario step-out, extras.json says of each keyframe which pedestrians came into sight and when, and\n"
        "step_out/ holds their pixels.",
        "example: fastdrive sim dataset data/sim --keyframes 400 --seed 1 --json -",
        _dataset_arguments,
        _run_dataset,
    ),
    "bag": Subcommand(
        "a rosbag2 with the topics of a vehicle",
        "Write a rosbag2: six image topics with camera info, /odom at 20 Hz, /driving_command and /tf_static.",
        "example: fastdrive sim bag data/drive --seconds 120 --hz 2 --seed 1 --transport compressed --json -",
        _bag_arguments,
        _run_bag,
    ),
}
