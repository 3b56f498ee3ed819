"""``fastdrive score``: a pruner's token scores against the foreground masks, and as images."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdrive_node.cli import write_json
from fastdrive_node.errors import InputError
from fastdrive_node.pruning.catalog import ScoreOptions, TemporalSettings
from fastdrive_training.commands.options import add_dataset_arguments, pruner_file, require_positive, vla_dir

if TYPE_CHECKING:
    import numpy as np

    from fastdrive_node.families import Vla
    from fastdrive_node.pruning.calibration import Calibration
    from fastdrive_node.pruning.recon_pruner import ReconPruner
    from fastdrive_training.data.image_sets import ImageSets

EXAMPLE = """examples:
  fastdrive score data/sim --split val --vla models/tiny --json -
  fastdrive score data/sim --split val --pictures maps
  fastdrive score drive_bag --topics topics.yaml --pictures maps
  fastdrive score data/sim_step_out --split test --temporal --json -

With --pictures, DATASET may also be data without masks or a rosbag2: then the figures that need masks are null.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Rank tokens by score and compare with the masks: a token is positive where at least half of its cell is\n"
        "foreground. Area under the ROC curve and average precision over the tokens of all cameras; recall is the\n"
        "fraction of positive tokens that are kept, by keep ratio. --pictures draws the scores over the images."
    )
    parser.epilog = EXAMPLE
    add_dataset_arguments(parser)
    parser.add_argument("--masks", metavar="DIR", help="masks of fastdrive annotate (the dataset's own)")
    parser.add_argument("--pictures", metavar="DIR", help="write score maps over the cameras, a PNG a keyframe")
    parser.add_argument(
        "--picture-count", type=int, default=12, metavar="N", help="at most so many, evenly spread (%(default)s)"
    )
    parser.add_argument("--topics", metavar="MAP.yaml", help="topic map of a bag (the simulator's topics)")
    defaults = TemporalSettings()
    parser.add_argument(
        "--calibrated",
        action="store_true",
        help="error of the calibration in the pruner file on this data, and what thresholds on it keep",
    )
    parser.add_argument(
        "--temporal",
        action="store_true",
        help="effect of the temporal terms: pedestrians who step out (sim dataset --scenario step-out), flicker",
    )
    for name, text in (("change", "weight of new content"), ("memory", "weight of the set before")):
        parser.add_argument(
            f"--temporal-{name}", type=float, default=getattr(defaults, name), metavar="W", help=f"{text} (%(default)s)"
        )
    parser.add_argument(
        "--temporal-max-gap-s",
        type=float,
        default=defaults.max_gap_s,
        metavar="S",
        help="largest time between two keyframes whose scores are combined (%(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Raises InputError for the data (no masks among it) or an argument, ModelError for the VLA or pruner."""
    from rich.console import Console  # heavy imports, not needed for --help

    from fastdrive_node.pruning.checkpoint import load_pruner
    from fastdrive_training.data.image_sets import SourceSets
    from fastdrive_training.data.sampling import evenly_spaced
    from fastdrive_training.scoring.pictures import write_score_maps
    from fastdrive_training.scoring.score import score_maps, score_sets

    require_positive("--limit", args.limit)
    require_positive("--picture-count", args.picture_count)
    sets, vla = open_sets(args)
    masked = sets if isinstance(sets, SourceSets) and sets.source.has_masks else None
    if masked is None and not args.pictures:
        raise InputError(
            f"{args.dataset}: no masks folder; scores are compared with foreground masks: give those of fastdrive "
            "annotate with --masks, or --pictures to see the scores alone"
        )
    if args.calibrated or args.temporal:
        vla.require_one_size("--calibrated" if args.calibrated else "--temporal")
    pruner = load_pruner(pruner_file(args), vla)
    positions = evenly_spaced(len(sets), args.limit)
    scores = score_sets(sets, positions, vla, pruner)
    grids = vla.grids_of(sets.cameras)
    coverage = None if masked is None else masked.coverage(positions, grids)
    figures = unmasked_figures(scores) if coverage is None else _figures(args, scores, coverage)
    figures |= extra_figures(args, sets, vla, pruner, scores, coverage)
    Console(file=sys.stderr).print(summary(figures))
    if args.pictures:
        chosen = evenly_spaced(len(positions), args.picture_count)
        maps = [score_maps(one, grids) for one in scores[chosen]]
        files = write_score_maps(args.pictures, sets, positions[chosen], maps)
        figures["pictures"] = [str(file) for file in files]
        print(f"{len(files)} images in {args.pictures}", file=sys.stderr)
    write_json(figures, args.json)


def open_sets(args: argparse.Namespace) -> tuple[ImageSets, Vla]:
    """The data that the arguments name, and the VLA. Raises InputError or ModelError."""
    from fastdrive_node.devices import choose_device, choose_dtype
    from fastdrive_node.families import load_vla
    from fastdrive_node.families.spec import load_spec
    from fastdrive_training.data.adapters import detect_kind, open_source
    from fastdrive_training.data.image_sets import BagSets, SourceSets, is_bag

    def vla() -> Vla:  # after the data, whose mistakes are seen sooner
        device = choose_device(args.device, "--device")
        return load_vla(vla_dir(args), device, choose_dtype(args.dtype, device))

    root = Path(args.dataset)
    if is_bag(root):
        if args.split or args.masks:
            raise InputError(f"{'--split' if args.split else '--masks'}: {root} is a bag, which has none; leave it out")
        loaded = vla()
        return BagSets.open(root, args.topics, loaded.spec.cameras), loaded
    if args.topics:
        raise InputError(f"--topics: {root} is no bag; leave it out")
    own = root.is_dir() and detect_kind(root) == "nuscenes"  # its cameras are named as the VLA's; others are all scored
    cameras = tuple(load_spec(vla_dir(args)).cameras) if own else None
    return SourceSets(open_source(root, args.split, masks=args.masks, cameras=cameras, all_splits=own)), vla()


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
        scores: [sets, tokens].
        coverage: the same shape; None where there are no masks.

    Raises:
        InputError: an option does not fit the data.
        ModelError: the pruner file has no calibration.
    """
    from fastdrive_node.pruning.checkpoint import load_calibration
    from fastdrive_node.pruning.score_pruner import check_options
    from fastdrive_training.scoring.calibration import calibrated_figures

    calibration = None
    if args.calibrated:
        calibration = load_calibration(pruner_file(args))
        check_options(ScoreOptions(calibrated=True), calibration, sets.cameras)
    figures = {}
    if calibration is not None and coverage is not None:
        by_camera = (len(scores), len(sets.cameras), -1)
        figures["calibration"] = calibrated_figures(
            scores.reshape(by_camera), coverage.reshape(by_camera), sets.cameras, calibration
        )
    if args.temporal:
        figures["temporal"] = _temporal(args, sets, vla, pruner, calibration)
    return figures


def _temporal(
    args: argparse.Namespace, sets: ImageSets, vla: Vla, pruner: ReconPruner, calibration: Calibration | None
) -> dict:
    from fastdrive_training.data.image_sets import SourceSets
    from fastdrive_training.scoring.temporal import temporal_figures

    if not isinstance(sets, SourceSets):
        raise InputError("--temporal: needs a dataset with ego motion, not a bag")
    if args.limit is not None:
        raise InputError("--temporal: compares consecutive keyframes; leave out --limit")
    try:
        settings = TemporalSettings(args.temporal_change, args.temporal_memory, max_gap_s=args.temporal_max_gap_s)
    except ValueError as error:
        raise InputError(f"--temporal-{error}") from error
    options = ScoreOptions(calibrated=args.calibrated, temporal=settings)
    return temporal_figures(sets.source, vla, pruner, options, calibration)


def unmasked_figures(scores: np.ndarray) -> dict[str, Any]:
    """The figures of ``score_figures`` as far as they need no masks; the others are None."""
    unknown = dict.fromkeys(("auroc", "average_precision"))
    positive = float((scores > 0).mean())
    return {**unknown, "recall": {}, "positive_share": positive, "foreground_share": None, "keyframes": len(scores)}


def summary(figures: dict[str, Any]) -> str:
    """The figures in one line."""
    if figures["auroc"] is None:
        positive, keyframes = figures["positive_share"], figures["keyframes"]
        return f"{positive:.1%} of the tokens of {keyframes} keyframes are above zero; no masks to compare with"
    recall = ", ".join(f"{ratio} {value:.3f}" for ratio, value in figures["recall"].items())
    return (
        f"AUROC {figures['auroc']:.4f}, average precision {figures['average_precision']:.4f} over "
        f"{figures['keyframes']} keyframes; recall by keep ratio: {recall}"
    )


def _figures(args: argparse.Namespace, scores: np.ndarray, coverage: np.ndarray) -> dict[str, Any]:
    from fastdrive_training.scoring.score import score_figures

    figures = score_figures(scores, coverage)
    if figures["auroc"] is None:
        kind = "all" if figures["foreground_share"] else "none"
        raise InputError(f"{args.dataset}: {kind} of the tokens are foreground; a ranking needs both kinds")
    return figures
