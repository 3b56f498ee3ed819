"""From figures of single steps to figures at 1, 2 and 3 s: three ways of counting that must never share a column."""

from __future__ import annotations

import numpy as np

HORIZONS_S = (1.0, 2.0, 3.0)
NAMES = tuple(f"{t_s:g}s" for t_s in HORIZONS_S)


def mean_to_t(values: np.ndarray, dt_s: float = 0.5) -> dict[str, float]:
    """The mean over all steps up to t (ST-P3, VAD, SparseDrive), and over the samples.

    ``values`` is [samples, points], numbers or bools, of one or more samples. Returns "1s", "2s", "3s" and "avg", the
    mean of the three.
    """
    return figures(running_mean(values), dt_s)


def at_t(values: np.ndarray, dt_s: float = 0.5) -> dict[str, float]:
    """The step at t alone (UniAD). Arguments and result as in :func:`mean_to_t`."""
    return figures(values, dt_s)


def any_to_t(flags: np.ndarray, dt_s: float = 0.5) -> dict[str, float]:
    """Whether any step up to t is flagged (BEV-Planner, OmniDrive). Arguments and result as in :func:`mean_to_t`."""
    return figures(running_any(flags), dt_s)


def running_mean(values: np.ndarray) -> np.ndarray:
    """The mean of each step and those before it, float64 [samples, points] from [samples, points]."""
    return np.asarray(values, np.float64).cumsum(axis=1) / np.arange(1, np.shape(values)[1] + 1)


def running_any(flags: np.ndarray) -> np.ndarray:
    """Whether a step or one before it is flagged, bool [samples, points] from [samples, points]."""
    return np.logical_or.accumulate(np.asarray(flags, bool), axis=1)


def figures(by_step: np.ndarray, dt_s: float = 0.5) -> dict[str, float]:
    """Mean over the samples of what [samples, points] holds at 1, 2 and 3 s, and "avg", the mean of the three."""
    at = at_horizons(by_step, dt_s).mean(axis=0).tolist()
    return {**dict(zip(NAMES, at, strict=True)), "avg": float(np.mean(at))}


def at_horizons(by_step: np.ndarray, dt_s: float = 0.5) -> np.ndarray:
    """What [samples, points] holds at 1, 2 and 3 s, float64 [samples, 3]."""
    columns = [steps_to(t_s, dt_s) - 1 for t_s in HORIZONS_S]
    return np.asarray(by_step, np.float64)[:, columns]


def steps_to(t_s: float, dt_s: float = 0.5) -> int:
    """How many steps lie at or before t."""
    return round(t_s / dt_s)
