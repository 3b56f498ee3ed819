"""What a pruner is given and what it gives: one base class for all, wherever they act."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch

from fastdrive_node.errors import ModelError
from fastdrive_node.families.base import Cache, LanguageModel, PositionInputs
from fastdrive_node.families.tokens import Prompt, PrunedPrompt, VisualTokens, prune_prompt
from fastdrive_node.pruning.select import CameraFloors
from fastdrive_node.pruning.temporal import FrameContext, TemporalState
from fastdrive_node.types import Draft

# Tokens of a head that is kept: of fewer, their copy, and attention with a mask behind them, take what they would save.
LEAST_HEAD = 16
Timer = Callable[[str], AbstractContextManager[Any]]  # times a named stage


class ContextField(str, Enum):
    """What a pruner reads beside the visual tokens; the value is the field of ``PruningContext``."""

    TEXT = "text"
    TOWER_ATTENTION = "tower_attention"
    TEXT_ATTENTION = "text_attention"
    COVERAGE = "coverage"
    FRAME = "frame"


@dataclass(frozen=True)
class PruningContext:
    """One frame set, as pruners see it. What a pruner does not need is None.

    A pruner leaves all of it as it is: ``visual`` may serve the next set too.
    """

    visual: VisualTokens
    text: torch.Tensor | None = None  # [T, D] embeddings of the prompt after the images
    tower_attention: torch.Tensor | None = None  # [C, N] attention that each token receives in the vision tower
    text_attention: torch.Tensor | None = None  # [C, N] attention of the text after the images in the language model
    coverage: torch.Tensor | None = None  # [C, N] foreground fraction of each token's cell, from ground truth
    frame: FrameContext | None = None  # when, where and with which cameras the set was taken
    state: TemporalState | None = None  # what the set before left to a pruner with a memory; None for the first set
    floors: CameraFloors | None = None  # for pruners that keep them; None: any camera may lose all of its tokens

    @classmethod
    def of(cls, tokens: torch.Tensor, grid: tuple[int, int], **fields: Any) -> PruningContext:
        """Of every token [C, N, D] in raster order; ``grid`` holds the token rows and columns of one image."""
        return cls(VisualTokens.from_raster(tokens, grid), **fields)

    @property
    def tokens(self) -> torch.Tensor:
        """Every visual token [C, N, D], camera after camera in the VLA's order, raster order.

        Raises:
            ModelError: an engine gave only some of them.
        """
        return self.visual.raster()

    @property
    def grid(self) -> tuple[int, int]:
        """Token rows and columns of one image; N is their product."""
        return self.visual.grid[1], self.visual.grid[2]

    def by_image(self, function: Callable[[torch.Tensor, tuple[int, int]], torch.Tensor]) -> torch.Tensor:
        """Numbers [C, N] of a function of tokens [B, n, D] and their grid, where images may differ in size."""
        if self.visual.grids is None:
            return function(self.tokens, self.grid)
        rows = self.tokens[0]
        parts = zip(self.visual.spans, self.visual.grids, strict=True)
        return torch.cat([function(rows[span][None], grid) for span, grid in parts], dim=1)

    @property
    def cameras(self) -> int:
        return self.visual.grid[0]

    @property
    def total(self) -> int:
        """Tokens over all cameras."""
        return self.visual.total

    def require(self, field: ContextField) -> Any:
        """A field that a pruner cannot do without.

        Raises:
            ModelError: it was not given.
        """
        value = getattr(self, field.value)
        if value is None:
            raise ModelError(f"{field.value}: the pruner reads it and it is not known here; use `fastdrive evaluate`")
        return value


@dataclass(frozen=True)
class Selection:
    """Which visual tokens enter the language model."""

    indices: torch.Tensor  # int64 [K] on the CPU, ascending raster indices
    scores: torch.Tensor | None = None  # [C, N] that they were chosen by
    temporal: str = "off"  # "off", "used", "new" for the first set, or "dropped: <reason>" for a state that was stale
    state: TemporalState | None = None  # for the next set


@dataclass(frozen=True)
class Prefilled:
    """Prompts of equal length after a pruned prefill, ready to decode."""

    prompts: list[PrunedPrompt]
    logits: torch.Tensor  # [B, vocabulary], of the last position
    cache: Cache
    kept: list[torch.Tensor]  # of each prompt, int64 [K]: raster indices of the visual tokens that the last layer sees
    tokens_by_layer: tuple[int, ...]
    # Of the only prompt, where a draft of its answer was run with it:
    draft: Draft | None = None
    draft_logits: torch.Tensor | None = None  # [1, D, vocabulary], behind each of its first D tokens


@dataclass(frozen=True)
class PromptHead:
    """The constant text that a VLA's prompts begin with, and what the language model keeps of it."""

    prompt: PrunedPrompt  # without an image
    cache: Cache

    def shared(self, prompt: PrunedPrompt) -> int:
        """Tokens that a prompt has in common with it, from the first on; 0 where they are too few to be worth it."""
        count = min(len(self.prompt), len(prompt) - 1)  # something is left to run
        same = prompt.input_ids[:count] == self.prompt.input_ids[:count]
        same &= (prompt.position_ids[:, :count] == self.prompt.position_ids[:, :count]).all(dim=0)
        shared = int(same.long().cumprod(0).sum())
        return shared if shared >= LEAST_HEAD else 0


def no_timer(stage: str) -> AbstractContextManager[None]:
    """A ``Timer`` that does nothing."""
    return nullcontext()


