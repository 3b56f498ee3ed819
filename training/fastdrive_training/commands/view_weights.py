"""``fastdrive view-weights``: how Prune2Drive distributes its tokens over the cameras."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastdrive_node.cli import write_json
from fastdrive_node.commands.options import pruning_ratio
from fastdrive_node.files import VIEW_WEIGHTS_FILE
from fastdrive_training.commands.options import add_dataset_arguments, open_dataset, require_positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Search the weights by which Prune2Drive distributes its tokens over the cameras, by the plans' L2 error [m].\n"
        f"They are written to {VIEW_WEIGHTS_FILE} in the VLA directory, where `fastdrive evaluate` finds them.\n"
        "Search on keyframes that no figure is reported of."
    )
    parser.epilog = (
        "example:\n  fastdrive view-weights data/sim --split train --vla models/tiny --drop 0.5 --limit 96 --trials 40"
    )
    add_dataset_arguments(parser)
    parser.add_argument("--drop", type=pruning_ratio, default=0.5, metavar="P", help="pruning ratio p (%(default)s)")
    parser.add_argument("--trials", type=int, default=40, metavar="N", help="weights that are tried (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the search (%(default)s)")
    parser.add_argument(
        "--out", metavar="FILE", help=f"write the weights here ({VIEW_WEIGHTS_FILE} in the VLA directory)"
    )


def run(args: argparse.Namespace) -> None:
    """Raises InputError for the data or an argument, ModelError for the VLA."""
    from fastdrive_node.pruning.baselines.prune2drive import save_weights  # heavy imports, not needed for --help
    from fastdrive_training.scoring.view_weights import PlanningError, best_trial, search_weights

    require_positive("--trials", args.trials)
    source, vla = open_dataset(args)
    objective = PlanningError(source, vla, args.limit or len(source), args.drop)
    trials = search_weights(objective, len(vla.spec.cameras), args.trials, args.seed)
    best = best_trial(trials)
    cameras = dict(zip(vla.spec.cameras, best.weights, strict=True))
    figures = {
        "drop": args.drop,
        "keyframes": len(objective),
        "trials": len(trials),
        "seed": args.seed,
        "l2_m": best.error,
        "l2_equal_weights_m": trials[0].error,
    }
    save_weights(Path(args.out) if args.out else vla.path / VIEW_WEIGHTS_FILE, cameras, **figures)
    write_json({**figures, "cameras": cameras}, args.json)
