"""The pruners by name, behind one Protocol."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from fastdrive_node.planning.model import Vla
from fastdrive_node.pruning.files import load_pruner
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_node.pruning.select import select_top
from fastdrive_node.types import ModelError

PRUNERS = ("none", "random", "reconpruner")


class Pruner(Protocol):
    """Scores visual tokens, then chooses which of them the language model sees."""

    name: str

    def score(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor | None:
        """Tokens [C, N, D] of a grid (rows, columns) -> scores [C, N]; None where the pruner has none."""

    def select(self, tokens: torch.Tensor, scores: torch.Tensor | None, keep: int) -> torch.Tensor:
        """int64 [keep], ascending indices into C * N."""


@dataclass
class NoPruner:
    """Keeps every token, whatever is asked."""

    name: str = "none"

    def score(self, tokens: torch.Tensor, grid: tuple[int, int]) -> None:
        return None

    def select(self, tokens: torch.Tensor, scores: None, keep: int) -> torch.Tensor:
        return torch.arange(tokens.shape[0] * tokens.shape[1])


@dataclass
class RandomPruner:
    """Keeps tokens by chance; the same seed gives the same choices in the same order of calls."""

    seed: int = 0
    name: str = "random"
    _generator: torch.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)

    def score(self, tokens: torch.Tensor, grid: tuple[int, int]) -> None:
        return None

    def select(self, tokens: torch.Tensor, scores: None, keep: int) -> torch.Tensor:
        total = tokens.shape[0] * tokens.shape[1]
        return torch.randperm(total, generator=self._generator)[:keep].sort().values


@dataclass
class ScorePruner:
    """Keeps the highest scores of a ReconPruner over all cameras."""

    module: ReconPruner
    camera_floor: int = 0  # tokens that each camera keeps at least
    name: str = "reconpruner"

    def score(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        return self.module(tokens, grid)

    def select(self, tokens: torch.Tensor, scores: torch.Tensor, keep: int) -> torch.Tensor:
        return select_top(scores, keep, self.camera_floor)


def make_pruner(
    name: str, vla: Vla | None = None, path: str | Path | None = None, seed: int = 0, camera_floor: int = 0
) -> Pruner:
    """A pruner by its name.

    Args:
        name: one of ``PRUNERS``.
        vla, path: for ``reconpruner``, the VLA and the pruner file.
        seed: for ``random``.
        camera_floor: for ``reconpruner``, tokens that each camera keeps at least.

    Raises:
        ModelError: an unknown name, or a pruner file that cannot serve this VLA.
    """
    if name == "none":
        return NoPruner()
    if name == "random":
        return RandomPruner(seed)
    if name == "reconpruner":
        if vla is None or path is None:
            raise ModelError("reconpruner: a VLA and a pruner file are needed")
        return ScorePruner(load_pruner(path, vla), camera_floor)
    raise ModelError(f"pruner {name!r} is not known; known are {', '.join(PRUNERS)}")
