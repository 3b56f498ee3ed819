"""ReconPruner's scores on cells of 2x2 tokens: the best cells keep their tokens, each other cell becomes one, its mean.

Not of FastDriveVLA. No part of an image is lost, as long as a quarter of the tokens are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastdrive_node.errors import ModelError
from fastdrive_node.families.tokens import VisualTokens
from fastdrive_node.pruning.baselines.merging import cells_of, pooled_rows
from fastdrive_node.pruning.pruner import PruningContext
from fastdrive_node.pruning.score_pruner import ScorePruner

SIDE = 2  # rows and columns of a cell; smaller at edges


@dataclass
class PooledPruner(ScorePruner):
    """Cells over all cameras by the sum of their tokens' scores.

    With fewer tokens than cells the best K cells are pooled and the others are left out. With more, all are there and
    the best ones are whole; what is too little for one more whole cell (two tokens at most) is not used. A pooled token
    has the position of its cell's first token.
    """

    name: str = "reconpruner-pooled"

    @property
    def ranks_by_engine(self) -> bool:
        return False  # every token is read

    def select(self, context: PruningContext, scores: torch.Tensor, keep: int) -> torch.Tensor:
        if not context.visual.complete:
            raise ModelError(
                f"{self.name}: reads all visual tokens, the engine gives fewer; build it without --max-keep"
            )
        values = scores.detach().float().cpu().flatten()
        if not bool(torch.isfinite(values).all()):
            raise ValueError("scores: not finite")
        if not 0 < keep <= len(values):
            raise ValueError(f"keep: {keep} is not in 1..{len(values)}")
        first, cell = torch.unique(cells_of(context.visual.image_grids, SIDE), return_inverse=True)
        sums = torch.zeros(len(first)).index_add_(0, cell, values)
        order = sums.sort(descending=True, stable=True).indices
        chosen = torch.zeros(len(values), dtype=torch.bool)
        chosen[first[order[:keep]]] = True
        spare = (torch.bincount(cell) - 1)[order].cumsum(0)
        whole = order[spare <= keep - len(first)]
        chosen |= torch.isin(cell, whole)
        return chosen.nonzero()[:, 0]

    def tokens(self, visual: VisualTokens, chosen: torch.Tensor) -> VisualTokens:
        cells = cells_of(visual.image_grids, SIDE)
        kept = torch.zeros(len(cells), dtype=torch.bool)
        kept[chosen] = True
        first, cell = torch.unique(cells, return_inverse=True)
        count = torch.bincount(cell[kept], minlength=len(first))
        into = torch.where(count[cell] == 1, cells, torch.full_like(cells, -1))
        return pooled_rows(visual, chosen, torch.where(kept, torch.arange(len(cells)), into))
