"""What passes between encoder, pruner and language model: visual tokens and prompts with their position ids."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastdrive_node.errors import ModelError


@dataclass(frozen=True)
class VisualTokens:
    """Visual tokens of one frame set, N = cameras * rows * columns in all, of which M are here.

    The raster index counts camera after camera, row after row. The torch backends give M = N in raster order; an engine
    gives the M tokens with the highest scores, best first.
    """

    rows: torch.Tensor  # [M, D]
    indices: torch.Tensor  # int64 [M] on the CPU: the raster index of each row
    grid: tuple[int, int, int]  # cameras, token rows and columns of one image
    scores: torch.Tensor | None = None  # float32 [C, N / C] on the CPU, of every token, where the backend scored them
    attention: torch.Tensor | None = None  # float32 [C, N / C] that each token receives in the vision tower
    layer_features: tuple[torch.Tensor, ...] = ()  # [M, D] each: added to the states behind later language layers
    # Of images of different sizes: token rows and columns of each. ``grid`` is then (1, 1, N), and so are scores.
    grids: tuple[tuple[int, int], ...] | None = None

    @classmethod
    def from_raster(
        cls,
        tokens: torch.Tensor,
        grid: tuple[int, int],
        attention: torch.Tensor | None = None,
        layer_features: tuple[torch.Tensor, ...] = (),
    ) -> VisualTokens:
        """All tokens [C, rows * columns, D] of a set, in raster order; ``layer_features`` as the field."""
        rows, indices = tokens.flatten(0, 1), torch.arange(tokens.shape[0] * tokens.shape[1])
        shape = (len(tokens), *grid)
        return cls(rows, indices, shape, attention=attention, layer_features=layer_features)

    @classmethod
    def of_images(cls, images: Sequence[tuple[VisualTokens, int]]) -> VisualTokens:
        """The tokens of single images, each given by a set of complete tokens and the image's index in it."""
        rows = torch.cat([visual.raster().flatten(0, 1)[visual.spans[index]] for visual, index in images])
        grids = tuple(visual.image_grids[index] for visual, index in images)
        mixed = len(set(grids)) > 1
        grid = (1, 1, len(rows)) if mixed else (len(images), *grids[0])
        scores, attention = (
            torch.cat([getattr(visual, name).flatten()[visual.spans[index]] for visual, index in images]).view(
                grid[0], -1
            )
            if all(getattr(visual, name) is not None for visual, _ in images)
            else None
            for name in ("scores", "attention")
        )
        layers = [visual._image_features(index) for visual, index in images]
        features = tuple(torch.cat(each) for each in zip(*layers, strict=True))
        return cls(rows, torch.arange(len(rows)), grid, scores, attention, features, grids if mixed else None)

    def _image_features(self, index: int) -> list[torch.Tensor]:
        span = self.spans[index]
        kept = self.positions_of(torch.arange(span.start, span.stop))
        return [feature[kept.to(feature.device)] for feature in self.layer_features]

    @property
    def image_grids(self) -> tuple[tuple[int, int], ...]:
        """Token rows and columns of each image."""
        return self.grids or ((self.grid[1], self.grid[2]),) * self.grid[0]

    @property
    def spans(self) -> list[slice]:
        """The raster indices of each image."""
        ends = [0, *itertools.accumulate(rows * columns for rows, columns in self.image_grids)]
        return [slice(start, end) for start, end in itertools.pairwise(ends)]

    @property
    def total(self) -> int:
        """N."""
        cameras, rows, columns = self.grid
        return cameras * rows * columns

    @property
    def complete(self) -> bool:
        """Whether every token is here."""
        return len(self.rows) == self.total

    def raster(self) -> torch.Tensor:
        """Every token, [C, rows * columns, D].

        Raises:
            ModelError: some are not here.
        """
        if not self.complete:
            raise ModelError(
                f"visual tokens: the engine gives {len(self.rows)} of {self.total}; this pruner reads all: build the "
                "engine with a larger --max-keep, or run the vision encoder with torch"
            )
        return self.take(torch.arange(self.total)).view(self.grid[0], -1, self.rows.shape[-1])

    def positions_of(self, kept: torch.Tensor) -> torch.Tensor:
        """Row numbers int64 [K] of the raster indices ``kept``.

        Raises:
            ModelError: one of them is not here.
        """
        row_of = torch.full((self.total,), -1, dtype=torch.int64)
        row_of[self.indices] = torch.arange(len(self.indices))
        rows = row_of[kept.cpu()]
        if bool((rows < 0).any()):
            raise ModelError(f"visual tokens: {int((rows < 0).sum())} of the chosen ones were not given by the engine")
        return rows

    def take(self, kept: torch.Tensor) -> torch.Tensor:
        """The tokens [K, D] of the raster indices ``kept``. Raises as :meth:`positions_of`."""
        if self.complete and len(kept) == self.total and torch.equal(kept.cpu(), self.indices):
            return self.rows
        return self.rows[self.positions_of(kept).to(self.rows.device)]

    def keep(self, kept: torch.Tensor) -> VisualTokens:
        """Only the tokens of the raster indices ``kept``, in that order. Raises as :meth:`positions_of`."""
        positions = self.positions_of(kept).to(self.rows.device)
        features = tuple(feature[positions] for feature in self.layer_features)
        return VisualTokens(
            self.rows[positions], kept.cpu(), self.grid, self.scores, self.attention, features, self.grids
        )


