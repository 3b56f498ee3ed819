"""Figures of token selection. Pure numpy; scikit-learn for AUROC and average precision."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

KEEP_RATIOS = (0.75, 0.5, 0.25)
POSITIVE_COVERAGE = 0.5  # a token is foreground where at least this fraction of its cell is


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
    """Fraction of the positive tokens that survive the selection, by keep ratio.

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
