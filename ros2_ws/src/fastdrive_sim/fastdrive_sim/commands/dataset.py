"""``fastdrive sim dataset``: a dataset in the nuScenes schema, with exact masks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fastdrive_node.cli import write_json
from fastdrive_node.commands.options import at_least_one
from fastdrive_node.errors import UsageError
from fastdrive_sim.commands.options import add_image_arguments, read_spec
from fastdrive_sim.scenarios import CLOSED_LOOP, DEFAULT, SCENARIOS
from fastdrive_sim.types import SPLITS

if TYPE_CHECKING:
    from fastdrive_sim.dataset import DatasetSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write a dataset in the nuScenes schema: camera images, 3D boxes, drivable area, and beside them the class of\n"
        "each pixel and the future of each keyframe. A run that was stopped continues with the same arguments.\n"
        "With --scenario step-out, extras.json says for each keyframe which pedestrians came into sight and when, and\n"
        "step_out/ holds their pixels. With --scenario drive, each scene is one of the closed loop's, in which the\n"
        "expert is disturbed, and future_xy is what it would do from there.\n"
        "With --from-drive the states are those that a planner has reached in `fastdrive sim drive`, labelled in the\n"
        "same way (DAgger).\n"
        "With --domain the images of the same worlds look different; masks, boxes and futures stay the same."
    )
    parser.epilog = (
        "example: fastdrive sim dataset data/sim --keyframes 400 --seed 1 --json -\n"
        "         fastdrive sim dataset data/dagger --from-drive drives/first --row none"
    )
    add_image_arguments(parser, needs_seed=False)
    parser.add_argument("--keyframes", type=int, help="of all scenes together; one image of each camera")
    parser.add_argument("--split", choices=SPLITS, help="of all scenes (default: 70/15/15; train with --from-drive)")
    parser.add_argument("--hz", type=int, default=2, help="keyframes a second, a divisor of 20 (2)")
    parser.add_argument("--scene-keyframes", type=int, help="keyframes of a scene (40; drive: 20)")
    parser.add_argument(
        "--family", action="append", default=[], metavar="NAME", help="with --scenario drive: only scenarios of this "
        "family; may be repeated (all)",
    )  # fmt: skip
    parser.add_argument("--from-drive", type=Path, metavar="DIR", help="--out of a drive: its runs are the scenes")
    parser.add_argument(
        "--row", action="append", default=[], metavar="NAME", help="of that drive (all with a node); may be repeated"
    )
    parser.add_argument(
        "--other-speeds", type=int, default=0, metavar="N",
        help="labels of each keyframe for up to N other speeds of the vehicle too, in extras.json; with the expert's "
        "labels, that is --scenario drive or --from-drive (0)",
    )  # fmt: skip
    parser.add_argument("--workers", type=at_least_one, default=2, help="processes, one per core (2)")


def run(args: argparse.Namespace) -> None:
    """Raises UsageError for a wrong argument, InputError for the drive, SimError for the folder or the machine."""
    from fastdrive_sim.dataset import write_dataset  # OpenCV, not needed for --help

    write_json(write_dataset(args.out, _spec(args), workers=args.workers), args.json)


def _spec(args: argparse.Namespace) -> DatasetSpec:
    own = {"--keyframes": args.keyframes, "--seed": args.seed, "--scene-keyframes": args.scene_keyframes}
    if args.from_drive is not None:
        own["--scenario"] = None if args.scenario == DEFAULT else args.scenario
        own["--family"] = args.family or None
        given = next((option for option, value in own.items() if value is not None), None)
        if given is not None:
            raise UsageError(f"{given}: the runs decide this; leave it out with --from-drive")
        from fastdrive_sim.drive.run_dataset import run_dataset_spec  # the closed loop, where it is asked for

        return run_dataset_spec(
            args.from_drive, args.row, width=args.size[0], height=args.size[1],
            jpeg_quality=args.jpeg_quality, rig=args.rig, hz=args.hz, split=args.split,
            other_speeds=args.other_speeds, domain=args.domain,
        )  # fmt: skip
    if args.family and args.scenario != CLOSED_LOOP:
        raise UsageError("--family: families are those of --scenario drive; leave it out")
    if args.other_speeds and args.scenario != CLOSED_LOOP:
        raise UsageError("--other-speeds: only the expert gives them; add --scenario drive or --from-drive")
    if args.row:
        raise UsageError("--row: rows are those of a drive; give it with --from-drive")
    for option in ("--keyframes", "--seed"):
        if own[option] is None:
            raise UsageError(f"{option}: is needed; give a number")
    if args.scene_keyframes is None:
        args.scene_keyframes = SCENARIOS[args.scenario].scene_keyframes
    if args.scenario == CLOSED_LOOP:
        from fastdrive_sim.drive.simulation import DriveDatasetSpec

        args.family = tuple(args.family)
        return read_spec(args, DriveDatasetSpec)
    from fastdrive_sim.dataset import DatasetSpec

    return read_spec(args, DatasetSpec)
