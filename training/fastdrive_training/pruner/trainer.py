"""The training of ReconPruner: the decoder alone on random masks, then pruner and decoder together.

Each step: scores, straight-through mask, both branches rebuilt, losses, and a check for collapse.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastdrive_training.engine.distributed import Processes
from fastdrive_training.engine.loop import LoopOptions, Losses, StepBatches, Trainer, learning_rate
from fastdrive_training.pruner.collapse import HealthCheck, TrainingHealth
from fastdrive_training.pruner.config import ReconRecipe
from fastdrive_training.pruner.data import ReconBatch, cells_to_pixels, matched_random_masks, oracle_masks, random_masks
from fastdrive_training.pruner.decoder import ReconDecoder
from fastdrive_training.pruner.losses import split_losses, straight_through

Evaluate = Callable[[nn.Module, nn.Module, int], dict[str, Any]]  # (pruner, decoder, step) -> figures
Encode = Callable[[torch.Tensor], torch.Tensor]  # uint8 pixels [B, 3, H, W] -> tokens [B, N, D]


@dataclass(frozen=True)
class ReconInputs:
    """B images on the device. The first images of a step's batch are rehearsed: they have random masks, and their
    target is the image itself where the mask is, black elsewhere."""

    tokens: torch.Tensor  # float32 [B, N, D]
    pixels: torch.Tensor  # float32 [B, 3, H, W] in [0, 1]
    foreground: torch.Tensor  # float32 [B, 1, H, W]; of rehearsed images their mask
    ignore: torch.Tensor | None  # bool [B, 1, H, W]; None where no label is in doubt
    mask: torch.Tensor  # float32 [B, N], of the images that are rehearsed; 0 for the others
    rehearsed: torch.Tensor  # bool [B, 1]
    places: tuple[int, ...]  # in the step's whole batch
    labelled: torch.Tensor  # float64 scalar, fraction of foreground by the labels
    grid: tuple[int, int]  # token rows and columns of each image


class ReconTrainer(Trainer):
    """Trains ``pruner`` and ``decoder`` on ``batches``.

    Args:
        recipe: schedule, losses, seed, limits of the health check, folder.
        pruner: tokens [B, N, D], grid -> scores [B, N].
        decoder: tokens [B, N, D], grid -> images [B, loss.channels, H, W] in (0, 1); ``pixels`` is the side of a cell
            in px. What of an image has no cell is not rebuilt.
        batches: of ReconBatch, split into as many parts as there are processes times ``schedule.accumulate``.
        precision: ``bfloat16`` runs pruner and decoder under autocast.
        identity: what a checkpoint must match to be resumed, besides the recipe.
        evaluate: figures of held-out data, called every ``evaluate_every`` joint steps in the first process.
        encode: for batches without tokens.

    ``run`` raises CollapseError, besides the errors of every training, when the health check fails and its
    ``on_collapse`` is ``stop``.
    """

    def __init__(
        self,
        recipe: ReconRecipe,
        pruner: nn.Module,
        decoder: ReconDecoder,
        batches: StepBatches,
        processes: Processes,
        precision: str = "float32",
        identity: dict[str, Any] | None = None,
        evaluate: Evaluate | None = None,
        encode: Encode | None = None,
    ):
        keys = recipe.schedule
        groups = [
            {"params": list(decoder.parameters()), "lr": keys.lr},
            {"params": list(pruner.parameters()), "lr": keys.lr * keys.pruner_rate},
        ]
        optimizer = torch.optim.AdamW(groups, lr=keys.lr, weight_decay=keys.weight_decay)
        schedule = learning_rate(optimizer, keys.warmup_steps, keys.total, keys.final_rate, keys.decoder_pretrain_steps)
        options = LoopOptions(
            keys.total,
            keys.clip,
            keys.log_every,
            keys.checkpoint_every,
            images_per_step=batches.batch,
            workers=recipe.workers,
            tensorboard=recipe.tensorboard,
            identity={**recipe.identity, **(identity or {})},
        )
        modules = {"decoder": decoder, "pruner": pruner}
        super().__init__(Path(recipe.out), batches, modules, optimizer, schedule, options, processes)
        self.pruner, self.decoder, self.health = pruner, decoder, HealthCheck(recipe.health)
        self._recipe, self._keys, self._loss = recipe, keys, recipe.loss
        self._evaluate, self._encode = evaluate, encode
        bfloat16 = precision == "bfloat16"
        self._autocast = torch.autocast(processes.device.type, torch.bfloat16) if bfloat16 else nullcontext()
        self._covered = 0.5  # fraction of foreground in the whole batch, which balances the regions
        self.average = None
        if keys.ema_decay:
            self.average = AveragedModel(pruner, multi_avg_fn=get_ema_multi_avg_fn(keys.ema_decay))

    @property
    def result(self) -> nn.Module:
        """The pruner that is evaluated and shipped: the moving average where there is one."""
        return self.pruner if self.average is None else self.average.module

    @property
    def joint_step(self) -> int:
        """Steps since pruner and decoder train together; negative while the decoder trains alone."""
        return self.step - self._keys.decoder_pretrain_steps

    def prepare(self, parts: list[ReconBatch]) -> list[ReconInputs]:
        rehearsed = self._keys.rehearsed(self.step, self.batches.batch)
        masks = random_masks(
            rehearsed, parts[0].grid, torch.Generator().manual_seed((self._recipe.seed << 32) + self.step)
        )
        inputs = [self._inputs(part, masks) for part in parts]
        self._covered = float(self.mean(torch.stack([part.foreground.double().mean() for part in inputs])))
        return inputs

    def _inputs(self, batch: ReconBatch, masks: torch.Tensor) -> ReconInputs:
        """A part of a batch; the first images of the whole batch have the random ``masks`` [rehearsed, N]."""
        device = self.processes.device
        pixels = batch.pixels.to(device)
        if batch.tokens is None:
            assert self._encode is not None
            tokens = self._encode(pixels)
        else:
            tokens = batch.tokens.to(device)
        covered = (..., *(slice(cells * self.decoder.pixels) for cells in batch.grid))
        pixels, labels, in_doubt = pixels[covered], batch.foreground[covered], batch.ignore[covered]
        foreground = labels.to(device, torch.float32, copy=True)
        mask = torch.zeros(len(pixels), tokens.shape[1])
        here = [row for row, place in enumerate(batch.places) if place < len(masks)]
        mask[here] = masks[[batch.places[row] for row in here]]
        chosen = torch.zeros(len(pixels), 1, dtype=torch.bool)
        chosen[here] = True
        mask, chosen = mask.to(device), chosen.to(device)
        height, width = pixels.shape[-2:]
        foreground[here] = cells_to_pixels(mask[here], batch.grid, (height, width))
        ignore = in_doubt.to(device) & ~chosen[:, :, None, None] if bool(in_doubt.any()) else None
        labelled = labels.double().mean()
        return ReconInputs(
            tokens,
            pixels.float() / 255,
            foreground,
            ignore,
            mask,
            chosen,
            batch.places,
            labelled.to(device),
            batch.grid,
        )

    def losses(self, part: ReconInputs) -> Losses:
        """See :func:`split_losses`; ``scores`` float32 [B, N] too, where the pruner is trained."""
        scores, mask = None, part.mask
        if self.joint_step >= 0:
            scores, free = self._free_mask(part)
            mask = torch.where(part.rehearsed, mask, free)
        images = (part.pixels, part.foreground, part.grid, self._loss, self._covered, part.ignore)
        losses = {**split_losses(self._decode, part.tokens, mask, *images), "labelled": part.labelled[None]}
        return losses if scores is None else {**losses, "scores": scores}

    def _free_mask(self, part: ReconInputs) -> tuple[torch.Tensor | None, torch.Tensor]:
        if self._recipe.mask == "oracle":
            return None, oracle_masks(part.foreground, part.grid)
        if self._recipe.mask == "random":
            seeds = [(self._recipe.seed, self.step, place) for place in part.places]
            return None, matched_random_masks(part.foreground, part.mask.shape[1], seeds)
        with self._autocast:
            scores = self.wrapped["pruner"](part.tokens, part.grid)
        scores = scores.float()
        return scores, straight_through(scores, self._loss.surrogate)

    def _decode(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        with self._autocast:
            rebuilt = self.wrapped["decoder"](tokens, grid)
        return rebuilt.float()

    def observe(self, figures: dict[str, Any], losses: list[Losses], norms: dict[str, float]) -> dict[str, Any]:
        """Phase, health and fraction of foreground. Raises CollapseError, in every process at once."""
        if self.joint_step < 0:
            return {"phase": "warmup"}
        more: dict[str, Any] = {"phase": "joint"}
        if "scores" in losses[0]:
            flat = torch.cat([part["scores"] for part in losses]).double()
            moments = self.processes.mean(torch.stack([(flat > 0).double().mean(), flat.mean(), (flat**2).mean()]))
            positive, mean, square = moments.tolist()
            health = TrainingHealth(positive, mean, math.sqrt(max(square - mean**2, 0.0)), norms["pruner"])
            self.health.update(self.joint_step, health)
            more |= vars(health)
        more["foreground_share"] = float(self.mean(torch.cat([part["labelled"] for part in losses])))
        return more

    def after_update(self) -> None:
        if self.average is not None and self.joint_step >= 0:
            self.average.update_parameters(self.pruner)

    def evaluate(self) -> dict[str, Any] | None:
        joint, done = self.joint_step, self.step == self.options.total
        if self._evaluate is None or joint <= 0 or not (joint % self._keys.evaluate_every == 0 or done):
            return None
        modules = [self.result, self.decoder]
        for module in modules:
            module.eval()
        figures = self._evaluate(self.result, self.decoder, self.step - 1)
        for module in modules:
            module.train()
        return figures

    def finish(self) -> dict[str, Any]:
        self.health.finish(self._keys.steps, self.last.get("auroc"))
        return {"collapsed": self.health.collapsed}

    def state(self) -> dict[str, Any]:
        return {"health": self.health.state, "average": None if self.average is None else self.average.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.health.state = state["health"]
        if self.average is not None:
            self.average.load_state_dict(state["average"])
