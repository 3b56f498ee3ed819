"""What a pruner is given and what it answers: one interface for all that act before the language model."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import torch

from fastdrive_node.errors import ModelError
from fastdrive_node.pruning.temporal import Moment, TemporalState


class Need(str, Enum):
    """What a pruner looks at beside tokens and grid; the value is the field of ``PruningContext``."""

    TEXT = "text"
    TOWER_ATTENTION = "tower_attention"
    TEXT_ATTENTION = "text_attention"
    COVERAGE = "coverage"
    MOMENT = "moment"


@dataclass(frozen=True)
class PruningContext:
    """One frame set, as pruners see it. The node fills tokens and grid; the rest is for pruners that need it."""

    tokens: torch.Tensor  # [C, N, D], camera after camera in the VLA's order, raster order
    grid: tuple[int, int]  # token rows and columns of one image; N is their product
    text: torch.Tensor | None = None  # [T, D] embeddings of the prompt behind the images
    tower_attention: torch.Tensor | None = None  # [C, N] attention that each token receives in the tower
    text_attention: torch.Tensor | None = None  # [C, N] attention of the text behind the images in the language model
    coverage: torch.Tensor | None = None  # [C, N] foreground share of each token's cell, from ground truth
    moment: Moment | None = None  # when, where and with which cameras the set was taken
    state: TemporalState | None = None  # what the set before left to a pruner with a memory; None in the first set

    @property
    def total(self) -> int:
        """Tokens over all cameras."""
        return self.tokens.shape[0] * self.tokens.shape[1]

    def require(self, need: Need) -> torch.Tensor | Moment:
        """A field that a pruner cannot do without.

        Raises:
            ModelError: it was not given.
        """
        value = getattr(self, need.value)
        if value is None:
            raise ModelError(f"{need.value}: the pruner needs it and it is not given; use `fastdrive evaluate`")
        return value


class Pruner(Protocol):
    """Scores visual tokens, then chooses which of them the language model sees from its first layer on."""

    name: str
    needs: frozenset[Need]  # what must be in the context beside tokens and grid

    def score(self, context: PruningContext) -> torch.Tensor | None:
        """Scores [C, N], more is better; None where the pruner has none."""

    def select(self, context: PruningContext, scores: torch.Tensor | None, keep: int) -> torch.Tensor:
        """int64 [keep] on the CPU, ascending indices into C * N."""


def choose(pruner: Pruner, context: PruningContext, keep: int) -> torch.Tensor:
    """Both steps: int64 [keep] on the CPU, ascending indices into C * N."""
    return pruner.select(context, pruner.score(context), keep)
