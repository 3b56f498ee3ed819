"""VisPruner (Zhang et al., ICCV 2025, arXiv 2412.01818): tokens that the encoder attends to, and unlike ones beside."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastdrive_node.pruning.baselines.diversity import directions
from fastdrive_node.pruning.pruner import ContextField, Pruner, PruningContext
from fastdrive_node.pruning.select import select_top

DROPPED_AT_ONCE = 8


@dataclass
class VisPruner(Pruner):
    """Half of K by the tower's attention, the other half by removing duplicates from what is left.

    The original takes the class token's attention in the encoder's last layer but one. Qwen2.5-VL's tower has no class
    token: here a token's score is the attention that its patches receive in the last block of full attention.
    """

    name: str = "vispruner"
    needs: frozenset[ContextField] = frozenset({ContextField.TOWER_ATTENTION})

    def score(self, context: PruningContext) -> torch.Tensor:
        return context.require(ContextField.TOWER_ATTENTION)

    def select(self, context: PruningContext, scores: torch.Tensor, keep: int) -> torch.Tensor:
        important = select_top(scores, keep // 2) if keep > 1 else torch.empty(0, dtype=torch.int64)
        order = torch.sort(scores.detach().flatten().float().cpu(), descending=True, stable=True).indices
        rest = order[~torch.isin(order, important)]
        diverse = without_duplicates(directions(context.tokens), rest, keep - len(important))
        return torch.cat([important, diverse]).sort().values


def without_duplicates(vectors: torch.Tensor, rest: torch.Tensor, keep: int) -> torch.Tensor:
    """Thin tokens out: split them into those at even and odd places, drop the 8 even ones most similar to an odd one.

    The even ones that stay, the most similar first, and behind them the odd ones are the order of the next round. At
    the end fewer than 8 are dropped, so that exactly ``keep`` stay; the original's own code has no such end, and needs
    an even number in each round.

    Args:
        vectors: [n, D], unit vectors.
        rest: int64 [m] on the CPU, indices into them: the tokens to thin out, falling attention.

    Returns:
        int64 [keep], in the order of the last round; of equally similar tokens the earlier one is dropped.
    """
    while len(rest) > keep:
        even, odd = rest[0::2], rest[1::2]
        similar = (vectors[even] @ vectors[odd].T).max(dim=1).values.cpu()
        count = min(DROPPED_AT_ONCE, len(rest) - keep, len(even))
        order = torch.sort(similar, descending=True, stable=True).indices
        rest = torch.cat([even[order[count:]], odd])
    return rest
