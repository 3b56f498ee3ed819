"""The training loop of ReconPruner: decoder warm-up on random masks, then pruner and decoder together.

Everything random follows from the seed and the step, so that a resumed run has the losses of an unbroken one.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from fastdrive_node.types import FastDriveError
from fastdrive_training.recon_data import ReconBatch, ReconBatches
from fastdrive_training.recon_health import HealthCheck, HealthLimits, Vitals
from fastdrive_training.recon_model import (
    HalfLosses,
    LossWeights,
    cells_to_pixels,
    random_masks,
    split_losses,
    straight_through,
)

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"


class TrainingError(FastDriveError):
    """A training run that cannot go on."""


@dataclass(frozen=True)
class Schedule:
    """Steps, rates and intervals."""

    warmup_steps: int = 300  # decoder alone, on random masks
    steps: int = 3000  # pruner and decoder together
    rehearsal: float = 0.25  # share of the images that keep random masks, so that the decoder paints what it is given
    batch: int = 16  # camera images a step
    lr: float = 2e-5  # of the decoder; linear ramp, cosine decay over the joint steps
    pruner_rate: float = 0.3  # the pruner's learning rate as a share of lr
    ramp_steps: int = 50
    final_rate: float = 0.05  # share of lr that the cosine ends at
    weight_decay: float = 0.01
    clip: float = 1.0  # norm of the gradient, decoder and pruner each
    log_every: int = 20
    evaluate_every: int = 500
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "log_every", "evaluate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1")
        if not 0 <= self.rehearsal < 1:
            raise ValueError("rehearsal: must be in [0, 1)")

    @property
    def total(self) -> int:
        return self.warmup_steps + self.steps

    def rate(self, step: int) -> float:
        """Share of ``lr`` at a step: ramp, constant to the end of the warm-up, then cosine to ``final_rate``."""
        ramp = min(1.0, (step + 1) / max(self.ramp_steps, 1))
        done = max(0, step - self.warmup_steps) / self.steps
        cosine = 0.5 * (1 + math.cos(math.pi * done))
        return ramp * (self.final_rate + (1 - self.final_rate) * cosine)


class ReconTrainer:
    """Trains ``pruner`` and ``decoder`` on ``batches``.

    Args:
        pruner: tokens [B, N, D], grid -> scores [B, N].
        decoder: tokens [B, N, D], grid -> images [B, 3, H, W] in (0, 1).
        out: folder for the checkpoint and the log, one JSON object a line.
        identity: what a checkpoint must match to be resumed, such as the recipe.
        evaluate: figures of held-out data, called every ``evaluate_every`` joint steps.
        precision: ``bfloat16`` runs pruner and decoder under autocast.
    """

    def __init__(
        self,
        pruner: nn.Module,
        decoder: nn.Module,
        batches: ReconBatches,
        grid: tuple[int, int],
        out: Path,
        schedule: Schedule,
        loss: LossWeights,
        health: HealthLimits,
        seed: int = 0,
        identity: str = "",
        evaluate: Callable[[], dict] | None = None,
        precision: str = "float32",
        progress: bool = True,
    ):
        self.pruner, self.decoder, self.batches, self.grid = pruner.train(), decoder.train(), batches, grid
        self.out, self.schedule, self.loss, self.seed = out, schedule, loss, seed
        self._identity, self._evaluate, self._progress = identity, evaluate, progress
        self._health = HealthCheck(health)
        self._device = next(decoder.parameters()).device
        self._autocast = torch.autocast(self._device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()
        groups = [
            {"params": list(decoder.parameters()), "lr": schedule.lr, "scale": 1.0},
            {"params": list(pruner.parameters()), "lr": schedule.lr, "scale": schedule.pruner_rate},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=schedule.lr, weight_decay=schedule.weight_decay)
        self.step = 0
        self.last: dict[str, float] = {}

    def run(self, resume: bool = False) -> dict[str, float]:
        """Train to the end; returns the figures of the last logged step, with ``images_per_s`` of this call.

        Raises:
            TrainingError: nothing to resume, a checkpoint of another recipe, a loss or gradient that is no number
                (named with its images; the last checkpoint stays as it was).
            CollapseError: the health check failed.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        if resume:
            self.load_checkpoint()
        else:
            (self.out / CHECKPOINT).unlink(missing_ok=True)
        self._cut_log()
        first, started = self.step, time.perf_counter()
        bar = tqdm(total=self.schedule.total, initial=first, desc="recon", unit="step", disable=not self._progress)
        with open(self.out / LOG, "a") as log:
            for batch in self.batches.steps(first, self.schedule.total):
                figures = self._train_step(batch)
                self.step += 1
                bar.update()
                elapsed = time.perf_counter() - started
                figures["images_per_s"] = (self.step - first) * self.batches.batch / elapsed
                self._after_step(figures, log, bar)
        bar.close()
        return self.last

    def _after_step(self, figures: dict, log, bar: tqdm) -> None:
        schedule, done = self.schedule, self.step == self.schedule.total
        joint = self.step - schedule.warmup_steps
        if self._evaluate is not None and joint > 0 and (joint % schedule.evaluate_every == 0 or done):
            figures |= self._held_out()
        if self.step % schedule.log_every == 0 or done or "auroc" in figures:
            self.last = figures
            log.write(json.dumps(figures) + "\n")
            log.flush()
            bar.set_postfix({key: f"{figures[key]:.3g}" for key in ("total", "positive_share") if key in figures})
        if self.step % schedule.checkpoint_every == 0 or done:
            self.save_checkpoint()

    def _held_out(self) -> dict:
        self.pruner.eval()
        figures = self._evaluate()
        self.pruner.train()
        return figures

    def _train_step(self, batch: ReconBatch) -> dict:
        """One step of the optimiser. The random masks depend on the seed and the step alone."""
        joint_step = self.step - self.schedule.warmup_steps
        rate = self.schedule.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.lr * group["scale"] * rate
        self.optimizer.zero_grad(set_to_none=True)
        losses, scores = self._losses(batch, warmup=joint_step < 0)
        self._require_finite("loss", losses.total, batch)
        losses.total.backward()
        clip = self.schedule.clip
        decoder_norm = nn.utils.clip_grad_norm_(self.decoder.parameters(), clip)
        pruner_norm = nn.utils.clip_grad_norm_(self.pruner.parameters(), clip)
        self._require_finite("gradient", decoder_norm + pruner_norm, batch)
        figures = {
            "step": self.step,
            "phase": "warmup" if joint_step < 0 else "joint",
            "lr": self.schedule.lr * rate,
            **losses.figures(),
        }
        if scores is not None:
            vitals = _vitals(scores, float(pruner_norm))
            self._health.update(joint_step, vitals)
            figures |= vitals.figures()
            figures["foreground_share"] = float(batch.foreground.float().mean())
        self.optimizer.step()
        return figures

    def _losses(self, batch: ReconBatch, warmup: bool) -> tuple[HalfLosses, torch.Tensor | None]:
        """The losses, and the scores [images that are not rehearsed, N]; None in the warm-up, which is all rehearsal.

        A rehearsed image has a random mask, and its target is itself where its tokens are and black elsewhere.
        """
        tokens = batch.tokens.to(self._device)
        pixels = batch.pixels.to(self._device).float() / 255
        foreground = batch.foreground.to(self._device).float()
        count = len(tokens) if warmup else round(self.schedule.rehearsal * len(tokens))
        generator = torch.Generator().manual_seed((self.seed << 32) + self.step)
        mask = random_masks(count, self.grid, generator).to(self._device)
        foreground[:count] = cells_to_pixels(mask, self.grid, tuple(pixels.shape[-2:]))
        scores = None
        if not warmup:
            with self._autocast:
                scores = self.pruner(tokens[count:], self.grid)
            scores = scores.float()
            mask = torch.cat([mask, straight_through(scores, self.loss.surrogate)])
        losses = split_losses(self._decode, tokens, mask, pixels, foreground, self.grid, self.loss)
        return losses, scores

    def _decode(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        with self._autocast:
            rebuilt = self.decoder(tokens, grid)
        return rebuilt.float()

    def _require_finite(self, what: str, value: torch.Tensor, batch: ReconBatch) -> None:
        if bool(torch.isfinite(value)):
            return
        names = ", ".join(batch.names[:4]) + (" ..." if len(batch.names) > 4 else "")
        kept = f"{self.out / CHECKPOINT} is the last good one" if (self.out / CHECKPOINT).exists() else "none is saved"
        raise TrainingError(
            f"step {self.step}: the {what} is {float(value.detach())} on the batch {names}; checkpoint: {kept}; "
            "lower schedule.lr or look at these images"
        )

    def save_checkpoint(self) -> None:
        """Write the whole state, by one rename."""
        state = {
            "step": self.step,
            "identity": self._identity,
            "health": self._health.state,
            "pruner": self.pruner.state_dict(),
            "decoder": self.decoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "last": self.last,
        }
        part = self.out / f"{CHECKPOINT}.part"
        torch.save(state, part)
        os.replace(part, self.out / CHECKPOINT)

    def load_checkpoint(self) -> None:
        """Continue from the checkpoint in ``out``. Raises TrainingError: none there, unreadable, of another recipe."""
        path = self.out / CHECKPOINT
        if not path.exists():
            raise TrainingError(f"{path}: nothing to resume; start without --resume")
        try:
            state = torch.load(path, map_location=self._device, weights_only=True)
        except Exception as error:  # torch raises many kinds for a broken file
            raise TrainingError(f"{path}: unreadable ({error}); start without --resume") from error
        if state["identity"] != self._identity:
            raise TrainingError(f"{path}: belongs to another recipe; restore that recipe or start without --resume")
        self.pruner.load_state_dict(state["pruner"])
        self.decoder.load_state_dict(state["decoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._health.state = state["health"]
        self.step, self.last = state["step"], state["last"]

    def _cut_log(self) -> None:
        """Drop log lines of steps that will be done again."""
        path = self.out / LOG
        lines = path.read_text().splitlines() if path.exists() and self.step else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] < self.step]
        path.write_text("".join(f"{line}\n" for line in kept))


def _vitals(scores: torch.Tensor, gradient: float) -> Vitals:
    scores = scores.detach()
    return Vitals(
        positive_share=float((scores > 0).float().mean()),
        score_mean=float(scores.mean()),
        score_std=float(scores.std()),
        gradient=gradient,
    )
