"""The health of the adversary: a run in which every token goes to one side has learned nothing, and must say so."""

from __future__ import annotations

from dataclasses import dataclass

from fastdrive_node.types import FastDriveError


class CollapseError(FastDriveError):
    """The adversary collapsed; the run is no result."""


@dataclass(frozen=True)
class HealthLimits:
    """When a run counts as collapsed. Steps are those of the joint phase, after the decoder's warm-up."""

    min_positive_share: float = 0.005  # share of tokens with a score above zero
    max_positive_share: float = 0.995
    min_gradient: float = 1e-12  # norm of the pruner's gradient
    grace_steps: int = 100  # at the start, in which nothing is judged
    patience_steps: int = 300  # out of bounds for so many steps in a row


@dataclass(frozen=True)
class Vitals:
    """What one training step shows of the pruner."""

    positive_share: float
    score_mean: float
    score_std: float
    gradient: float

    def figures(self) -> dict[str, float]:
        return dict(vars(self))


class HealthCheck:
    """Counts steps in a row that are out of bounds; ``state`` belongs into the checkpoint."""

    def __init__(self, limits: HealthLimits):
        self._limits = limits
        self.state = {"share": 0, "gradient": 0}

    def update(self, joint_step: int, vitals: Vitals) -> None:
        """Judge one step. Raises CollapseError when one sign has lasted longer than the patience."""
        limits = self._limits
        if joint_step < limits.grace_steps:
            return
        inside = limits.min_positive_share <= vitals.positive_share <= limits.max_positive_share
        self._count("share", not inside)
        self._count("gradient", not vitals.gradient > limits.min_gradient)
        if self.state["share"] > limits.patience_steps:
            raise CollapseError(
                f"collapsed at joint step {joint_step}: {vitals.positive_share:.2%} of the tokens are above zero (for "
                f"{limits.patience_steps} steps); lengthen schedule.warmup_steps or lower schedule.pruner_rate"
            )
        if self.state["gradient"] > limits.patience_steps:
            raise CollapseError(
                f"collapsed at joint step {joint_step}: the pruner's gradient is {vitals.gradient:.1e} (for "
                f"{limits.patience_steps} steps), scores {vitals.score_mean:.1e} +- {vitals.score_std:.1e}; use "
                "loss.surrogate: raw, or lower schedule.pruner_rate"
            )

    def _count(self, sign: str, bad: bool) -> None:
        self.state[sign] = self.state[sign] + 1 if bad else 0
