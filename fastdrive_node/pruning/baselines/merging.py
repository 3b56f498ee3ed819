"""Pruners that change the tokens which they keep: pooled cells (Matryoshka, and by score), cells packed by a trained
module (TokenPacker), and weighted neighbors (PruMerge)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from fastdrive_node.errors import ModelError
from fastdrive_node.families.tokens import VisualTokens
from fastdrive_node.files import TOKEN_PACKER_FILE
from fastdrive_node.pruning.baselines.diversity import directions
from fastdrive_node.pruning.pruner import ContextField, Pruner, PruningContext
from fastdrive_node.pruning.select import select_top
from fastdrive_node.pruning.token_packer import TokenPacker, cells_of, members_of

NEIGHBORS = 32  # that are merged into a kept token


@dataclass
class Matryoshka(Pruner):
    """Average pooling of 1, 2x2, 4x4, ... tokens (M3: Cai et al., ICLR 2025, arXiv 2405.17430).

    The largest grid of at most K tokens; 2x2 is a quarter of an even one. A pooled token has the position of its cell's
    first token. For a language model that was trained with such grids; for another one it is a control only.
    """

    name: str = "matryoshka"

    def least_keep(self, grids: Sequence[tuple[int, int]]) -> int:
        return len(grids)

    def select(self, context: PruningContext, scores: None, keep: int) -> torch.Tensor:
        visual = context.visual
        cells = cells_of(visual.image_grids, pooling_size(visual.image_grids, keep))
        return torch.unique(cells)

    def tokens(self, visual: VisualTokens, chosen: torch.Tensor) -> VisualTokens:
        return pooled_cells(visual, chosen, cells_of(visual.image_grids, size_of(visual.image_grids, chosen)))


def pooled_cells(visual: VisualTokens, chosen: torch.Tensor, cells: torch.Tensor) -> VisualTokens:
    """The cells whose first tokens were chosen, each as the mean of its tokens; the others are left out.

    Args:
        chosen: int64 [K], ascending raster indices.
        cells: int64 [N], the first token of each token's cell.
    """
    return pooled_rows(visual, chosen, torch.where(torch.isin(cells, chosen.cpu()), cells, -1))


def pooled_rows(visual: VisualTokens, chosen: torch.Tensor, targets: torch.Tensor) -> VisualTokens:
    """The chosen tokens, each the mean of the tokens that go into it; so are the features of later layers.

    Args:
        chosen: int64 [K], ascending raster indices.
        targets: int64 [N]: the chosen raster index that each token goes into; -1: into none.
    """
    device, members = visual.rows.device, (targets >= 0).nonzero()[:, 0]
    number = torch.searchsorted(chosen.cpu(), targets[members]).to(device)
    sizes = torch.bincount(number, minlength=len(chosen))[:, None]
    order = visual.positions_of(members).to(device)

    def pooled(values: torch.Tensor) -> torch.Tensor:
        sums = torch.zeros(len(chosen), values.shape[1], dtype=torch.float32, device=device)
        return (sums.index_add_(0, number, values[order].float()) / sizes).to(values.dtype)

    features = tuple(pooled(feature) for feature in visual.layer_features)
    return replace(visual, rows=pooled(visual.rows), indices=chosen.cpu(), layer_features=features)


def pooling_size(grids: Sequence[tuple[int, int]], keep: int) -> int:
    """Rows and columns of the smallest cells, a power of two, that leave at most ``keep`` tokens.

    Raises:
        ValueError: one token of each image is more.
    """
    size = 1
    while sum(-(-rows // size) * -(-columns // size) for rows, columns in grids) > keep:
        if size >= max(max(grid) for grid in grids):
            raise ValueError(f"keep: {keep} tokens are fewer than the {len(grids)} images")
        size *= 2
    return size


def size_of(grids: Sequence[tuple[int, int]], chosen: torch.Tensor) -> int:
    """Rows and columns of the cells whose first tokens were chosen, where those of some cameras may be missing."""
    size = 1
    while size < max(max(grid) for grid in grids) and bool(torch.isin(chosen.cpu(), cells_of(grids, 2 * size)).all()):
        size *= 2
    return size


def choose_cells(scores: torch.Tensor, grids: Sequence[tuple[int, int]], keep: int) -> torch.Tensor:
    """int64 [at most ``keep``] on the CPU, ascending raster indices: cells of 2x2 by the mean of their scores.

    Every token of a whole cell, and of a pooled one its first. With fewer tokens than cells the best ``keep`` cells are
    pooled and the others left out. With more, all are there and the best are whole; what is too little for one more
    whole cell, two tokens at most, is not used. Equal means are taken in index order.

    Args:
        scores: N numbers in raster order, of any shape.
        grids: token rows and columns of each image.

    Raises:
        ValueError: a score is not finite, or ``keep`` is out of range.
    """
    values = scores.detach().float().cpu().flatten()
    if not bool(torch.isfinite(values).all()):
        raise ValueError("scores: not finite")
    if not 0 < keep <= len(values):
        raise ValueError(f"keep: {keep} is not in 1..{len(values)}")
    first, cell = torch.unique(cells_of(grids), return_inverse=True)
    sizes = torch.bincount(cell)
    # Not by the sum: where scores are below 0, as logits of background are, it would favor the small cells at edges.
    means = torch.zeros(len(first)).index_add_(0, cell, values) / sizes
    order = means.sort(descending=True, stable=True).indices
    chosen = torch.zeros(len(values), dtype=torch.bool)
    chosen[first[order[:keep]]] = True
    more = (sizes - 1)[order].cumsum(0)  # tokens that it takes to have the cells up to this one whole
    chosen |= torch.isin(cell, order[more <= keep - len(first)])
    return chosen.nonzero()[:, 0]


def with_pooled_cells(visual: VisualTokens, chosen: torch.Tensor) -> VisualTokens:
    """The tokens at the places that ``choose_cells`` gave: a cell of which one alone is chosen is the mean of all.

    Args:
        visual: complete.
        chosen: int64 [K], ascending raster indices; cells may be left out.
    """
    cells = cells_of(visual.image_grids)
    kept = torch.zeros(len(cells), dtype=torch.bool)
    kept[chosen.cpu()] = True
    alone = torch.bincount(cells[kept], minlength=len(cells))[cells] == 1
    into = torch.where(alone, cells, -1)
    return pooled_rows(visual, chosen, torch.where(kept, torch.arange(len(cells)), into))


@dataclass
class PackedTokens(Pruner):
    """One token of each 2x2 cell, packed by ``token_packer``, at the position of the cell's first token.

    Its features of later layers are the means of its cell's. A language model that is trained with the packer reads
    nothing else then, so the choice is the same at every K.
    """

    packer: TokenPacker | None = None  # None: not known, ``select`` raises ModelError
    name: str = "tokenpacker"

    def least_keep(self, grids: Sequence[tuple[int, int]]) -> int:
        return len(members_of(grids)[0])

    def select(self, context: PruningContext, scores: None, keep: int) -> torch.Tensor:
        if self.packer is None:
            raise ModelError(f"pruner tokenpacker: {TOKEN_PACKER_FILE} is missing; use a VLA that has it")
        first = members_of(context.visual.image_grids)[0][:, 0].contiguous()
        if len(first) > keep:
            raise ModelError(
                f"pruner tokenpacker: {keep} tokens are to be kept, but it always gives {len(first)} of "
                f"{context.total}; use a smaller pruning ratio or another pruner"
            )
        return first

    def tokens(self, visual: VisualTokens, chosen: torch.Tensor) -> VisualTokens:
        assert self.packer is not None  # by ``select``
        members, present = members_of(visual.image_grids)
        given = torch.isin(members[:, 0], chosen.cpu())  # those of a missing camera are left out
        rows = visual.raster().flatten(0, 1)
        packed = self.packer(rows[members[given].to(rows.device)], present[given].to(rows.device))
        return replace(pooled_cells(visual, chosen, cells_of(visual.image_grids)), rows=packed)


@dataclass
class PruMerge(Pruner):
    """The K most attended tokens, each merged with its like (PruMerge: Shang et al., ICCV 2025, arXiv 2403.15388).

    A kept token becomes the mean of itself and the 32 tokens most similar to it, weighted by their attention. The
    original's K is the number of outliers of the class token's attention; here it is given. Qwen2.5-VL has no class
    token: attention is that of ``vispruner``, and similarity the cosine of tokens instead of keys.
    """

    name: str = "prumerge"
    needs: frozenset[ContextField] = frozenset({ContextField.TOWER_ATTENTION})
    keeps_floors = True

    def score(self, context: PruningContext) -> torch.Tensor:
        return context.require(ContextField.TOWER_ATTENTION)

    def select(self, context: PruningContext, scores: torch.Tensor, keep: int) -> torch.Tensor:
        return select_top(scores, keep, context.floors)

    def tokens(self, visual: VisualTokens, chosen: torch.Tensor) -> VisualTokens:
        kept = visual.keep(chosen)
        if len(chosen) == visual.total or visual.attention is None:
            return kept
        rows = visual.raster().flatten(0, 1).float()
        vectors = directions(rows)
        nearest = (
            (vectors[chosen.to(rows.device)] @ vectors.T).topk(min(NEIGHBORS + 1, visual.total)).indices
        )  # and itself
        weights = visual.attention.flatten().to(rows.device)[nearest]
        merged = (rows[nearest] * weights[..., None]).sum(dim=1) / weights.sum(dim=1, keepdim=True).clamp(min=1e-12)
        return replace(kept, rows=merged.to(visual.rows.dtype))
