"""Steps, rates and intervals of the reconstruction's training."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Keys of a recipe's ``schedule``."""

    warmup_steps: int = 300  # decoder alone, on random masks
    steps: int = 3000  # pruner and decoder together
    rehearsal: float = 0.25  # share of the images that keep random masks, so that the decoder paints what it is given
    batch: int = 16  # camera images a step, over all processes
    accumulate: int = 1  # parts that each process splits its share of the batch into, to save memory
    lr: float = 2e-5  # of the decoder; linear ramp, cosine decay over the joint steps
    pruner_rate: float = 0.3  # the pruner's learning rate as a share of lr
    ramp_steps: int = 50
    final_rate: float = 0.05  # share of lr that the cosine ends at
    weight_decay: float = 0.01
    clip: float = 1.0  # norm of the gradient, decoder and pruner each
    ema_decay: float = 0.0  # of the pruner's moving average over the joint steps, which is then shipped; 0: none
    log_every: int = 20
    evaluate_every: int = 500
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "log_every", "evaluate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1")
        for name in ("warmup_steps", "ramp_steps", "pruner_rate", "final_rate", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must not be negative")
        for name in ("lr", "clip"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: must be above 0")
        for name in ("rehearsal", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: must be in [0, 1)")

    @property
    def total(self) -> int:
        return self.warmup_steps + self.steps

    def rate(self, step: int) -> float:
        """Share of ``lr`` at a step: ramp, constant to the end of the warm-up, then cosine to ``final_rate``."""
        ramp = min(1.0, (step + 1) / max(self.ramp_steps, 1))
        done = max(0, step - self.warmup_steps) / self.steps
        cosine = 0.5 * (1 + math.cos(math.pi * done))
        return ramp * (self.final_rate + (1 - self.final_rate) * cosine)

    def rehearsed(self, step: int, batch: int) -> int:
        """How many images of a step's batch have random masks: all of them in the warm-up."""
        return batch if step < self.warmup_steps else round(self.rehearsal * batch)
