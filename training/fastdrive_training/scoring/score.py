"""Scores of a pruner, and their figures against the foreground masks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from fastdrive_node.families import Vla
from fastdrive_training.data.image_sets import ImageSets
from fastdrive_training.data.token_cache import CHUNK, ImageEncoder
from fastdrive_training.scoring.token_metrics import POSITIVE_COVERAGE, ranking, recall_at_keep

_IMAGES_AT_ONCE = 256


def score_sets(sets: ImageSets, positions: Collection[int], vla: Vla, pruner) -> np.ndarray:
    """Scores float32 [positions, tokens] camera after camera, encoded in chunks, with progress. Raises InputError."""
    encoder, grids = ImageEncoder(vla, sets.cameras), vla.grids_of(sets.cameras)
    read, scores = sets.read(positions), []
    with tqdm(total=len(positions), desc="scoring", unit="set") as bar:
        while images := [images for _, images in islice(read, CHUNK)]:
            tokens = encoder.encode(images).float().cpu().numpy()
            scores.append(score_images(pruner, tokens, grids))
            bar.update(len(images))
    return np.concatenate(scores)


def score_images(pruner: nn.Module, tokens: np.ndarray, grids: Sequence[tuple[int, int]]) -> np.ndarray:
    """Scores float32 [keyframes, tokens] of tokens as ``ImageEncoder`` gives them; ``grids`` of the cameras."""
    if len(set(grids)) == 1:
        return score_tokens(pruner, tokens, grids[0])
    parts = zip(np.split(tokens, _starts(grids), axis=2), grids, strict=True)
    return np.concatenate([score_tokens(pruner, part, grid) for part, grid in parts], 1)


def score_maps(scores: np.ndarray, grids: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """A set's scores [tokens] as one map [rows, cols] for each camera."""
    return [part.reshape(grid) for part, grid in zip(np.split(scores, _starts(grids)), grids, strict=True)]


def _starts(grids: Sequence[tuple[int, int]]) -> np.ndarray:
    """Index of the first token of each camera but the first."""
    return np.cumsum([rows * columns for rows, columns in grids])[:-1]


def score_tokens(pruner: nn.Module, tokens: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Scores float32 [keyframes, cameras * N] of tokens [keyframes, cameras, N, D] (numpy, any float type)."""
    parameter = next(pruner.parameters())
    at_once = max(1, _IMAGES_AT_ONCE // tokens.shape[1])  # whole sets, for a pruner that knows the cameras
    parts = []
    with torch.inference_mode():
        for start in range(0, len(tokens), at_once):
            sets = np.asarray(tokens[start : start + at_once], np.float32)
            part = torch.from_numpy(sets).to(parameter).flatten(0, 1)
            parts.append(pruner(part, grid).float().cpu().numpy())
    return np.concatenate(parts).reshape(len(tokens), -1)


def score_figures(scores: np.ndarray, coverage: np.ndarray) -> dict:
    """The figures of ``fastdrive score``.

    Args:
        scores: [keyframes, tokens].
        coverage: fraction of foreground in each token's cell, as many for each keyframe; from 0.5 on it is positive.
            NaN where the label is in doubt: such a token is neither, but it counts among the kept ones.

    Returns:
        ``auroc`` and ``average_precision`` over the pooled tokens (None where only one class is there), ``recall`` by
        keep ratio, ``positive_share`` (of scores above zero), ``foreground_share`` (of positive tokens), ``keyframes``.
    """
    ranked, positive = known_tokens(scores, coverage)
    return {
        **ranking(ranked, positive),
        "recall": recall_at_keep(scores, coverage.reshape(scores.shape) >= POSITIVE_COVERAGE),
        "positive_share": float((scores > 0).mean()),
        "foreground_share": float(positive.mean()),
        "keyframes": len(scores),
    }


def known_tokens(scores: np.ndarray, coverage: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores and, bool, which are positive, of the tokens whose coverage is known, both [tokens].

    Arguments as in :func:`score_figures`.
    """
    flat = coverage.reshape(scores.shape)
    known = ~np.isnan(flat)
    return scores[known], flat[known] >= POSITIVE_COVERAGE
