"""CDPruner: a determinantal point process conditioned on the prompt (Zhang et al., NeurIPS 2025, arXiv 2506.10967)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastdrive_node.pruning.baselines.diversity import directions
from fastdrive_node.pruning.pruner import ContextField, Pruner, PruningContext

_RANK_LIMIT = 1e-9  # below this fraction of the largest one a gain is rounding: the kernel's rank is used up


@dataclass
class CdPruner(Pruner):
    """Keeps the likeliest set, greedily, under the kernel diag(q) S diag(q).

    S is the cosine similarity of the tokens of all cameras, q their relevance to the prompt, min-max scaled. The
    original takes q from CLIP's own text encoder, as minus the mean cosine, which is right there; here it is plus the
    mean cosine with the language model's embeddings of the text after the images. S has no higher rank than the tokens'
    width: what is kept beyond it is chosen by q, where the original keeps fewer than K.
    """

    name: str = "cdpruner"
    needs: frozenset[ContextField] = frozenset({ContextField.TEXT})

    def score(self, context: PruningContext) -> torch.Tensor:
        """The relevance q, float32 [C, N] in [0, 1]."""
        text = directions(context.require(ContextField.TEXT))
        relevance = directions(context.tokens) @ text.mean(dim=0)
        low, high = relevance.min(), relevance.max()
        scaled = (relevance - low) / (high - low) if high > low else torch.ones_like(relevance)
        return scaled.reshape(context.tokens.shape[:2])

    def select(self, context: PruningContext, scores: torch.Tensor, keep: int) -> torch.Tensor:
        return likeliest_set(directions(context.tokens), scores.flatten(), keep)


def likeliest_set(vectors: torch.Tensor, quality: torch.Tensor, keep: int) -> torch.Tensor:
    """Greedy MAP inference of a DPP by an incremental Cholesky factor (Chen, Zhang, Zhou, NeurIPS 2018, algorithm 1).

    Args:
        vectors: [n, D], unit vectors; the kernel is q_i q_j <v_i, v_j>.
        quality: [n], at least 0.

    Returns:
        int64 [keep] on the CPU, ascending.
    """
    vectors, quality = vectors.double(), quality.double()
    scaled = vectors * quality[:, None]
    gain = scaled.square().sum(dim=1)  # of each token: what it multiplies the determinant of the chosen ones by
    limit = _RANK_LIMIT * float(gain.max())
    factor = torch.zeros(keep, len(vectors), dtype=torch.float64, device=vectors.device)
    chosen: list[int] = []
    for step in range(keep):
        best = int(gain.argmax())
        if float(gain[best]) <= limit:
            break
        row = scaled @ scaled[best] - factor[:step, best] @ factor[:step]
        factor[step] = row / gain[best].sqrt()
        gain = gain - factor[step].square()
        gain[[*chosen, best]] = -torch.inf
        chosen.append(best)
    order = torch.sort(quality.cpu(), descending=True, stable=True).indices
    others = order[~torch.isin(order, torch.tensor(chosen, dtype=torch.int64))]
    return torch.cat([torch.tensor(chosen, dtype=torch.int64), others[: keep - len(chosen)]]).sort().values