@dataclass(frozen=True)
class Prompt:
    """A prompt with all N visual tokens; pruning removes some of them later.

    Positions are those of the full sequence: column i of ``position_ids`` is the position id of token i.
    """

    text: str
    input_ids: torch.Tensor  # int64 [L]; image placeholders included
    position_ids: torch.Tensor  # int64 [P, L]; P = 3 (time, height, width) for M-RoPE, 1 for plain positions
    visual: torch.Tensor  # int64 [N], the positions of the visual tokens, camera after camera in raster order
    next_position: int  # position id of the answer's first token
    derived: tuple[str, ...] = ()  # markers whose values no sensor gave

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def text_after_images(self) -> torch.Tensor:
        """Token ids int64 [T] after the last image: under a causal mask only these attend to every visual token."""
        return self.input_ids[int(self.visual[-1]) + 1 :]


@dataclass(frozen=True)
class PrunedPrompt:
    """A prompt without its pruned visual tokens. What is kept keeps its position id: nothing is renumbered."""

    input_ids: torch.Tensor  # int64 [L']
    position_ids: torch.Tensor  # int64 [P, L'], gathered from those of the full sequence
    visual: torch.Tensor  # int64 [K], the positions of the kept visual tokens in the pruned sequence
    next_position: int  # the full sequence's: position id of the answer's first token

    def __len__(self) -> int:
        return len(self.input_ids)


def prune_prompt(prompt: Prompt, kept: torch.Tensor | None = None) -> PrunedPrompt:
    """Remove the visual tokens that are not in ``kept`` (int64 [K], ascending, over all cameras); None keeps all.

    Raises:
        ValueError: ``kept`` is not ascending, or outside of the prompt's visual tokens.
    """
    if kept is None:
        kept = torch.arange(len(prompt.visual))
    if len(kept) and (bool((kept.diff() <= 0).any()) or int(kept[0]) < 0 or int(kept[-1]) >= len(prompt.visual)):
        raise ValueError(f"kept tokens: expected ascending indices below {len(prompt.visual)}")
    present = torch.ones(len(prompt), dtype=torch.bool)
    present[prompt.visual] = False
    present[prompt.visual[kept]] = True
    left = present.nonzero().flatten()
    visual = torch.searchsorted(left, prompt.visual[kept])
    return PrunedPrompt(prompt.input_ids[left], prompt.position_ids[:, left], visual, prompt.next_position)
