"""The training loop of the VLA recipes: schedule, batches, log, checkpoints."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from fastdrive_node.errors import TrainingError

Losses = Callable[[np.ndarray, np.random.Generator], dict[str, Tensor]]


@dataclass
class Run:
    """The bookkeeping of one training run: steps, schedule, log, checkpoints."""

    folder: Path
    steps: int
    batch: int
    rate: float
    seed: int
    warmup: int = 200
    save_every: int = 250
    step: int = 0

    def optimiser(self, parameters: list) -> torch.optim.AdamW:
        return torch.optim.AdamW(parameters, lr=self.rate, betas=(0.9, 0.98), weight_decay=0.02)

    def set_rate(self, optimiser: torch.optim.Optimizer) -> None:
        """Linear warm-up, then cosine decay to a fiftieth."""
        progress = (self.step - self.warmup) / max(self.steps - self.warmup, 1)
        factor = (self.step + 1) / self.warmup if progress < 0 else 0.02 + 0.49 * (1 + math.cos(math.pi * progress))
        for group in optimiser.param_groups:
            group["lr"] = self.rate * factor

    def draw(self, count: int) -> tuple[np.ndarray, np.random.Generator]:
        """The batch of this step, a function of seed and step alone, so that a resumed run sees the same ones."""
        per_epoch = max(count // self.batch, 1)
        epoch, place = divmod(self.step, per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(count)
        picked = np.sort(order[place * self.batch : (place + 1) * self.batch])
        return picked, np.random.default_rng([self.seed, 1, self.step])

    def save(self, model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": self.step}
        torch.save(state, self.folder / "checkpoint.tmp")
        (self.folder / "checkpoint.tmp").replace(self.folder / "checkpoint.pt")

    def restore(self, model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        path = self.folder / "checkpoint.pt"
        if path.exists():
            state = torch.load(path, weights_only=True)
            model.load_state_dict(state["model"])
            optimiser.load_state_dict(state["optimiser"])
            self.step = state["step"]


def fit(run: Run, model: nn.Module, parameters: list, losses: Losses, count: int, resume: bool) -> dict[str, float]:
    """The loop: ``losses(indices, rng)`` gives named, weighted losses; returns their means over the last 100 steps.

    Raises:
        TrainingError: a loss is not finite; the last checkpoint stays.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    optimiser = run.optimiser(parameters)
    if resume:
        run.restore(model, optimiser)
    started, first, recent = time.perf_counter(), run.step, []
    model.train()
    with (run.folder / "log.jsonl").open("a") as log, tqdm(total=run.steps, initial=run.step, unit="step") as bar:
        while run.step < run.steps:
            indices, rng = run.draw(count)
            run.set_rate(optimiser)
            named = losses(indices, rng)
            total = sum(named.values())
            if not torch.isfinite(total):
                raise TrainingError(
                    f"{run.folder}: step {run.step}: loss {total.item()} on keyframes {indices.tolist()}; the last "
                    "checkpoint is kept, resume with a lower rate"
                )
            optimiser.zero_grad(set_to_none=True)
            total.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            run.step += 1
            recent = [*recent[-99:], {name: value.item() for name, value in named.items()}]
            bar.update()
            if run.step % 50 == 0:
                means = _means(recent[-50:])
                bar.set_postfix({name: f"{value:.3f}" for name, value in means.items()})
                log.write(json.dumps({"step": run.step, **means}) + "\n")
                log.flush()
            if run.step % run.save_every == 0 or run.step == run.steps:
                run.save(model, optimiser)
    seconds = time.perf_counter() - started
    return {**_means(recent), "steps": run.steps, "steps_per_s": (run.step - first) / max(seconds, 1e-9)}


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} if rows else {}
