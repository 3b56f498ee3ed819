"""``fastdrive sim bag``: a rosbag2 with the topics of a vehicle."""

from __future__ import annotations

import argparse

from fastdrive_node.cli import write_json
from fastdrive_sim.commands.options import add_image_arguments, read_spec
from fastdrive_sim.types import STORAGES, TRANSPORTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write a rosbag2: images and camera info of each camera, /odom at 20 Hz, /driving_command, /tf_static."
    )
    parser.epilog = (
        "example: fastdrive sim bag data/drive --seconds 120 --hz 2 --seed 1 --transport compressed --json -"
    )
    add_image_arguments(parser)
    parser.add_argument("--seconds", type=float, required=True, help="length of the drive")
    parser.add_argument("--hz", type=float, required=True, help="image sets a second, a rate that divides 20")
    parser.add_argument("--storage", choices=STORAGES, default="mcap", help="(mcap)")
    parser.add_argument("--transport", choices=TRANSPORTS, default="raw", help="raw rgb8 or JPEG (raw)")


def run(args: argparse.Namespace) -> None:
    """Raises UsageError for an argument out of range, SimError for the folder or the machine."""
    from fastdrive_sim.bag import BagSpec, write_bag  # OpenCV and rosbags, not needed for --help

    write_json(write_bag(args.out, read_spec(args, BagSpec)), args.json)
