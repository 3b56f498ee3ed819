"""Evenly spaced tokens, by their coordinates alone: what a choice that looks at no image can do."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from fastdrive_node.families.tokens import VisualTokens
from fastdrive_node.pruning.baselines.prune2drive import split_budget
from fastdrive_node.pruning.pruner import Pruner, PruningContext

_PLASTIC = 1.32471795724474602596  # x^3 = x + 1; its powers give the lattice of R_2 (Roberts, 2018)


@lru_cache(maxsize=64)
def spread_order(rows: int, columns: int) -> torch.Tensor:
    """The cells of a grid in an order of which every beginning is evenly spaced: float64 [rows * columns] in [0, 1).

    A cell's number is the fractional part of a x + b y, with a and b so that the numbers below any threshold lie far
    apart: of a quarter of the cells every second one of every second row, alternating.
    """
    places = torch.arange(rows * columns, dtype=torch.float64)
    y, x = places.div(columns, rounding_mode="floor"), places.remainder(columns)
    return (x / _PLASTIC + y / _PLASTIC**2).remainder(1.0)


@dataclass
class CoveragePruner(Pruner):
    """Keeps evenly spaced tokens of each image, as many of each as its size lets it have.

    What it keeps at a larger K holds what it keeps of the image at a smaller one.
    """

    name: str = "coverage"

    def select(self, context: PruningContext, scores: None, keep: int) -> torch.Tensor:
        return evenly_spaced(context.visual, keep)


def evenly_spaced(visual: VisualTokens, keep: int) -> torch.Tensor:
    """int64 [keep] on the CPU, ascending raster indices: evenly spaced tokens of each image.

    Raises ValueError: ``keep`` is out of range.
    """
    spans = visual.spans
    counts = [span.stop - span.start for span in spans]
    budgets = split_budget(keep, [float(count) for count in counts], counts)
    kept = [
        span.start + torch.sort(spread_order(*grid), stable=True).indices[:budget].sort().values
        for span, grid, budget in zip(spans, visual.image_grids, budgets, strict=True)
    ]
    return torch.cat(kept)
