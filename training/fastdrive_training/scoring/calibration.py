"""Fit the calibration of a pruner's scores, and say how well calibrated scores are.

A token is foreground where at least half of its cell is; tokens whose label is in doubt (coverage NaN) take no part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from fastdrive_node.errors import InputError
from fastdrive_node.pruning.calibration import Calibration, CameraScale
from fastdrive_node.pruning.select import keep_above
from fastdrive_training.scoring.score import score_figures
from fastdrive_training.scoring.token_metrics import POSITIVE_COVERAGE

BINS = 15  # of equal width, as in Guo et al. 2017
LEAST_OF_A_KIND = 50  # foreground and background tokens that a camera needs for numbers of its own
THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)


def fit_cameras(scores: np.ndarray, coverage: np.ndarray, cameras: Sequence[str]) -> dict[str, CameraScale]:
    """Platt scaling of each camera by logistic regression; a camera with few tokens of a kind takes all cameras' fit.

    Args:
        scores: [sets, cameras, N].
        coverage: the same shape.

    Raises:
        InputError: too few tokens of a kind in all, or scores that fall as foreground rises.
    """
    known = ~np.isnan(coverage)
    foreground = coverage >= POSITIVE_COVERAGE
    pooled = _fit(scores[known], foreground[known])
    if pooled is None:
        raise InputError(f"calibration: fewer than {LEAST_OF_A_KIND} foreground or background tokens; give more data")
    fitted = {}
    for index, camera in enumerate(cameras):
        chosen = known[:, index]
        scale, shift = _fit(scores[:, index][chosen], foreground[:, index][chosen]) or pooled
        if not scale > 0:
            raise InputError(
                f"calibration: {camera}: background scores higher than foreground; the pruner is not trained, or the "
                "masks are not of these images"
            )
        fitted[camera] = CameraScale(scale, shift)
    return fitted


def _fit(scores: np.ndarray, foreground: np.ndarray) -> tuple[float, float] | None:
    """Scale and shift; None where a kind has too few tokens.

    A weak prior (C = 1) keeps the scale of separable scores finite.
    """
    if min(foreground.sum(), (~foreground).sum()) < LEAST_OF_A_KIND:
        return None
    scores = np.asarray(scores, np.float64)
    middle, spread = scores.mean(), scores.std() or 1.0
    model = LogisticRegression(C=1.0).fit(((scores - middle) / spread)[:, None], foreground)
    scale = float(model.coef_[0, 0] / spread)
    return scale, float(model.intercept_[0] - scale * middle)


def expected_calibration_error(probability: np.ndarray, foreground: np.ndarray) -> float:
    """Mean distance of probability and foreground fraction over ``BINS`` bins, weighted by tokens. Flat arrays."""
    rows = reliability(probability, foreground)
    distances = [row["tokens"] * abs(row["probability"] - row["foreground_share"]) for row in rows]
    return sum(distances) / len(probability)


def reliability(probability: np.ndarray, foreground: np.ndarray) -> list[dict]:
    """The bins that hold tokens: ``tokens``, their mean ``probability`` and ``foreground_share``. Flat arrays."""
    if not len(probability):
        return []
    shares, means = calibration_curve(foreground, probability, n_bins=BINS)
    tokens = np.bincount(np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], probability))  # its bins
    rows = zip(tokens[tokens > 0].tolist(), means.tolist(), shares.tolist(), strict=True)
    return [dict(zip(("tokens", "probability", "foreground_share"), row, strict=True)) for row in rows]


def calibration_figures(
    scores: np.ndarray, coverage: np.ndarray, cameras: Sequence[str], scales: dict[str, CameraScale]
) -> dict:
    """How far probabilities are from the truth before (sigmoid of the score) and after calibration.

    Args: as :func:`fit_cameras`.

    Returns:
        ``ece_before``, ``ece_after`` over all tokens, and ``cameras``: by camera the same, ``scale``, ``shift``,
        ``tokens``, ``foreground_share``, and the bins ``reliability_before`` and ``reliability_after``.
    """
    known = ~np.isnan(coverage)
    foreground = coverage >= POSITIVE_COVERAGE
    before, after = expit(np.asarray(scores, np.float64)), np.empty(scores.shape)
    by_camera = {}
    for index, camera in enumerate(cameras):
        scale, chosen = scales[camera], known[:, index]
        after[:, index] = expit(scale.scale * np.asarray(scores[:, index], np.float64) + scale.shift)
        truth, raw, fitted = (part[:, index][chosen] for part in (foreground, before, after))
        by_camera[camera] = {
            "scale": scale.scale,
            "shift": scale.shift,
            "tokens": len(truth),
            "foreground_share": float(truth.mean()) if len(truth) else None,
            "ece_before": expected_calibration_error(raw, truth) if len(truth) else None,
            "ece_after": expected_calibration_error(fitted, truth) if len(truth) else None,
            "reliability_before": reliability(raw, truth),
            "reliability_after": reliability(fitted, truth),
        }
    return {
        "ece_before": expected_calibration_error(before[known], foreground[known]),
        "ece_after": expected_calibration_error(after[known], foreground[known]),
        "cameras": by_camera,
    }


def threshold_figures(
    scores: np.ndarray, coverage: np.ndarray, cameras: Sequence[str], calibration: Calibration
) -> dict[str, dict]:
    """What each threshold would keep, without bounds on K.

    Args: as :func:`fit_cameras`.

    Returns:
        By threshold ``tokens`` {mean, min, max} kept of a set, ``recall`` of the foreground tokens, ``precision``, and
        ``precision_by_camera``; None where nothing is kept.
    """
    logits = _logits(scores, cameras, calibration)
    known, foreground = ~np.isnan(coverage), coverage >= POSITIVE_COVERAGE
    figures = {}
    for threshold in THRESHOLDS:
        counts = [keep_above(torch.from_numpy(each), threshold, 1, each.size) for each in logits]
        kept = expit(logits.astype(np.float64)) >= threshold
        figures[f"{threshold:g}"] = {
            "tokens": {"mean": float(np.mean(counts)), "min": min(counts), "max": max(counts)},
            "recall": _fraction(kept[foreground]),
            "precision": _fraction(foreground[kept & known]),
            "precision_by_camera": {
                camera: _fraction(foreground[:, index][(kept & known)[:, index]])
                for index, camera in enumerate(cameras)
            },
        }
    return figures


def _fraction(truth: np.ndarray) -> float | None:
    return float(truth.mean()) if len(truth) else None


def calibrated_figures(
    scores: np.ndarray, coverage: np.ndarray, cameras: Sequence[str], calibration: Calibration
) -> dict:
    """Calibration errors, ranking and recall of calibrated scores, and what thresholds keep.

    Args:
        scores: [sets, cameras, N].
        coverage: the same shape.
    """
    return {
        **calibration_figures(scores, coverage, cameras, calibration.cameras),
        "ranking": score_figures(_logits(scores, cameras, calibration).reshape(len(scores), -1), coverage),
        "thresholds": threshold_figures(scores, coverage, cameras, calibration),
    }


def _logits(scores: np.ndarray, cameras: Sequence[str], calibration: Calibration) -> np.ndarray:
    """Calibrated log odds, float32 [sets, cameras, N], of scores of this shape."""
    return np.stack([calibration.logits(torch.from_numpy(each), cameras).numpy() for each in scores])
