"""Baselines that look at no image: every token, a random choice, an even stride; and the ground truth."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import torch

from fastdrive_node.pruning.pruner import ContextField, Pruner, PruningContext


@dataclass
class NoPruner(Pruner):
    """Keeps every token, whatever is asked."""

    name: str = "none"

    def select(self, context: PruningContext, scores: None, keep: int) -> torch.Tensor:
        return torch.arange(context.total)


@dataclass
class RandomPruner(Pruner):
    """Keeps random tokens.

    Args:
        seed: the same one gives the same choices in the same order of calls. None: the tokens are the seed, so that
            equal images have equal choices, whatever was asked before.
    """

    seed: int | None = None
    name: str = "random"
    _generator: torch.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed or 0)

    def select(self, context: PruningContext, scores: None, keep: int) -> torch.Tensor:
        if self.seed is None:
            column = context.visual.rows[:, :1].detach().contiguous().cpu().view(torch.uint8)  # of every token
            self._generator.manual_seed(zlib.crc32(column.numpy().tobytes()))
        return torch.randperm(context.total, generator=self._generator)[:keep].sort().values


@dataclass
class UniformPruner(Pruner):
    """Keeps tokens at an even stride over all cameras: the middle of each of K equal parts of the raster order."""

    name: str = "uniform"

    def select(self, context: PruningContext, scores: None, keep: int) -> torch.Tensor:
        return (2 * torch.arange(keep) + 1) * context.total // (2 * keep)


@dataclass
class OraclePruner(Pruner):
    """Keeps the tokens whose cells hold most foreground pixels; of equal ones those that the text attends to more.

    What a pruner that knew the foreground would keep. For comparison, never for a vehicle.
    """

    name: str = "oracle"
    needs: frozenset[ContextField] = frozenset({ContextField.COVERAGE, ContextField.TEXT_ATTENTION})

    def score(self, context: PruningContext) -> torch.Tensor:
        return context.require(ContextField.COVERAGE)

    def select(self, context: PruningContext, scores: torch.Tensor, keep: int) -> torch.Tensor:
        attention = context.require(ContextField.TEXT_ATTENTION).flatten().cpu()
        order = torch.sort(attention, descending=True, stable=True).indices
        order = order[torch.sort(scores.flatten().cpu()[order], descending=True, stable=True).indices]
        return order[:keep].sort().values
