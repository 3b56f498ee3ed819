"""SparseVLM (Zhang et al., ICML 2025, arXiv 2410.04417): visual tokens that the image-related text tokens attend to.

The schedule is fixed, as in the published runs, instead of the paper's rank criterion. The layers that stand where 2, 6
and 15 stand among 32, counted from 0, run with all tokens that reach them; tokens are dropped behind each by its own
attention, in equal ratios. A budget is the mean over the layers, as the published ones are, so the last layers see
fewer than K. What tokens are merged into counts as kept.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastdrive_node.errors import ModelError
from fastdrive_node.pruning.layer_pruning import LayerChoice, LayerPruner, LayerStep, Reached
from fastdrive_node.pruning.select import select_top

PLACES = (2 / 32, 6 / 32, 15 / 32)  # of the layers behind which tokens are dropped, over the depth
LEAST = 1 / 4  # of K that each step leaves at least, also where the layers in front of the first alone see too many
RECYCLED = 0.3  # of the dropped tokens, the best of which are merged


@dataclass
class SparseVlm(LayerPruner):
    """Rater tokens (equations 3 and 4), the mean of their attention as the score, and recycling of dropped tokens.

    ``merge`` clusters the best 30% of the dropped tokens by density peaks and keeps the mean of each cluster at the
    place of its centre (section 3.4).
    """

    merge: bool = True
    name: str = "sparsevlm"

    def steps(self, layers: int, total: int, keep: int) -> tuple[LayerStep, ...]:
        places = sorted({1 + round(place * layers) for place in PLACES} & set(range(layers)))
        if not places:
            raise ModelError(f"{self.name}: a language model of {layers} layers has none behind which to drop")
        fractions = step_fractions(places, layers, keep / total)
        return tuple(
            LayerStep(place, max(1, round(total * part))) for place, part in zip(places, fractions, strict=True)
        )

    def raters(self, visual: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Words whose fraction of softmax(V T^T) over the text, mean over the visual tokens, is above average."""
        relevance = (visual.float() @ text.float().T).softmax(dim=-1).mean(dim=0)
        above = (relevance > relevance.mean()).nonzero().flatten()
        return above if len(above) else torch.arange(len(text), device=text.device)

    def choose_in_layer(self, reached: Reached, keep: int) -> LayerChoice:
        attention, hidden = reached.attention, reached.hidden
        count = best_count(len(attention), keep) if self.merge else keep
        best = select_top(attention[None], count).to(hidden.device)
        if count == keep:
            return LayerChoice(best)
        dropped = torch.ones(len(attention), dtype=torch.bool, device=hidden.device)
        dropped[best] = False
        dropped = dropped.nonzero().flatten()
        recycled = dropped[select_top(attention[None, dropped], recycled_count(len(dropped))).to(hidden.device)]
        centres, merged = merge_by_density(hidden[recycled], keep - count)
        indices, order = torch.cat([best, recycled[centres]]).sort()
        return LayerChoice(indices, torch.cat([hidden[best], merged.to(hidden.dtype)])[order])


def step_fractions(places: Sequence[int], layers: int, kept: float) -> list[float]:
    """The fraction of all tokens that each step leaves, so that the layers see a fraction ``kept`` of them on average.

    Each step leaves the same fraction of what reaches it, but at least ``LEAST`` of ``kept``. In front of the first
    step all tokens are seen; where a shallow model cannot make up for that, the mean is larger than ``kept``.

    Args:
        places: the layers in front of which tokens are dropped, ascending.
    """
    lengths = [after - before for before, after in itertools.pairwise((*places, layers))]

    def fractions(ratio: float) -> list[float]:
        return [max(ratio**number, LEAST * kept) for number in range(1, len(places) + 1)]

    low, high = 0.0, 1.0
    for _ in range(60):  # the mean grows with the ratio
        middle = (low + high) / 2
        seen = places[0] + sum(map(operator.mul, lengths, fractions(middle)))
        low, high = (middle, high) if seen <= kept * layers else (low, middle)
    return fractions(high)


def recycled_count(dropped: int) -> int:
    """How many of the dropped tokens are merged."""
    return int(RECYCLED * dropped)


def cluster_count(recycled: int) -> int:
    """How many tokens they become: n / 10 + 1, and none of none."""
    return recycled // 10 + 1 if recycled else 0


def best_count(total: int, keep: int) -> int:
    """The largest k such that k tokens and the clusters of the dropped ones are ``keep`` together.

    ``keep`` itself, hence no merging, where it leaves no token beside the clusters.
    """
    for count in range(keep - 1, 0, -1):
        if count + cluster_count(recycled_count(total - count)) == keep:
            return count
    return keep


def merge_by_density(hidden: torch.Tensor, clusters: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cluster tokens by density peaks (Rodriguez and Laio 2014; its k-nearest-neighbour form, Du et al. 2016).

    A token's density is exp(-mean of d^2) over as many nearest tokens as there are clusters, itself included, d the
    root mean square difference; its peak is the distance to the nearest denser token, of the densest the largest
    distance. The highest products are the centres.

    Args:
        hidden: [n, D], n >= ``clusters``.

    Returns:
        The centres, int64 [clusters], ascending, and the mean of each one's cluster, float32 [clusters, D].
    """
    states, count = hidden.float(), len(hidden)
    distances = torch.cdist(states, states, compute_mode="donot_use_mm_for_euclid_dist") / states.shape[1] ** 0.5
    density = (-distances.topk(clusters, largest=False).values.square().mean(dim=1)).exp()
    # of equally dense tokens the earlier one counts as the denser, so that only one of them is a peak
    order = torch.arange(count, device=hidden.device)
    denser = (density[None] > density[:, None]) | ((density[None] == density[:, None]) & (order[None] < order[:, None]))
    peak = distances.masked_fill(~denser, torch.inf).min(dim=1).values
    peak = torch.where(denser.any(dim=1), peak, distances.max(dim=1).values)
    centres = torch.sort(density * peak, descending=True, stable=True).indices[:clusters].sort().values
    member = distances[:, centres].argmin(dim=1)
    member[centres] = torch.arange(clusters, device=hidden.device)
    sums = torch.zeros(clusters, states.shape[1], device=hidden.device).index_add_(0, member, states)
    return centres, sums / torch.bincount(member, minlength=clusters)[:, None]
