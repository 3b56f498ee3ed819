"""Figures of open-loop planning and of token selection. Pure numpy; scikit-learn for AUROC and average precision."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

HORIZONS_S = (1.0, 2.0, 3.0)
KEEP_RATIOS = (0.75, 0.5, 0.25)
POSITIVE_COVERAGE = 0.5  # a token is foreground where at least this share of its cell is


def step_errors(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Euclidean distance of each step, float64 [..., points] from two arrays [..., points, 2] in metres."""
    return np.linalg.norm(np.asarray(predicted, np.float64) - np.asarray(truth, np.float64), axis=-1)


def l2_avg_to_t(errors: np.ndarray, dt_s: float = 0.5) -> dict[str, float]:
    """The convention of ST-P3, VAD and SparseDrive: the mean of the errors of all steps up to t.

    ``errors`` is [samples, points] of one or more samples. Returns "1s", "2s", "3s" and "avg", their mean, in metres.
    """
    figures = {_name(t): float(errors[:, : _steps(t, dt_s)].mean()) for t in HORIZONS_S}
    return {**figures, "avg": float(np.mean(list(figures.values())))}


def l2_at_t(errors: np.ndarray, dt_s: float = 0.5) -> dict[str, float]:
    """UniAD's convention: the error of the step at t. ``errors`` and the result as in :func:`l2_avg_to_t`."""
    figures = {_name(t): float(errors[:, _steps(t, dt_s) - 1].mean()) for t in HORIZONS_S}
    return {**figures, "avg": float(np.mean(list(figures.values())))}


def _name(t_s: float) -> str:
    return f"{t_s:g}s"


def _steps(t_s: float, dt_s: float) -> int:
    return round(t_s / dt_s)


def ranking(scores: np.ndarray, positive: np.ndarray) -> dict[str, float | None]:
    """Area under the ROC curve and average precision of ``scores`` [any shape] for the bools ``positive`` (same shape).

    Both are None where only one class is there, for they are not defined then.
    """
    positive = np.asarray(positive, bool).ravel()
    if positive.all() or not positive.any():
        return {"auroc": None, "average_precision": None}
    scores = np.asarray(scores, np.float64).ravel()
    return {
        "auroc": float(roc_auc_score(positive, scores)),
        "average_precision": float(average_precision_score(positive, scores)),
    }


def recall_at_keep(scores: np.ndarray, positive: np.ndarray, keep: Sequence[float] = KEEP_RATIOS) -> dict[str, float]:
    """Share of the positive tokens that survive the selection, by keep ratio.

    ``scores`` and ``positive`` are [keyframes, N], N over all cameras of the keyframe. Of each keyframe the best
    ``floor(N * keep)`` tokens are kept (ties: the earlier token), and the positives are pooled over the keyframes.
    Returns {} where no token is positive.
    """
    scores, positive = np.asarray(scores), np.asarray(positive, bool)
    if not positive.any():
        return {}
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked = np.take_along_axis(positive, order, axis=1)
    total = scores.shape[1]
    return {f"{ratio:g}": float(ranked[:, : int(total * ratio)].sum() / positive.sum()) for ratio in keep}
