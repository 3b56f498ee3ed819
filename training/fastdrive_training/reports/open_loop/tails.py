"""The tail of the page's pruner: where the loss against all tokens lies, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdrive_training.evaluation.intervals import sample_figures
from fastdrive_training.evaluation.settings import RowKey
from fastdrive_training.evaluation.tails import worst_collisions, worst_losses
from fastdrive_training.reports.open_loop.run_folder import OpenLoopRun
from fastdrive_training.reports.open_loop.scenes import Scenes, WorstSample

PICTURED = 3  # samples of each list


@dataclass(frozen=True)
class TailSample:
    """A sample of the tail: of the pruned plan, and of the one on all tokens."""

    sample: str
    scene: str
    l2_m: float | None
    whole_l2_m: float | None  # None where it was refused, as ``l2_m``
    collision: float | None  # ``collision_any``, the mean of 1, 2 and 3 s
    whole_collision: float | None


@dataclass(frozen=True)
class Tails:
    """The worst 5 % of the samples of one row."""

    losses: tuple[TailSample, ...]  # that lose most L2
    collisions: tuple[TailSample, ...]  # that collide more than on all tokens
    loss_images: tuple[WorstSample, ...] = ()
    collision_images: tuple[WorstSample, ...] = ()


def find_tails(run: OpenLoopRun, pruned: RowKey, whole: RowKey, scenes: Scenes | None = None, count: int = 0) -> Tails:
    """The tail of a row against ``none``.

    Args:
        scenes: makes images of the first samples of each list; their subject is the row.
        count: of images of each list, ``PICTURED`` at most.
    """
    tables = run.tables[whole], run.tables[pruned]
    losses, collisions = worst_losses(*tables), worst_collisions(*tables)
    shown = 0 if scenes is None else min(count, PICTURED)
    return Tails(
        losses=_samples(run, pruned, whole, losses),
        collisions=_samples(run, pruned, whole, collisions),
        loss_images=() if scenes is None else tuple(scenes.pictured(losses[:shown], "loss")),
        collision_images=() if scenes is None else tuple(scenes.pictured(collisions[:shown], "hit")),
    )


def as_json(tails: Tails) -> dict[str, Any]:
    """``worst_losses`` and ``worst_collisions``; m, fractions in 0..1."""
    named = {"worst_losses": tails.losses, "worst_collisions": tails.collisions}
    return {name: [_json(one) for one in samples] for name, samples in named.items()}


def _json(one: TailSample) -> dict[str, Any]:
    return {
        "sample": one.sample,
        "scene": one.scene,
        "l2_m": one.l2_m,
        "none_l2_m": one.whole_l2_m,
        "collision_any": one.collision,
        "none_collision_any": one.whole_collision,
    }


def _samples(run: OpenLoopRun, pruned: RowKey, whole: RowKey, places: np.ndarray) -> tuple[TailSample, ...]:
    columns = [
        sample_figures(run.tables[key], figure)[places]
        for figure in ("l2_avg_to_t", "collision_any")
        for key in (pruned, whole)
    ]
    return tuple(
        TailSample(run.samples[place], run.scenes[place], *_known(values))
        for place, values in zip(places, np.stack(columns, axis=1), strict=True)
    )


def _known(values: Sequence[float] | np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
