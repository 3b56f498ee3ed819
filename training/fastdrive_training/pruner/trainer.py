"""The training loop of ReconPruner: decoder warm-up on random masks, then pruner and decoder together.

Everything random follows from the seed and the step, so that a resumed run has the losses of an unbroken one, and a run
on several processes or with accumulation those of a run on one, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastdrive_node.errors import TrainingError
from fastdrive_training.engine.checkpoint import CHECKPOINT, read_checkpoint, write_checkpoint
from fastdrive_training.engine.distributed import Processes
from fastdrive_training.engine.logging import NoLog, RunLog
from fastdrive_training.engine.schedule import Schedule
from fastdrive_training.pruner.collapse import HealthCheck, HealthLimits, Vitals
from fastdrive_training.pruner.data import ReconBatch, ReconBatches
from fastdrive_training.pruner.losses import HalfLosses, LossWeights
from fastdrive_training.pruner.step import Encode, ReconStep

__all__ = ["CHECKPOINT", "ReconTrainer", "TrainerOptions", "TrainingError"]

Evaluate = Callable[[nn.Module, nn.Module, int], dict[str, Any]]  # (pruner, decoder, step) -> figures


@dataclass(frozen=True)
class TrainerOptions:
    """What is no part of the method."""

    seed: int = 0
    identity: str = ""  # what a checkpoint must match to be resumed, such as the recipe
    precision: str = "float32"  # or bfloat16: pruner and decoder run under autocast
    mask: str = "pruner"  # or oracle, random: see ReconStep
    tensorboard: bool = False
    progress: bool = True


class ReconTrainer:
    """Trains ``pruner`` and ``decoder`` on ``batches``.

    Args:
        pruner: tokens [B, N, D], grid -> scores [B, N].
        decoder: tokens [B, N, D], grid -> images [B, loss.channels, H, W] in (0, 1).
        batches: split into as many parts as there are processes times ``schedule.accumulate``.
        out: folder for the checkpoint and the log.
        evaluate: figures of held-out data, called every ``evaluate_every`` joint steps in the first process.
        encode: see ReconStep.
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
        options: TrainerOptions | None = None,
        evaluate: Evaluate | None = None,
        encode: Encode | None = None,
        processes: Processes | None = None,
    ):
        self._processes = processes or Processes("cpu")
        self._options = options or TrainerOptions()
        device = self._processes.device
        self.pruner, self.decoder, self.batches = pruner.to(device).train(), decoder.to(device).train(), batches
        self.out, self.schedule, self.health = out, schedule, HealthCheck(health)
        self._evaluate = evaluate
        self._wrapped = [self._processes.wrap(module) for module in (pruner, decoder)]
        self._micro = ReconStep(
            *self._wrapped, grid, loss, self._options.seed, device, self._options.precision, encode, self._options.mask
        )
        groups = [
            {"params": list(decoder.parameters()), "lr": schedule.lr, "scale": 1.0},
            {"params": list(pruner.parameters()), "lr": schedule.lr, "scale": schedule.pruner_rate},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=schedule.lr, weight_decay=schedule.weight_decay)
        self.average = None
        if schedule.ema_decay:
            self.average = AveragedModel(pruner, multi_avg_fn=get_ema_multi_avg_fn(schedule.ema_decay))
        self.step = 0
        self.last: dict[str, Any] = {}

    @property
    def parts(self) -> list[int]:
        """The parts of each batch that this process works on."""
        return [index * self._processes.count + self._processes.rank for index in range(self.schedule.accumulate)]

    @property
    def result(self) -> nn.Module:
        """The pruner that is evaluated and shipped: the moving average where there is one."""
        return self.pruner if self.average is None else self.average.module

    def run(self, resume: bool = False) -> dict[str, Any]:
        """Train to the end; returns the figures of the last logged step, with ``images_per_s`` of this call.

        Raises:
            TrainingError: nothing to resume, a checkpoint of another recipe, a loss or gradient that is no number
                (named with its images; the last checkpoint stays as it was).
            CollapseError: the health check failed, and its ``on_collapse`` is ``stop``.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        self._processes.wait()
        if resume:
            self.load_checkpoint()
        elif self._processes.first:
            (self.out / CHECKPOINT).unlink(missing_ok=True)
        log = self._open_log()
        try:
            for batches in self.batches.steps(self.step, self.schedule.total, self.parts):
                figures = self.train_step(batches)
                self.step += 1
                figures["images_per_s"] = log.advance()
                self._after_step(figures, log)
            if self.step == self.schedule.total:
                self.health.finish(self.schedule.steps, self.last.get("auroc"))
        finally:
            log.close()
        return {**self.last, "collapsed": self.health.collapsed}

    def _open_log(self) -> RunLog | NoLog:
        if not self._processes.first:
            return NoLog()
        options = self._options
        images = self.batches.batch
        return RunLog(self.out, self.step, self.schedule.total, images, options.tensorboard, options.progress)

    def _after_step(self, figures: dict[str, Any], log: RunLog | NoLog) -> None:
        schedule, done = self.schedule, self.step == self.schedule.total
        joint = self.step - schedule.warmup_steps
        evaluated = self._evaluate is not None and joint > 0 and (joint % schedule.evaluate_every == 0 or done)
        if evaluated and self._processes.first:
            figures |= self._held_out()
        if self.step % schedule.log_every == 0 or done or evaluated:
            self.last = figures
            log.write(figures)
        if self.step % schedule.checkpoint_every == 0 or done:
            self.save_checkpoint()

    def _held_out(self) -> dict[str, Any]:
        modules = [self.result, self.decoder]
        for module in modules:
            module.eval()
        figures = self._evaluate(*modules, self.step - 1)
        for module in modules:
            module.train()
        return figures

    def train_step(self, batches: list[ReconBatch]) -> dict[str, Any]:
        """One step of the optimiser on this process's parts of a batch; returns its figures."""
        warmup = self.step < self.schedule.warmup_steps
        rate = self.schedule.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.lr * group["scale"] * rate
        self.optimizer.zero_grad(set_to_none=True)
        losses, scores = self._accumulate(batches, warmup)
        clip = self.schedule.clip
        norms = [float(nn.utils.clip_grad_norm_(module.parameters(), clip)) for module in (self.decoder, self.pruner)]
        figures = dict(zip(HalfLosses.NAMES, self._mean([loss.scalars() for loss in losses]).tolist(), strict=True))
        self._require_finite(figures["total"], norms, losses)
        phase = {"step": self.step, "phase": "warmup" if warmup else "joint", "lr": self.schedule.lr * rate}
        if scores:
            figures |= self._vitals(scores, norms[1])
        if not warmup:
            share = self._mean([batch.foreground.double().mean() for batch in batches])
            figures["foreground_share"] = float(share)
        self.optimizer.step()
        if self.average is not None and not warmup:
            self.average.update_parameters(self.pruner)
        return {**phase, **figures}

    def _accumulate(self, batches: list[ReconBatch], warmup: bool) -> tuple[list[HalfLosses], list[torch.Tensor]]:
        """Forward and backward pass of each part; gradients are averaged over the processes in the last one."""
        rehearsed = self.schedule.rehearsed(self.step, self.batches.batch)
        inputs = [self._micro.inputs(batch, self.step, rehearsed) for batch in batches]
        share = float(self._mean([part.foreground.double().mean() for part in inputs]))
        losses, scores = [], []
        for index, part in enumerate(inputs):
            with self._processes.holding(self._wrapped, index < len(inputs) - 1):
                loss, score = self._micro.losses(part, self.step, warmup, share)
                (loss.total / len(inputs)).backward()
            losses.append(loss)
            if score is not None:
                scores.append(score.detach().double())
        return losses, scores

    def _mean(self, values: list[torch.Tensor]) -> torch.Tensor:
        """Mean over the parts of this process and over the processes."""
        return self._processes.mean(torch.stack(values).mean(0))

    def _vitals(self, scores: list[torch.Tensor], gradient: float) -> dict[str, float]:
        """The health check's figures of the whole batch. Raises CollapseError, in every process at once."""
        flat = torch.cat(scores)
        moments = self._processes.mean(torch.stack([(flat > 0).double().mean(), flat.mean(), (flat**2).mean()]))
        positive, mean, square = moments.tolist()
        vitals = Vitals(positive, mean, math.sqrt(max(square - mean**2, 0.0)), gradient)
        self.health.update(self.step - self.schedule.warmup_steps, vitals)
        return vitals.figures()

    def _require_finite(self, total: float, norms: list[float], losses: list[HalfLosses]) -> None:
        """Every process sees the means of all, so that all stop together."""
        if math.isfinite(total) and all(map(math.isfinite, norms)):
            return
        what, value = ("loss", total) if not math.isfinite(total) else ("gradient", sum(norms))
        finite = self._processes.gather(torch.cat([loss.each for loss in losses]).isfinite().float())
        names = self.batches.names(self.step)
        places = zip(self._gathered_places(), finite.flatten().tolist(), strict=True)
        bad = [names[place] for place, good in places if not good]
        checkpoint = self.out / CHECKPOINT
        raise TrainingError(
            f"step {self.step}: the {what} is {value} on the batch {_some(names)}"
            + (f", first in {_some(bad)}" if bad else "")
            + f"; checkpoint: {f'{checkpoint} is the last good one' if checkpoint.exists() else 'none is saved'}; "
            "lower schedule.lr or look at these images"
        )

    def _gathered_places(self) -> list[int]:
        """Places in the batch of the images of all processes, process after process."""
        count, parts, images = self._processes.count, self.batches.parts, self.batches.batch
        own = (part for rank in range(count) for part in range(rank, parts, count))
        return [place for part in own for place in range(part, images, parts)]

    def save_checkpoint(self) -> None:
        """Write the whole state, in the first process."""
        if not self._processes.first:
            return
        state = {
            "step": self.step,
            "identity": self._options.identity,
            "health": self.health.state,
            "pruner": self.pruner.state_dict(),
            "decoder": self.decoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "last": self.last,
        }
        write_checkpoint(self.out, state)

    def load_checkpoint(self) -> None:
        """Continue from the checkpoint in ``out``. Raises TrainingError: none there, unreadable, of another recipe."""
        state = read_checkpoint(self.out, self._options.identity, self._processes.device)
        self.pruner.load_state_dict(state["pruner"])
        self.decoder.load_state_dict(state["decoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.health.state = state["health"]
        self.step, self.last = state["step"], state["last"]


def _some(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")
