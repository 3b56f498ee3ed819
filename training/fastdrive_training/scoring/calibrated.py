"""Options of ``fastdrive score`` beyond single scores: calibrated ones, and those with the temporal terms."""

from __future__ import annotations

import argparse

import numpy as np
import torch

from fastdrive_node.errors import InputError
from fastdrive_node.families.loading import Vla
from fastdrive_node.pruning.calibration import Calibration
from fastdrive_node.pruning.checkpoint import load_calibration
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_node.pruning.score_options import ScoreOptions, check_options
from fastdrive_node.pruning.temporal import TemporalSettings
from fastdrive_training.commands.options import pruner_file
from fastdrive_training.data.image_sets import ImageSets, SourceSets
from fastdrive_training.scoring.calibration import calibration_figures, threshold_figures
from fastdrive_training.scoring.score import score_figures
from fastdrive_training.scoring.temporal import temporal_figures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    defaults = TemporalSettings()
    parser.add_argument(
        "--calibrated",
        action="store_true",
        help="how well the calibration in the pruner file holds here, and what thresholds on it keep",
    )
    parser.add_argument(
        "--temporal",
        action="store_true",
        help="what the temporal terms do: pedestrians who step out (sim dataset --scenario step-out), flicker",
    )
    for name, text in (("change", "weight of what is new"), ("memory", "share of the set before")):
        parser.add_argument(
            f"--temporal-{name}", type=float, default=getattr(defaults, name), metavar="W", help=f"{text} (%(default)s)"
        )
    parser.add_argument(
        "--temporal-max-gap-s",
        type=float,
        default=defaults.max_gap_s,
        metavar="S",
        help="between two keyframes that know of each other (%(default)s)",
    )


def extra_figures(
    args: argparse.Namespace,
    sets: ImageSets,
    vla: Vla,
    pruner: ReconPruner,
    scores: np.ndarray,
    coverage: np.ndarray | None,
) -> dict:
    """``calibration`` and ``temporal`` of the figures, where they were asked for.

    Args:
        scores: [sets, cameras, rows, cols].
        coverage: [sets, cameras, N]; None where there are no masks.

    Raises:
        InputError: an option does not fit the data.
        ModelError: the pruner file has no calibration.
    """
    calibration = None
    if args.calibrated:
        calibration = load_calibration(pruner_file(args))
        check_options(ScoreOptions(calibrated=True), calibration, sets.cameras)
    figures = {}
    if args.calibrated and coverage is not None:
        figures["calibration"] = calibrated_figures(scores, coverage, sets, calibration)
    if args.temporal:
        figures["temporal"] = _temporal(args, sets, vla, pruner, calibration)
    return figures


def calibrated_figures(scores: np.ndarray, coverage: np.ndarray, sets: ImageSets, calibration: Calibration) -> dict:
    """Calibration errors, ranking and recall of calibrated scores, and what thresholds keep."""
    flat = scores.reshape(len(scores), len(sets.cameras), -1)
    logits = np.stack([calibration.logits(torch.from_numpy(each), sets.cameras).numpy() for each in flat])
    return {
        **calibration_figures(flat, coverage, sets.cameras, calibration.cameras),
        "ranking": score_figures(logits.reshape(len(flat), -1), coverage),
        "thresholds": threshold_figures(flat, coverage, sets.cameras, calibration),
    }


def _temporal(
    args: argparse.Namespace, sets: ImageSets, vla: Vla, pruner: ReconPruner, calibration: Calibration | None
) -> dict:
    if not isinstance(sets, SourceSets):
        raise InputError("--temporal: needs a dataset with ego motion, not a bag")
    if args.limit is not None:
        raise InputError("--temporal: compares keyframes that follow each other; leave out --limit")
    try:
        settings = TemporalSettings(args.temporal_change, args.temporal_memory, max_gap_s=args.temporal_max_gap_s)
    except ValueError as error:
        raise InputError(f"--temporal-{error}") from error
    options = ScoreOptions(calibrated=args.calibrated, temporal=settings)
    return temporal_figures(sets.source, vla, pruner, options, calibration)
