"""``fastdrive calibrate``: fit the probability that a token is foreground to a pruner's scores, camera by camera."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fastdrive_node.cli import write_json
from fastdrive_node.errors import InputError
from fastdrive_training.commands.options import add_dataset_arguments, figures_table, pruner_file, require_positive
from fastdrive_training.commands.score import open_sets

if TYPE_CHECKING:
    from rich.table import Table

    from fastdrive_training.data.image_sets import SourceSets


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Fit two numbers for each camera that turn a score into the probability that its token is foreground, and\n"
        "write them into the pruner file. Fit them on a split that the pruner was not trained on; `fastdrive score\n"
        "--calibrated` on another split says whether they hold. An engine of the pruner stays valid: the\n"
        "calibration acts on the scores that it gives."
    )
    parser.epilog = "example:\n  fastdrive calibrate data/sim --split val --vla models/tiny --json calibration.json"
    add_dataset_arguments(parser)
    parser.add_argument("--masks", metavar="DIR", help="masks of fastdrive annotate (the dataset's own)")
    parser.add_argument("--out", metavar="FILE", help="write the calibrated pruner here (in place of the pruner file)")
    parser.set_defaults(topics=None)


def run(args: argparse.Namespace) -> None:
    """Raises InputError for the data (no masks, several splits) or the scores, ModelError for the VLA or pruner."""
    from rich.console import Console  # heavy imports, not needed for --help

    from fastdrive_node.pruning.calibration import Calibration, FitRecord
    from fastdrive_node.pruning.checkpoint import load_pruner, save_calibration
    from fastdrive_training.data.image_sets import SourceSets
    from fastdrive_training.data.sampling import evenly_spaced
    from fastdrive_training.scoring.calibration import calibration_figures, fit_cameras, threshold_figures
    from fastdrive_training.scoring.score import score_sets

    require_positive("--limit", args.limit)
    sets, vla = open_sets(args)
    if not isinstance(sets, SourceSets) or not sets.source.has_masks:
        raise InputError(f"{args.dataset}: no masks; scores are calibrated against foreground masks")
    vla.require_one_size("calibration")
    split = args.split or _only_split(sets)
    file, pruner = pruner_file(args), load_pruner(pruner_file(args), vla)
    positions = evenly_spaced(len(sets), args.limit)
    by_camera = (len(positions), len(sets.cameras), -1)
    scores = score_sets(sets, positions, vla, pruner).reshape(by_camera)
    coverage = sets.coverage(positions, vla.grids_of(sets.cameras)).reshape(by_camera)
    scales = fit_cameras(scores, coverage, sets.cameras)
    figures = calibration_figures(scores, coverage, sets.cameras, scales)
    name = Path(args.dataset).resolve().name[:200]
    record = FitRecord(name, split, len(positions), figures["ece_before"], figures["ece_after"])
    calibration = Calibration(scales, record)
    save_calibration(file, calibration, args.out)
    Console(file=sys.stderr).print(table(figures))
    metadata = {"pruner": str(args.out or file), "dataset": args.dataset, "split": split, "keyframes": len(positions)}
    thresholds = threshold_figures(scores, coverage, sets.cameras, calibration)
    write_json({**metadata, **figures, "thresholds": thresholds}, args.json)


def table(figures: dict) -> Table:
    """Expected calibration errors by camera, for people."""
    result = figures_table("expected calibration error", "camera", "scale", "shift", "before", "after")
    for camera, row in figures["cameras"].items():
        errors = [f"{row[key]:.4f}" if row[key] is not None else "-" for key in ("ece_before", "ece_after")]
        result.add_row(camera, f"{row['scale']:.3f}", f"{row['shift']:.3f}", *errors)
    result.add_row("all", "", "", f"{figures['ece_before']:.4f}", f"{figures['ece_after']:.4f}")
    return result


def _only_split(sets: SourceSets) -> str:
    """The split of a dataset that has one. Raises InputError where it has several: a fit must not mix them."""
    from fastdrive_training.data.adapters.nuscenes import only_split
    from fastdrive_training.data.nuscenes.keyframes import KeyframeDataset

    if isinstance(sets.source, KeyframeDataset):
        return only_split(sets.source) or ""
    return sets.source.split or ""