class Pruner(ABC):
    """Scores visual tokens, then chooses which of them the language model sees.

    A pruner that acts before the language model implements ``select`` and mostly ``score``; one that acts inside of it
    is a :class:`fastdrive_node.pruning.layer_pruning.LayerPruner`.
    """

    name: str
    needs: frozenset[ContextField] = frozenset()  # what must be in the context beside the tokens
    acts_inside: bool = False  # of the language model: it needs one that runs layer by layer
    ranks_by_engine: bool = False  # its scores are those that an engine gives, so it needs the best tokens only
    remembers: bool = False  # reads ``PruningContext.state``
    keeps_floors: bool = False  # takes the best by score, and ``PruningContext.floors`` first

    def score(self, context: PruningContext) -> torch.Tensor | None:
        """Scores [C, N], more is better; None where the pruner has none."""
        return None

    @abstractmethod
    def select(self, context: PruningContext, scores: torch.Tensor | None, keep: int) -> torch.Tensor:
        """int64 [keep] on the CPU, ascending raster indices.

        Raises:
            ValueError: ``keep`` is out of range, or a score is not finite.
        """

    def least_keep(self, grids: Sequence[tuple[int, int]]) -> int:
        """The smallest K that ``select`` takes for images of these token rows and columns."""
        return 1

    def choose(self, context: PruningContext, keep: int, timer: Timer = no_timer) -> Selection:
        """Score and select. Raises as ``select``; ModelError: the context lacks a field."""
        with timer("score"):
            scores = self.score(context)
        with timer("select"):
            return Selection(self.select(context, scores, keep), scores)

    def tokens(self, visual: VisualTokens, chosen: torch.Tensor) -> VisualTokens:
        """What enters the language model at the places of the chosen tokens; a pruner that merges changes it.

        Args:
            visual: the tokens before pruning.
            chosen: int64 [K], ascending raster indices.
        """
        return visual.keep(chosen)

    def prefill(
        self,
        language: LanguageModel,
        prompts: Sequence[Prompt],
        visual: Sequence[VisualTokens],
        chosen: Sequence[torch.Tensor],
        keep: int,
        max_new_tokens: int,
        draft: Draft | None = None,
        head: PromptHead | None = None,
    ) -> Prefilled:
        """Run prompts of equal pruned length through the language model.

        Args:
            visual: the tokens of each prompt, before pruning.
            chosen: of each prompt, int64 [K]: what ``choose`` selected.
            keep: K that was asked for; for pruners that act inside of the language model.
            max_new_tokens: positions that the cache leaves for the answer.
            draft: of the only prompt's answer, to run behind it at once. The cache is then filled up to its end.
            head: of the VLA, where the language model is a ``HeadedLanguageModel`` and there is one prompt. What the
                prompt has in common with it is not run again.

        Raises:
            ModelError: the language model cannot serve this pruner.
            ValueError: prompts of different lengths, or ``keep`` is out of range.
        """
        pruned = [prune_prompt(prompt, indices) for prompt, indices in zip(prompts, chosen, strict=True)]
        tokens = [self.tokens(each, indices) for each, indices in zip(visual, chosen, strict=True)]
        ahead = draft.ids[:max_new_tokens] if draft is not None else ()
        known = 0 if head is None else head.shared(pruned[0])
        behind: dict[str, Any] = {}
        if head is not None and known:
            head.cache.used = known
            behind = {"head": head.cache}
        inputs = batch_inputs(language, pruned, tokens, ahead, known)
        logits, cache = language.prefill(*inputs, max_new_tokens - len(ahead), 1 + len(ahead), **behind)
        layers = (len(chosen[0]),) * language.layers
        if not ahead:
            return Prefilled(pruned, logits[:, 0], cache, list(chosen), layers)
        return Prefilled(pruned, logits[:, 0], cache, list(chosen), layers, draft, logits[:, 1:])


def batch_inputs(
    language: LanguageModel,
    prompts: Sequence[PrunedPrompt],
    visual: Sequence[VisualTokens],
    ahead: Sequence[int] = (),
    known: int = 0,
) -> tuple[torch.Tensor, list[torch.Tensor], Sequence[VisualTokens], PositionInputs]:
    """The first four arguments of ``LanguageModel.prefill`` for prompts of equal length, on the tokens' device.

    Args:
        ahead: ids that stand behind each prompt.
        known: tokens at the beginning of each prompt that are left out; no visual tokens.
    """
    device = visual[0].rows.device
    ids = torch.stack([prompt.input_ids for prompt in prompts])
    positions = torch.stack([prompt.position_ids for prompt in prompts], dim=1)
    if ahead:
        behind = answer_positions(prompts, len(ahead))
        ids = torch.cat([ids, torch.tensor([ahead]).expand(len(ids), -1)], dim=1)
        positions = torch.cat([positions, behind], dim=2)
    ids, positions = ids[:, known:].to(device), positions[:, :, known:].to(device)
    visual_positions = [(prompt.visual - known).to(device) for prompt in prompts]
    return ids, visual_positions, visual, language.position_inputs(positions)


def answer_positions(prompts: Sequence[PrunedPrompt], count: int) -> torch.Tensor:
    """Position ids [P, B, count] of the tokens behind each prompt."""
    starts = torch.tensor([prompt.next_position for prompt in prompts])
    return (starts[:, None] + torch.arange(count)).expand(len(prompts[0].position_ids), -1, -1)
