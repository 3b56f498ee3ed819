"""Baselines that look at nothing: every token, a random choice, an even stride."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from fastdrive_node.pruning.pruner import Need, PruningContext


@dataclass
class NoPruner:
    """Keeps every token, whatever is asked."""

    name: str = "none"
    needs: frozenset[Need] = frozenset()

    def score(self, context: PruningContext) -> None:
        return None

    def select(self, context: PruningContext, scores: None, keep: int) -> torch.Tensor:
        return torch.arange(context.total)


@dataclass
class RandomPruner:
    """Keeps tokens by chance; the same seed gives the same choices in the same order of calls."""

    seed: int = 0
    name: str = "random"
    needs: frozenset[Need] = frozenset()
    _generator: torch.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)

    def score(self, context: PruningContext) -> None:
        return None

    def select(self, context: PruningContext, scores: None, keep: int) -> torch.Tensor:
        return torch.randperm(context.total, generator=self._generator)[:keep].sort().values


@dataclass
class UniformPruner:
    """Keeps tokens at an even stride over all cameras: the middle of each of K equal parts of the raster order."""

    name: str = "uniform"
    needs: frozenset[Need] = frozenset()

    def score(self, context: PruningContext) -> None:
        return None

    def select(self, context: PruningContext, scores: None, keep: int) -> torch.Tensor:
        return (2 * torch.arange(keep) + 1) * context.total // (2 * keep)
