"""DART: tokens that resemble a few pivots least (Wen et al., EMNLP 2025, arXiv 2502.11494).

As TensorRT Edge-LLM has it: on the embeddings, before layer 0, with a quota for each image. The paper's own acts behind
layer 2 and takes its pivots by the length of their keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastdrive_node.pruning.baselines.diversity import directions
from fastdrive_node.pruning.baselines.prune2drive import split_budget
from fastdrive_node.pruning.pruner import ContextField, Pruner, PruningContext

PIVOTS = 4  # of each image, and as many of the text


@dataclass
class Dart(Pruner):
    """Keeps the longest tokens of each image (L1), its pivots, and those least similar to a pivot.

    The longest text embeddings are pivots, too. K is divided over the images by their numbers of tokens.
    """

    name: str = "dart"
    needs: frozenset[ContextField] = frozenset({ContextField.TEXT})

    def select(self, context: PruningContext, scores: None, keep: int) -> torch.Tensor:
        text = context.require(ContextField.TEXT)
        words = directions(text[_longest(text, PIVOTS)])
        tokens, spans = context.tokens.flatten(0, 1), context.visual.spans
        counts = [span.stop - span.start for span in spans]
        budgets = split_budget(keep, [float(count) for count in counts], counts)
        kept = [
            span.start + least_duplicate(tokens[span], words, budget)
            for span, budget in zip(spans, budgets, strict=True)
        ]
        return torch.cat(kept)


def least_duplicate(tokens: torch.Tensor, words: torch.Tensor, keep: int) -> torch.Tensor:
    """Of one image: its pivots, then for each pivot in turn the tokens that resemble it least.

    Each pivot has an equal part of what is left to keep, rounded up, so that the last ones may have none.

    Args:
        tokens: [n, D].
        words: [p, D], unit vectors: the pivots of the text.

    Returns:
        int64 [keep] on the CPU, ascending; of equally similar tokens the earlier one is kept.
    """
    own = _longest(tokens, min(PIVOTS, keep))
    vectors = directions(tokens)
    similar = (torch.cat([vectors[own], words]) @ vectors.T).cpu()
    chosen = own.tolist()
    similar[:, chosen] = torch.inf
    for number, row in enumerate(similar):
        quota = -(-(keep - len(chosen)) // (len(similar) - number))
        taken = torch.sort(row, stable=True).indices[:quota].tolist()
        chosen += taken
        similar[:, taken] = torch.inf
    return torch.tensor(sorted(chosen), dtype=torch.int64)


def _longest(vectors: torch.Tensor, count: int) -> torch.Tensor:
    """int64, the vectors [n, D] with the largest sums of absolute values."""
    lengths = vectors.detach().float().abs().sum(dim=-1)
    return torch.sort(lengths, descending=True, stable=True).indices[:count]
