"""The training loop of every recipe: batches by step, optimizer, learning rate, checkpoints, log.

Everything random follows from the seed and the step, so that a resumed run has the losses of an unbroken one, and a run
on several processes or with accumulation those of a run on one, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

from fastdrive_node.errors import FastDriveError, InputError, TrainingError
from fastdrive_training.engine.checkpoint import CHECKPOINT, read_checkpoint, write_checkpoint
from fastdrive_training.engine.distributed import Processes
from fastdrive_training.engine.logging import NoLog, RunLog

Losses = dict[str, Tensor]  # "total" is differentiated; scalars are logged, other tensors are the trainer's own


def learning_rate(
    optimizer: torch.optim.Optimizer, warmup_steps: int, total: int, final_rate: float, hold_steps: int = 0
) -> LambdaLR:
    """Linear warm-up, constant to step ``hold_steps``, then cosine decay to ``final_rate`` of the full rate."""

    def factor(step: int) -> float:
        warmup = min(1.0, (step + 1) / max(warmup_steps, 1))
        done = max(0, step - hold_steps) / max(total - hold_steps, 1)
        return warmup * (final_rate + (1 - final_rate) * 0.5 * (1 + math.cos(math.pi * done)))

    return LambdaLR(optimizer, factor)


class StepBatches(Dataset):
    """Shuffled samples; an item is the batch of one optimizer step, which follows from the seed and the step alone.

    The position in the data is therefore the step, and a loader resumes by starting at it. A step's batch comes in
    ``parts`` of equal size (processes times accumulation): part p has every ``parts``-th sample from place p on, so
    that the whole is the same however it is split.

    Args:
        count: samples there are.
        batch: samples per step; at most as many as there are.
        source: name of the dataset, for messages.
        parts: how many a batch is split into.
        own: the parts that this process reads.

    Raises:
        TrainingError: the batch cannot be split into equal parts.
        InputError: there are fewer samples than parts.
    """

    def __init__(self, count: int, batch: int, seed: int, source: str, parts: int = 1, own: Sequence[int] = (0,)):
        if batch % parts:
            raise TrainingError(
                f"batch: {batch} samples cannot be split into {parts} equal parts (processes x accumulate); "
                "use a multiple"
            )
        self.count, self.seed, self.parts, self.own = count, seed, parts, tuple(own)
        self.batch = min(batch, count // parts * parts)
        if not self.batch:
            raise InputError(f"{source}: {count} samples are too few for {parts} parts of a batch")

    def indices(self, step: int) -> np.ndarray:
        """int64 [batch]: the samples of a step's whole batch."""
        epoch, place = divmod(step, self.count // self.batch)
        order = np.random.default_rng((self.seed, epoch)).permutation(self.count)
        return order[place * self.batch : (place + 1) * self.batch]

    def names(self, step: int) -> list[str]:
        """The names of a step's samples, for messages; nothing else is read."""
        raise NotImplementedError

    def read(self, step: int) -> list[Any]:
        """The own parts of a step's batch. Raises InputError: an unusable file."""
        raise NotImplementedError

    def __getitem__(self, step: int) -> list[Any] | FastDriveError:
        try:
            return self.read(step)
        except FastDriveError as error:  # raised by the loop: a loader adds its traceback to the text
            return error


@dataclass(frozen=True)
class LoopOptions:
    """What every training has."""

    total: int  # optimizer steps
    clip: float = 1.0  # norm of the gradient of each module
    log_every: int = 50
    checkpoint_every: int = 250
    images_per_step: int = 1
    workers: int = 0  # processes that read batches; 0 reads in this one
    identity: dict[str, Any] = field(default_factory=dict)  # what a checkpoint must match to be resumed
    tensorboard: bool = False


class Trainer:
    """Trains modules; a subclass gives their losses.

    Args:
        folder: for the checkpoint and the log.
        modules: what is trained, by name; each is clipped alone.
        optimizer, schedule: of their parameters.
    """

    def __init__(
        self,
        folder: Path,
        batches: StepBatches,
        modules: dict[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        schedule: LambdaLR,
        options: LoopOptions,
        processes: Processes,
    ):
        self.folder, self.batches, self.modules, self.options = folder, batches, modules, options
        self.optimizer, self.schedule, self.processes = optimizer, schedule, processes
        self.wrapped = {name: processes.wrap(module).train() for name, module in modules.items()}
        self.step = 0
        self.last: dict[str, Any] = {}  # the figures of the last logged step

    def prepare(self, parts: list[Any]) -> list[Any]:
        """The parts of a batch on the device."""
        return parts

    def losses(self, part: Any) -> Losses:
        """The losses of one part."""
        raise NotImplementedError

    def observe(self, figures: dict[str, Any], losses: list[Losses], norms: dict[str, float]) -> dict[str, Any]:
        """More figures of a step, before the optimizer's turn; may replace those of ``figures``, or raise."""
        return {}

    def after_update(self) -> None:
        """Called when the optimizer has changed the weights."""

    def evaluate(self) -> dict[str, Any] | None:
        """Figures of held-out data after a step in which they are due; {} in processes that do not evaluate."""
        return None

    def state(self) -> dict[str, Any]:
        """What else a checkpoint must hold; tensors and plain values."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what ``state`` gave."""

    def finish(self) -> dict[str, Any]:
        """More figures of the whole run, when it has ended."""
        return {}

    def run(self, resume: bool = False) -> dict[str, Any]:
        """Train to the end; returns the figures of the last logged step, with ``images_per_s`` of this call.

        Raises:
            InputError: a file of the dataset is unusable.
            TrainingError: no checkpoint to resume, one of another recipe, a loss or gradient that is not finite (the
                text names its samples; the last checkpoint stays as it was).
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.processes.wait()
        if resume:
            self.load_checkpoint()
        elif self.processes.first:
            (self.folder / CHECKPOINT).unlink(missing_ok=True)
        options, log = self.options, self._open_log()
        try:
            for parts in self._loader():
                if isinstance(parts, FastDriveError):
                    raise parts
                figures = self.train_step(parts)
                self.step += 1
                figures["images_per_s"] = log.advance()
                evaluated = self.evaluate()
                done = self.step == options.total
                if evaluated is not None or done or self.step % options.log_every == 0:
                    self.last = {**figures, **(evaluated or {})}
                    log.write(self.last)
                if done or self.step % options.checkpoint_every == 0:
                    self.save_checkpoint()
            return {**self.last, **self.finish()}
        finally:
            log.close()

    def _loader(self) -> DataLoader:
        steps = range(self.step, self.options.total)
        return DataLoader(self.batches, None, sampler=steps, num_workers=self.options.workers, collate_fn=_unchanged)

    def _open_log(self) -> RunLog | NoLog:
        if not self.processes.first:
            return NoLog()
        options = self.options
        return RunLog(self.folder, self.step, options.total, options.images_per_step, options.tensorboard)

    def train_step(self, parts: list[Any]) -> dict[str, Any]:
        """One step of the optimizer on this process's parts of a batch; returns its figures."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._backward(self.prepare(parts))
        clip = self.options.clip
        norms = {
            name: float(nn.utils.clip_grad_norm_(module.parameters(), clip)) for name, module in self.modules.items()
        }
        names = [name for name, value in losses[0].items() if value.dim() == 0]
        scalars = torch.stack([torch.stack([part[name].double() for name in names]) for part in losses])
        figures = dict(zip(names, self.mean(scalars).tolist(), strict=True))
        self._require_finite(figures["total"], norms, losses)
        head = {"step": self.step, "lr": self.schedule.get_last_lr()[0]}
        figures = {**head, **figures, **self.observe(figures, losses, norms)}
        self.optimizer.step()
        self.schedule.step()
        self.after_update()
        return figures

    def _backward(self, parts: list[Any]) -> list[Losses]:
        """Forward and backward pass of each part; gradients are averaged over the processes in the last one."""
        done = []
        for index, part in enumerate(parts):
            with self.processes.no_sync(self.wrapped.values(), index < len(parts) - 1):
                losses = self.losses(part)
                (losses["total"] / len(parts)).backward()
            done.append({name: value.detach() for name, value in losses.items()})
        return done

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the parts [parts, ...] of this process and over the processes."""
        return self.processes.mean(values.mean(0))

    def _require_finite(self, total: float, norms: dict[str, float], losses: list[Losses]) -> None:
        """Every process sees the means of all, so that all stop together."""
        if math.isfinite(total) and all(map(math.isfinite, norms.values())):
            return
        what, value = ("gradient", sum(norms.values())) if math.isfinite(total) else ("loss", total)
        names, bad = self.batches.names(self.step), []
        if "each" in losses[0]:
            finite = self.processes.gather(torch.cat([part["each"] for part in losses]).isfinite().float())
            places = zip(self._gathered_places(), finite.flatten().tolist(), strict=True)
            bad = [names[place] for place, good in places if not good]
        checkpoint = self.folder / CHECKPOINT
        raise TrainingError(
            f"step {self.step}: the {what} is {value} on the batch {_some(names)}"
            + (f", first in {_some(bad)}" if bad else "")
            + f"; checkpoint: {f'{checkpoint} is the last good one' if checkpoint.exists() else 'none is saved'}; "
            "lower the learning rate or look at these images"
        )

    def _gathered_places(self) -> list[int]:
        """Places in the batch of the samples of all processes, process after process."""
        count, parts, samples = self.processes.count, self.batches.parts, self.batches.batch
        own = (part for rank in range(count) for part in range(rank, parts, count))
        return [place for part in own for place in range(part, samples, parts)]

    def save_checkpoint(self) -> None:
        """Write the whole state, in the first process."""
        if not self.processes.first:
            return
        state = {
            "step": self.step,
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "trainer": self.state(),
            "last": self.last,
        }
        write_checkpoint(self.folder, self.options.identity, state)

    def load_checkpoint(self) -> None:
        """Continue from the checkpoint. Raises TrainingError: none there, unreadable, of another recipe."""
        state = read_checkpoint(self.folder, self.options.identity, self.processes.device)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.load_state(state["trainer"])
        self.step, self.last = state["step"], state["last"]


def own_parts(processes: Processes, accumulate: int) -> list[int]:
    """The parts of each batch that this process works on, of ``processes.count * accumulate``."""
    return [index * processes.count + processes.rank for index in range(accumulate)]


def _unchanged(parts: Any) -> Any:
    return parts


def _some(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")
