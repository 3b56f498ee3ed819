"""One step of the reconstruction on one part of its batch: rehearsal, scores, straight-through mask, losses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from fastdrive_training.pruner.data import ReconBatch
from fastdrive_training.pruner.losses import HalfLosses, LossWeights, split_losses, straight_through
from fastdrive_training.pruner.masks import cells_to_pixels, chance_masks, oracle_masks, random_masks

MASKS = ("pruner", "oracle", "random")
Encode = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Inputs:
    """B images on the device. The first images of a step's batch are rehearsed: they have random masks, and their
    target is the image itself where the mask is, black elsewhere."""

    tokens: torch.Tensor  # float32 [B, N, D]
    pixels: torch.Tensor  # float32 [B, 3, H, W] in [0, 1]
    foreground: torch.Tensor  # float32 [B, 1, H, W]; of rehearsed images their mask
    ignore: torch.Tensor | None  # bool [B, 1, H, W]; None where no label is in doubt
    mask: torch.Tensor  # float32 [B, N], of the images that are rehearsed; 0 for the others
    rehearsed: torch.Tensor  # bool [B, 1]
    places: tuple[int, ...]  # in the step's whole batch


class ReconStep:
    """The losses of a part of a batch. Everything random follows from the seed, the step and the image's place.

    Args:
        pruner: tokens [B, N, D], grid -> scores [B, N].
        decoder: tokens [B, N, D], grid -> images [B, loss.channels, H, W] in (0, 1).
        encode: uint8 pixels [B, 3, H, W] -> tokens [B, N, D], for batches without tokens.
        mask: ``pruner``, or for comparison ``oracle`` (the true foreground cells) or ``random`` (as many by chance);
            the pruner then is not run.
        precision: ``bfloat16`` runs pruner and decoder under autocast.
    """

    def __init__(
        self,
        pruner: nn.Module,
        decoder: nn.Module,
        grid: tuple[int, int],
        loss: LossWeights,
        seed: int,
        device: torch.device,
        precision: str = "float32",
        encode: Encode | None = None,
        mask: str = "pruner",
    ):
        self._pruner, self._decoder, self._grid, self._loss = pruner, decoder, grid, loss
        self._seed, self._device, self._encode, self._mask = seed, device, encode, mask
        self._autocast = torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()

    def inputs(self, batch: ReconBatch, step: int, rehearsed: int) -> Inputs:
        """A part of a batch on the device; the first ``rehearsed`` images of the whole batch get random masks."""
        pixels = batch.pixels.to(self._device)
        tokens = self._encode(pixels) if batch.tokens is None else batch.tokens.to(self._device)
        foreground = batch.foreground.to(self._device).float()
        masks = random_masks(rehearsed, self._grid, self._generator(step))
        mask = torch.zeros(len(pixels), tokens.shape[1])
        here = [row for row, place in enumerate(batch.places) if place < rehearsed]
        mask[here] = masks[[batch.places[row] for row in here]]
        chosen = torch.zeros(len(pixels), 1, dtype=torch.bool)
        chosen[here] = True
        mask, chosen = mask.to(self._device), chosen.to(self._device)
        foreground[here] = cells_to_pixels(mask[here], self._grid, tuple(pixels.shape[-2:]))
        ignore = batch.ignore.to(self._device) & ~chosen[:, :, None, None] if bool(batch.ignore.any()) else None
        return Inputs(tokens, pixels.float() / 255, foreground, ignore, mask, chosen, batch.places)

    def losses(self, inputs: Inputs, step: int, warmup: bool, share: float) -> tuple[HalfLosses, torch.Tensor | None]:
        """The losses, and the pruner's scores float32 [B, N]; None in the warm-up and for the masks of a comparison.

        Args:
            share: of foreground in the whole batch, which balances the regions.
        """
        scores, mask = None, inputs.mask
        if not warmup:
            scores, free = self._free_mask(inputs, step)
            mask = torch.where(inputs.rehearsed, mask, free)
        images = (inputs.pixels, inputs.foreground, self._grid, self._loss, share, inputs.ignore)
        return split_losses(self._decode, inputs.tokens, mask, *images), scores

    def _free_mask(self, inputs: Inputs, step: int) -> tuple[torch.Tensor | None, torch.Tensor]:
        if self._mask == "oracle":
            return None, oracle_masks(inputs.foreground, self._grid)
        if self._mask == "random":
            seeds = [(self._seed, step, place) for place in inputs.places]
            return None, chance_masks(inputs.foreground, inputs.mask.shape[1], seeds)
        with self._autocast:
            scores = self._pruner(inputs.tokens, self._grid)
        scores = scores.float()
        return scores, straight_through(scores, self._loss.surrogate)

    def _decode(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        with self._autocast:
            rebuilt = self._decoder(tokens, grid)
        return rebuilt.float()

    def _generator(self, step: int) -> torch.Generator:
        return torch.Generator().manual_seed((self._seed << 32) + step)
