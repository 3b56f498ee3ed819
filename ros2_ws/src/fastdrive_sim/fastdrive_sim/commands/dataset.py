"""``fastdrive sim dataset``: a dataset in the nuScenes schema, with exact masks."""

from __future__ import annotations

import argparse

from fastdrive_node.cli import write_json
from fastdrive_node.commands.options import at_least_one
from fastdrive_sim.commands.options import add_image_arguments, read_spec
from fastdrive_sim.dataset import SPLITS, DatasetSpec, write_dataset
from fastdrive_sim.scenarios import SCENARIOS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write a dataset in the nuScenes schema: camera images, 3D boxes, drivable area, and beside them the class of\n"
        "each pixel and the future of each keyframe. A run that was stopped continues with the same arguments.\n"
        "With --scenario step-out, extras.json says for each keyframe which pedestrians came into sight and when, and\n"
        "step_out/ holds their pixels. With --scenario drive, each scene is one of the closed loop's, in which the\n"
        "expert is disturbed, and future_xy is what it would do from there."
    )
    parser.epilog = "example: fastdrive sim dataset data/sim --keyframes 400 --seed 1 --json -"
    add_image_arguments(parser)
    parser.add_argument("--keyframes", type=int, required=True, help="of all scenes together; one image of each camera")
    parser.add_argument("--split", choices=SPLITS, help="put all scenes into one split (default: 70/15/15)")
    parser.add_argument("--hz", type=int, default=2, help="keyframes a second, a divisor of 20 (2)")
    parser.add_argument("--scene-keyframes", type=int, help="keyframes of a scene (40; drive: 20)")
    parser.add_argument("--workers", type=at_least_one, default=2, help="processes, one per core (2)")


def run(args: argparse.Namespace) -> None:
    """Raises UsageError for an argument out of range, SimError for the folder or the machine."""
    if args.scene_keyframes is None:
        args.scene_keyframes = SCENARIOS[args.scenario].scene_keyframes
    write_json(write_dataset(args.out, read_spec(args, DatasetSpec), workers=args.workers), args.json)
