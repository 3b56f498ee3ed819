"""``fastdrive score``: a pruner's token scores against the foreground masks."""

from __future__ import annotations

import argparse
import sys

import numpy as np
from rich.console import Console
from tqdm import tqdm

from fastdrive_node.cli import write_json
from fastdrive_node.planning.vla import Vla
from fastdrive_node.pruning.files import load_pruner
from fastdrive_node.types import InputError
from fastdrive_node.vision import TorchVision
from fastdrive_training.commands.options import add_dataset_arguments, open_dataset, pruner_file
from fastdrive_training.nuscenes_data import KeyframeDataset
from fastdrive_training.recon_train import spread
from fastdrive_training.scoring import score_figures, score_tokens
from fastdrive_training.token_cache import CHUNK, camera_order, encode_keyframes, vla_images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Rank tokens by score and compare with the masks: a token is positive where at least half of its cell is\n"
        "foreground. Area under the ROC curve and average precision over the tokens of all cameras; recall is the\n"
        "share of positive tokens that are kept, by keep ratio."
    )
    parser.epilog = "example:\n  fastdrive score data/sim --split val --vla models/tiny --json -"
    add_dataset_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Raises InputError for the data (no masks among it), ModelError for the VLA or pruner."""
    dataset, vla = open_dataset(args)
    if not dataset.has_masks:
        raise InputError(f"{dataset.root}: no masks folder; scores are compared with foreground masks")
    pruner = load_pruner(pruner_file(args), vla)
    scores, coverage = score_dataset(dataset, vla, pruner, args.limit)
    figures = score_figures(scores, coverage)
    if figures["auroc"] is None:
        kind = "all" if figures["foreground_share"] else "none"
        raise InputError(f"{dataset.root}: {kind} of the tokens are foreground; a ranking needs both kinds")
    recall = ", ".join(f"{ratio} {value:.3f}" for ratio, value in figures["recall"].items())
    Console(file=sys.stderr).print(
        f"AUROC {figures['auroc']:.4f}, average precision {figures['average_precision']:.4f} over "
        f"{figures['keyframes']} keyframes; recall by keep ratio: {recall}"
    )
    write_json(figures, args.json)


def score_dataset(
    dataset: KeyframeDataset, vla: Vla, pruner, limit: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Scores [keyframes, cameras * N] and coverage [keyframes, cameras, N] of a data set, encoded chunk by chunk."""
    vision = TorchVision(vla.model.model.visual, vla.spec.image_size, len(vla.spec.cameras))
    order, chosen = camera_order(vla), spread(len(dataset), limit)
    scores, coverage = [], []
    for start in tqdm(range(0, len(chosen), CHUNK), desc="scoring", unit="batch"):
        keyframes = [dataset[int(index)] for index in chosen[start : start + CHUNK]]
        tokens = encode_keyframes(vision, [vla_images(keyframe, order) for keyframe in keyframes])
        scores.append(score_tokens(pruner, tokens.float().cpu().numpy(), vla.grid))
        coverage += [dataset.coverage(keyframe, vla.grid)[order] for keyframe in keyframes]
    return np.concatenate(scores), np.stack(coverage)
