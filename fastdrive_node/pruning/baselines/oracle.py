"""Oracle mask: what a pruner that knew the foreground would keep. For comparison, never for a vehicle."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastdrive_node.pruning.pruner import Need, PruningContext


@dataclass
class OraclePruner:
    """Keeps the tokens whose cells hold most foreground pixels; of equal ones those that the text attends to more."""

    name: str = "oracle"
    needs: frozenset[Need] = frozenset({Need.COVERAGE, Need.TEXT_ATTENTION})

    def score(self, context: PruningContext) -> torch.Tensor:
        return context.require(Need.COVERAGE)

    def select(self, context: PruningContext, scores: torch.Tensor, keep: int) -> torch.Tensor:
        attention = context.require(Need.TEXT_ATTENTION).flatten().cpu()
        order = torch.sort(attention, descending=True, stable=True).indices
        order = order[torch.sort(scores.flatten().cpu()[order], descending=True, stable=True).indices]
        return order[:keep].sort().values
