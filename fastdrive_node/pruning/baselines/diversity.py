"""Farthest-point sampling of tokens by cosine distance, and the pruner that is nothing else: DivPrune."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from fastdrive_node.pruning.pruner import Pruner, PruningContext

_ROWS = 1024  # of a similarity matrix that are held at a time


def directions(tokens: torch.Tensor) -> torch.Tensor:
    """Tokens [..., D] -> unit vectors float32 [n, D], n over all leading dimensions; a zero token stays zero."""
    return normalize(tokens.detach().flatten(0, -2).float(), dim=-1)


def farthest_points(vectors: torch.Tensor, keep: int, first: int) -> torch.Tensor:
    """From ``first`` on, add the vector whose largest cosine with the chosen ones is smallest.

    Args:
        vectors: [n, D], unit vectors; ``keep`` is at most n.

    Returns:
        int64 [keep] on the CPU, ascending; of equally far vectors the earlier one is taken.
    """
    if keep < 1:
        return torch.empty(0, dtype=torch.int64)
    chosen = [first]
    nearest = vectors @ vectors[first]
    nearest[first] = torch.inf  # never again
    for _ in range(keep - 1):
        following = int(nearest.argmin())
        chosen.append(following)
        nearest = torch.maximum(nearest, vectors @ vectors[following])
        nearest[following] = torch.inf
    return torch.tensor(sorted(chosen))


def most_isolated(vectors: torch.Tensor) -> int:
    """Index of the vector whose nearest neighbour is farthest by cosine distance; the earliest of several."""
    nearest = []
    for start in range(0, len(vectors), _ROWS):
        rows = vectors[start : start + _ROWS] @ vectors.T
        rows[torch.arange(len(rows)), torch.arange(start, start + len(rows))] = -torch.inf
        nearest.append(rows.max(dim=1).values)
    return int(torch.cat(nearest).argmin())


@dataclass
class DivPrune(Pruner):
    """Keeps the tokens whose smallest cosine distance is largest, greedily (Alvar et al., CVPR 2025, arXiv 2503.02175).

    The max-min diversity problem over the tokens of all cameras together: it starts with the token whose nearest
    neighbour is farthest, then adds the one farthest from the chosen set.
    """

    name: str = "divprune"

    def select(self, context: PruningContext, scores: None, keep: int) -> torch.Tensor:
        vectors = directions(context.tokens)
        return farthest_points(vectors, keep, most_isolated(vectors))
