"""ReconPruner as a pruner: the highest scores over all cameras."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastdrive_node.pruning.pruner import Need, PruningContext
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_node.pruning.select import select_top


@dataclass
class ScorePruner:
    """Keeps the highest scores of a ReconPruner over all cameras (FastDriveVLA, arXiv 2507.23318)."""

    module: ReconPruner
    camera_floor: int = 0  # tokens that each camera keeps at least
    name: str = "reconpruner"
    needs: frozenset[Need] = frozenset()

    def score(self, context: PruningContext) -> torch.Tensor:
        return self.module(context.tokens, context.grid)

    def select(self, context: PruningContext, scores: torch.Tensor, keep: int) -> torch.Tensor:
        return select_top(scores, keep, self.camera_floor)
