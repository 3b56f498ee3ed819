"""Collapse of the adversary: a run in which all tokens go to one branch has learned nothing, and must say so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastdrive_node.errors import FastDriveError
from fastdrive_training.engine.config import recipe_class


class CollapseError(FastDriveError):
    """The adversary collapsed; the run is no result."""


@recipe_class
class HealthLimits:
    """When a run counts as collapsed. Steps are those of the joint phase, after the decoder has trained alone."""

    min_positive_share: float = 0.005  # fraction of tokens with a score above zero
    max_positive_share: float = 0.995
    min_gradient: float = 1e-12  # norm of the pruner's gradient
    min_auroc: float = 0.55  # on held-out keyframes at the end; 0.5 is random
    grace_steps: int = 100  # at the start, in which nothing is judged; a run that is no longer is not judged at all
    patience_steps: int = 300  # out of bounds for so many steps in a row
    on_collapse: Literal["stop", "record"] = "stop"  # record: continue and say so in the figures, for an ablation


@dataclass(frozen=True)
class TrainingHealth:
    """What one training step shows of the pruner."""

    positive_share: float
    score_mean: float
    score_std: float
    gradient: float


class HealthCheck:
    """Counts steps in a row that are out of bounds.

    ``state`` belongs into the checkpoint; its ``collapsed`` is None or {"step": joint step, "reason": one line} of the
    first collapse, after which nothing more is judged.
    """

    def __init__(self, limits: HealthLimits):
        self._limits = limits
        self.state: dict = {"positive": 0, "gradient": 0, "collapsed": None}

    @property
    def collapsed(self) -> dict | None:
        return self.state["collapsed"]

    def update(self, joint_step: int, health: TrainingHealth) -> None:
        """Judge one step. Raises CollapseError when a sign lasts longer than ``patience_steps``, unless recording."""
        limits = self._limits
        if joint_step < limits.grace_steps or self.collapsed:
            return
        inside = limits.min_positive_share <= health.positive_share <= limits.max_positive_share
        self._count("positive", not inside)
        self._count("gradient", not health.gradient > limits.min_gradient)
        if self.state["positive"] > limits.patience_steps:
            self._collapse(
                joint_step,
                f"{health.positive_share:.2%} of the tokens are above zero (for {limits.patience_steps} steps); "
                "raise schedule.decoder_pretrain_steps or lower schedule.pruner_rate",
            )
        elif self.state["gradient"] > limits.patience_steps:
            self._collapse(
                joint_step,
                f"the pruner's gradient is {health.gradient:.1e} (for {limits.patience_steps} steps), scores "
                f"{health.score_mean:.1e} +- {health.score_std:.1e}; use loss.surrogate: raw, or lower "
                "schedule.pruner_rate",
            )

    def finish(self, joint_steps: int, auroc: float | None) -> None:
        """Judge the run by its held-out AUROC, None where there is none. Raises CollapseError, unless recording."""
        if auroc is None or self.collapsed or joint_steps <= self._limits.grace_steps:
            return
        if auroc < self._limits.min_auroc:
            self._collapse(
                joint_steps - 1,
                f"held-out AUROC is {auroc:.3f} (random is 0.5): the scores do not find the foreground; lengthen "
                "schedule.warmup_steps or schedule.steps",
            )

    def _collapse(self, joint_step: int, reason: str) -> None:
        self.state["collapsed"] = {"step": joint_step, "reason": reason}
        if self._limits.on_collapse == "stop":
            raise CollapseError(f"collapsed at joint step {joint_step}: {reason}")

    def _count(self, sign: str, bad: bool) -> None:
        self.state[sign] = self.state[sign] + 1 if bad else 0
