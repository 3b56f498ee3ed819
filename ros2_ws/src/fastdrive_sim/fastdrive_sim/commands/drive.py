"""``fastdrive sim drive``: the closed loop through the node."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fastdrive_node.cli import write_json
from fastdrive_node.commands.options import add_json_argument, add_ray_argument, at_least_one
from fastdrive_node.errors import UsageError
from fastdrive_node.types import PruningRatio
from fastdrive_sim.commands.options import size

EXAMPLE = """examples:
  fastdrive sim drive --suite smoke --pruners none,reconpruner --out drives/smoke --json -
  fastdrive sim drive --pruners none,reconpruner,random --drop 0.25,0.5,0.75 --workers 2 --out drives/standard
  fastdrive sim drive --show drives/smoke/runs/none/red-light-0.jsonl --out videos
  fastdrive sim drive --family hidden-pedestrian --runs 20 --fault frozen:0.5 --fault latency:2 --out drives/faults

A drive that was stopped goes on with the same --out and options; runs that have a file are not driven again.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Drive scenarios in closed loop: the simulator publishes cameras, odometry and command; the node, in a\n"
        "process of its own, plans; a vehicle with a controller follows its plans; other road users react. Rows\n"
        "`expert` and `constant-velocity` drive too, without the node. docs/closed_loop.md has families and scores."
    )
    parser.epilog = EXAMPLE
    add = parser.add_argument
    add("--suite", default="standard", help="standard (16 scenarios of each family) or smoke (1) (%(default)s)")
    add("--family", action="append", default=[], metavar="NAME", help="only this family; may be repeated")
    add("--runs", type=at_least_one, metavar="N", help="scenarios of each family (that of the suite)")
    add("--seed", type=int, default=0, metavar="S", help="of the first scenario of each family (%(default)s)")
    add(
        "--vla",
        type=Path,
        metavar="DIR",
        help="VLA directory (default: models/tiny_drive, which ships)",
    )
    add("--pruners", default="none,reconpruner", metavar="a,b", help="pruners by name (%(default)s)")
    add("--drop", type=_ratios, default=[PruningRatio(0.5)], metavar="p,q", help="pruning ratios (0.5)")
    add(
        "--fault",
        action="append",
        default=[],
        metavar="NAME:SEVERITY",
        help="further rows with a fault, such as frozen:0.5; may be repeated",
    )
    add("--realtime", action="store_true", help="late plans are late (default: lockstep, the same in each run)")
    add(
        "--latency-ms",
        default="0",
        metavar="L",
        help="simulated, of each plan, in lockstep (0); or a JSON file with a list of recorded ones to draw from",
    )
    add(
        "--params",
        type=Path,
        metavar="FILE",
        help="ROS 2 parameter file of the node, such as for its engines; VLA, pruner and drop of a row win",
    )
    add("--plan-hz", type=float, default=2.0, metavar="H", help="frame sets a second, a divisor of 10 (2)")
    add("--size", type=size, metavar="WxH", help="of the images (default: what the VLA reads)")
    add("--workers", type=at_least_one, default=1, metavar="N", help="processes, each with its node (%(default)s)")
    add_ray_argument(parser)
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the runs, summary.json and report.html")
    add(
        "--bags",
        choices=("state", "cameras"),
        help="a rosbag2 of each run in --out/bags: plans, odometry and others; cameras: with the images too",
    )
    add("--show", type=Path, metavar="RUN", help="drive nothing; make a video and a sheet of this run's file in --out")
    add_json_argument(parser)


def _ratios(text: str) -> list[PruningRatio]:
    try:
        return [PruningRatio(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: give pruning ratios such as 0.25,0.5,0.75") from None


def run(args: argparse.Namespace) -> None:
    """Raises UsageError for a wrong argument, FastDriveError where no node can be started."""
    from rich.console import Console

    from fastdrive_sim.drive.command import DriveOptions, drive_suite, print_table, show_run
    from fastdrive_sim.drive.latency import read_latencies

    if args.show is not None:
        write_json(show_run(args.show, args.out), args.json)
        return
    names = [name.strip() for name in args.pruners.split(",") if name.strip()]
    if args.seed < 0:
        raise UsageError(f"--seed {args.seed}: give 0 or more")
    options = DriveOptions(
        suite=args.suite,
        families=tuple(args.family),
        runs=args.runs,
        seed=args.seed,
        vla=args.vla,
        pruners=tuple(names),
        drops=tuple(map(float, args.drop)),
        faults=tuple(args.fault),
        realtime=args.realtime,
        latencies_s=read_latencies(args.latency_ms),
        params=args.params,
        plan_hz=args.plan_hz,
        size=args.size,
        workers=args.workers,
        out=args.out,
        bags=args.bags,
        ray=args.ray,
    )
    try:
        figures = drive_suite(options)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"what was driven is kept in {args.out}; the same --out and options go on") from stop
    stream = sys.stderr if args.json == "-" else sys.stdout
    print_table(figures, Console(file=stream, width=None if stream.isatty() else 120))
    write_json(figures, args.json)
