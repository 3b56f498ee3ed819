"""``fastdrive camera-geometry``: what each camera of a VLA sees, from the calibration of a dataset."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastdrive_node.cli import write_json
from fastdrive_node.errors import InputError
from fastdrive_node.files import GEOMETRY_FILE
from fastdrive_training.commands.options import add_dataset_arguments, open_dataset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write intrinsics and directions of the cameras, from a dataset's first keyframe, for the pruner ring-view.\n"
        f"They are written to {GEOMETRY_FILE} in the VLA directory."
    )
    parser.epilog = "example:\n  fastdrive camera-geometry data/sim --vla models/tiny"
    add_dataset_arguments(parser)
    parser.add_argument("--out", metavar="FILE", help=f"write the geometry here ({GEOMETRY_FILE} in the VLA directory)")


def run(args: argparse.Namespace) -> None:
    """Raises InputError where the dataset has no calibration of a camera, ModelError for the VLA."""
    from fastdrive_node.pruning.baselines.ring_view import ViewGeometry, duplicates, save_geometry  # imports torch

    source, vla = open_dataset(args)
    item, views = source[0], {}
    for camera in vla.spec.cameras:
        model = item.find_camera(camera)
        if model is None:
            raise InputError(
                f"{args.dataset}: no calibration of {camera}; write {GEOMETRY_FILE} by hand (docs/vla_directory.md)"
            )
        size = (float(model.size[0]), float(model.size[1]))
        views[camera] = ViewGeometry(size=size, intrinsic=model.intrinsic.tolist(), rotation=model.rotation.tolist())
    save_geometry(Path(args.out) if args.out else vla.path / GEOMETRY_FILE, views)
    twice = int(duplicates(list(views.values()), vla.grids[: len(views)]).sum())
    write_json({"cameras": list(views), "tokens": sum(r * c for r, c in vla.grids), "seen_twice": twice}, args.json)
