"""Prefill that prunes visual tokens inside of the language model, by the attention of the layer before.

A token that is pruned before layer k has keys and values in the layers below k only, so the cache's layers differ
in length; positions stay those of the full sequence in all of them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from fastdrive_node.errors import ModelError
from fastdrive_node.families.base import LayeredLanguageModel
from fastdrive_node.families.tokens import Prompt, PrunedPrompt, VisualTokens, prune_prompt
from fastdrive_node.pruning.pruner import (
    Prefilled,
    PromptHead,
    Pruner,
    PruningContext,
    Selection,
    Timer,
    batch_inputs,
    no_timer,
)
from fastdrive_node.types import Draft


@dataclass(frozen=True)
class LayerStep:
    """Visual tokens are pruned before ``layer`` (the first is 0), down to ``keep`` of them."""

    layer: int
    keep: int


@dataclass(frozen=True)
class Reached:
    """The N' visual tokens of a prompt that reached a step."""

    hidden: torch.Tensor  # [N', D], their states
    images: torch.Tensor  # int64 [N'] on the CPU, ascending: the image of each
    attend: Callable[[], torch.Tensor]  # see ``attention``, which is computed where it is asked for only

    @property
    def attention(self) -> torch.Tensor:
        """float32 [N'], that the raters pay them in the layer before, mean over heads and raters."""
        return self.attend()


@dataclass(frozen=True)
class LayerChoice:
    """What is left of the visual tokens that reached a step."""

    indices: torch.Tensor  # int64 [keep], ascending, among those that reached it
    hidden: torch.Tensor | None = None  # [keep, D], their states from here on; None where they stay as they are


