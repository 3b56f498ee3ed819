"""Displacement errors."""

from __future__ import annotations

import numpy as np

from fastdrive_training.evaluation.metrics.horizons import at_t, mean_to_t


def step_errors(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Euclidean distance of each step, float64 [..., points] from two arrays [..., points, 2] in metres."""
    return np.linalg.norm(np.asarray(predicted, np.float64) - np.asarray(truth, np.float64), axis=-1)


def l2_avg_to_t(errors: np.ndarray, dt_s: float = 0.5) -> dict[str, float]:
    """The convention of ST-P3, VAD and SparseDrive: the mean of the errors of all steps up to t.

    ``errors`` is [samples, points] of one or more samples. Returns "1s", "2s", "3s" and "avg", their mean, in metres.
    """
    return mean_to_t(errors, dt_s)


def l2_at_t(errors: np.ndarray, dt_s: float = 0.5) -> dict[str, float]:
    """UniAD's convention: the error of the step at t. ``errors`` and the result as in :func:`l2_avg_to_t`."""
    return at_t(errors, dt_s)
