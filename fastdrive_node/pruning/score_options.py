"""From a pruner's scores to those that the choice is made by: calibrated, with a memory, and how many are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastdrive_node.errors import InputError, ModelError
from fastdrive_node.pruning.calibration import Calibration
from fastdrive_node.pruning.pruner import PruningContext
from fastdrive_node.pruning.select import keep_above
from fastdrive_node.pruning.temporal import Moment, TemporalSettings, TemporalState, temporal_scores, why_stale


@dataclass(frozen=True)
class ScoreOptions:
    """What is done with scores before the best are taken; by default nothing.

    Raises:
        InputError: a value is out of range; the text names it.
    """

    calibrated: bool = False  # rank tokens of all cameras by their chance of being foreground
    keep_threshold: float = 0.0  # keep tokens of at least this chance; 0: as many as the pruning ratio leaves
    k_min: int = 16  # with a threshold, tokens that are kept at least; the pruning ratio says how many at most
    temporal: TemporalSettings | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.keep_threshold < 1:
            raise InputError(f"keep_threshold: {self.keep_threshold} is not in [0, 1)")
        if self.k_min < 1:
            raise InputError(f"k_min: {self.k_min}: must be at least 1")

    @property
    def needs_calibration(self) -> bool:
        return self.calibrated or self.keep_threshold > 0

    @property
    def active(self) -> bool:
        return self.needs_calibration or self.temporal is not None


@dataclass(frozen=True)
class Refined:
    """Scores to choose by, and how many tokens to keep."""

    scores: torch.Tensor | None  # [C, N]; float32 on the CPU where an option changed them
    keep: int
    temporal: str = "off"  # "off", "used", "new" in the first set, or "dropped: <reason>" where a state was stale
    state: TemporalState | None = None  # for the next set


def check_options(options: ScoreOptions, calibration: Calibration | None, cameras: Sequence[str]) -> None:
    """Raises ModelError where an option needs a calibration that is not there, or not for one of the cameras."""
    if not options.needs_calibration:
        return
    if calibration is None:
        raise ModelError(
            "calibrated_scores, keep_threshold: the pruner has no calibration; fit one with `fastdrive calibrate`"
        )
    calibration.require(cameras)


def refine(
    scores: torch.Tensor | None,
    context: PruningContext,
    moment: Moment,
    keep: int,
    options: ScoreOptions,
    calibration: Calibration | None = None,
    state: TemporalState | None = None,
) -> Refined:
    """Apply the options to the scores of one set. The same arguments give the same result.

    Args:
        scores: [C, N], of a pruner; None where it has none.
        keep: K that the pruning ratio leaves; the most that are kept.
        state: what the set before left.

    Raises:
        ModelError: an option needs scores or a calibration that is not there.
        ValueError: a score is not finite.
    """
    if not options.active:
        return Refined(scores, keep)
    if scores is None:
        raise ModelError(
            "calibrated_scores, keep_threshold, temporal_change, temporal_memory: the pruner has no scores; turn them "
            "off"
        )
    check_options(options, calibration, moment.cameras)
    if options.needs_calibration:
        scores = calibration.logits(scores, moment.cameras)
    note, left = "off", None
    if options.temporal is not None:
        reason = None if state is None else why_stale(state, moment, context.grid, options.temporal)
        note = f"dropped: {reason}" if reason else "new" if state is None else "used"
        fresh = state if note == "used" else None
        scores, left = temporal_scores(scores, context.tokens, moment, context.grid, options.temporal, fresh)
    if options.keep_threshold:
        keep = keep_above(scores, options.keep_threshold, options.k_min, keep)
    return Refined(scores, keep, note, left)