class LayerPruner(Pruner):
    """Chooses visual tokens by what the language model's layers attend to. Every token enters the language model."""

    acts_inside = True

    def select(self, context: PruningContext, scores: None, keep: int) -> torch.Tensor:
        return torch.arange(context.total)

    def choose(self, context: PruningContext, keep: int, timer: Timer = no_timer) -> Selection:
        return Selection(self.select(context, None, keep))

    def prefill(
        self,
        language: LayeredLanguageModel,
        prompts: Sequence[Prompt],
        visual: Sequence[VisualTokens],
        chosen: Sequence[torch.Tensor],
        keep: int,
        max_new_tokens: int,
        draft: Draft | None = None,
        head: PromptHead | None = None,
    ) -> Prefilled:
        """See ``Pruner``; a draft is not run and a head not used. The prompts have equally many visual tokens."""
        total = len(prompts[0].visual)
        if any(len(prompt.visual) != total for prompt in prompts):
            raise ValueError("prompts: differ in their number of visual tokens")
        if not 0 < keep <= total:
            raise ValueError(f"keep: {keep} is not in 1..{total}")
        if not isinstance(language, LayeredLanguageModel):
            raise ModelError(
                f"pruner {self.name}: acts inside of the language model, which engines and most families do not allow; "
                "use another pruner"
            )
        whole = [prune_prompt(prompt) for prompt in prompts]
        steps = {step.layer: step for step in self.steps(language.layers, total, keep)}
        counts = tokens_by_layer(language.layers, total, list(steps.values()))
        length = len(whole[0])
        cache = language.cache(len(prompts), length + max_new_tokens, [total - count for count in counts])
        run = _LayerRun(language, whole, visual, cache, self.raters)
        for index in range(language.layers):
            if index in steps:
                run.prune(index, steps[index].keep, self.choose_in_layer)
            run.layer(index)
        cache.used = length
        return Prefilled(whole, language.logits(run.hidden), cache, run.kept, counts)

    @abstractmethod
    def steps(self, layers: int, total: int, keep: int) -> tuple[LayerStep, ...]:
        """The schedule for a model of ``layers`` layers, ascending, that keeps ``keep`` of ``total`` tokens.

        A pruner says what that means: what the last step leaves, or the mean over the layers.

        Raises:
            ModelError: the model has too few layers.
        """

    def raters(self, visual: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Which tokens of the text after the images rate the visual tokens; here all of them.

        Args:
            visual, text: the embeddings that enter the first layer, [N, D] and [T, D].

        Returns:
            int64 [R], indices into the text, at least one.
        """
        return _all_text(visual, text)

    @abstractmethod
    def choose_in_layer(self, reached: Reached, keep: int) -> LayerChoice:
        """Choose ``keep`` of the visual tokens that reached a step."""


def tokens_by_layer(layers: int, total: int, steps: Sequence[LayerStep]) -> tuple[int, ...]:
    """Visual tokens that each layer sees under a schedule."""
    counts = [total] * layers
    for step in sorted(steps, key=lambda step: step.layer):
        counts[step.layer :] = [step.keep] * (layers - step.layer)
    return tuple(counts)


@torch.inference_mode()
def text_attention(
    language: LayeredLanguageModel, prompt: Prompt, visual: VisualTokens, layer: int = 1
) -> torch.Tensor:
    """Attention that the text after the images pays to each visual token in a layer of the unpruned model.

    Args:
        visual: every token.
        layer: from 0; of a model with fewer layers the last.

    Returns:
        float32 [C, N], the mean over heads and text tokens.
    """
    layer = min(layer, language.layers - 1)
    run = _LayerRun(language, [prune_prompt(prompt)], [visual], language.cache(1, len(prompt)), _all_text)
    for index in range(layer + 1):
        run.layer(index)
    return run.attention(layer, 0).reshape(visual.grid[0], -1)


def _all_text(visual: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(text), device=text.device)


class _LayerRun:
    """A batch on its way through the layers: its states, and the positions of its visual tokens and raters."""

    def __init__(
        self,
        language: LayeredLanguageModel,
        prompts: Sequence[PrunedPrompt],
        visual: Sequence[VisualTokens],
        cache,
        raters: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ):
        ids, self._visual, _, self._positions = batch_inputs(language, prompts, visual)
        embeddings = language.embed_prompts(ids, self._visual, visual)
        self._language, self._cache = language, cache
        self._from_end = [_from_end(row, places, raters) for row, places in zip(embeddings, self._visual, strict=True)]
        self._before = embeddings  # the input of the layer that was run last
        self.hidden = embeddings
        self.kept = [torch.arange(len(places)) for places in self._visual]
        self._images = [_image_of_each(each) for each in visual]

    def layer(self, index: int) -> None:
        self._before = self.hidden
        self.hidden = self._language.layer(index, self.hidden, self._positions, self._cache, 0)

    def attention(self, index: int, row: int) -> torch.Tensor:
        """float32 [N'] that the raters of one prompt paid its visual tokens in the layer that was run last."""
        length = self._before.shape[1]
        weights = self._language.attention(
            index,
            self._before[row],
            tuple(part[row] for part in self._positions),
            length - self._from_end[row],
            self._cache.keys[index][row, :, :length],
        )
        return weights[:, :, self._visual[row]].mean(dim=(0, 1))

    def prune(self, index: int, keep: int, choose: Callable[[Reached, int], LayerChoice]) -> None:
        """Leave ``keep`` visual tokens of each prompt, in front of layer ``index``."""
        stays = []
        for row, visual in enumerate(self._visual):
            images = self._images[row][self.kept[row]]
            reached = Reached(self.hidden[row, visual], images, partial(self.attention, index - 1, row))
            stays.append(self._leave(row, visual, choose(reached, keep)))
        self.hidden, *positions = (
            torch.stack([values[row, stay] for row, stay in enumerate(stays)])
            for values in (self.hidden, *self._positions)
        )
        self._positions = tuple(positions)

    def _leave(self, row: int, visual: torch.Tensor, choice: LayerChoice) -> torch.Tensor:
        """int64, the positions of one prompt's sequence that stay."""
        if choice.hidden is not None:
            self.hidden[row, visual[choice.indices]] = choice.hidden.to(self.hidden.dtype)
        present = torch.ones(self.hidden.shape[1], dtype=torch.bool, device=visual.device)
        present[visual] = False
        present[visual[choice.indices]] = True
        stay = present.nonzero().flatten()
        self._visual[row] = torch.searchsorted(stay, visual[choice.indices])
        self.kept[row] = self.kept[row][choice.indices.cpu()]
        return stay


def _image_of_each(visual: VisualTokens) -> torch.Tensor:
    """int64 [N] on the CPU: the image that each token belongs to."""
    counts = torch.tensor([rows * columns for rows, columns in visual.image_grids])
    return torch.repeat_interleave(torch.arange(len(counts)), counts)


def _from_end(embeddings: torch.Tensor, visual: torch.Tensor, raters: Callable) -> torch.Tensor:
    """The raters' distances from the sequence's end, which stay when visual tokens before them are pruned."""
    text = embeddings[visual[-1] + 1 :]
    if not len(text):
        raise ValueError("prompt: has no text behind its images to rate them")
    return len(text) - raters(embeddings[visual], text)
