"""Prefill that drops visual tokens inside of the language model, by the attention of the layer before.

A token that is dropped in front of layer k has keys and values in the layers below k only, so the cache's layers differ
in length; positions stay those of the full sequence in all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fastdrive_node.families.qwen2_5_vl.language import KvCache, LanguageModel
from fastdrive_node.families.qwen2_5_vl.prompt import Prompt
from fastdrive_node.planning.prefill import PrunedPrompt, embed_prompts, prune_prompt


@dataclass(frozen=True)
class LayerStep:
    """Visual tokens are dropped in front of ``layer`` (the first is 0), down to ``keep`` of them."""

    layer: int
    keep: int


@dataclass(frozen=True)
class LayerChoice:
    """What is left of the visual tokens that reached a step."""

    indices: torch.Tensor  # int64 [keep], ascending, among those that reached it
    hidden: torch.Tensor | None = None  # [keep, D], their states from here on; None where they stay as they are


class LayerPruner(ABC):
    """Chooses visual tokens by what the language model's layers attend to."""

    name: str
    needs: frozenset = frozenset()  # as in ``Pruner``; the language model itself gives all that is needed

    @abstractmethod
    def steps(self, layers: int, total: int, keep: int) -> tuple[LayerStep, ...]:
        """The schedule for a model of ``layers`` layers, ascending; the last step leaves ``keep`` of ``total`` tokens.

        Raises:
            ModelError: the model has too few layers.
        """

    @abstractmethod
    def raters(self, visual: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Which tokens of the text behind the images rate the visual tokens.

        Args:
            visual, text: the embeddings that enter the first layer, [N, D] and [T, D].

        Returns:
            int64 [R], indices into the text, at least one.
        """

    @abstractmethod
    def choose(self, attention: torch.Tensor, hidden: torch.Tensor, keep: int) -> LayerChoice:
        """Choose ``keep`` of the N' visual tokens that reached a step.

        Args:
            attention: float32 [N'], that the raters pay them in the layer before, mean over heads and raters.
            hidden: [N', D], their states.
        """


@dataclass(frozen=True)
class LayerPrefill:
    """Prompts behind a prefill that dropped tokens in the layers."""

    logits: torch.Tensor  # [B, vocabulary], of the last position
    cache: KvCache
    kept: list[torch.Tensor]  # for each prompt the visual tokens that reach the last layer, as indices into its own
    tokens: tuple[int, ...]  # visual tokens by layer


@torch.inference_mode()
def prefill_by_layers(
    language: LanguageModel,
    prompts: Sequence[PrunedPrompt],
    tokens: Sequence[torch.Tensor],
    pruner: LayerPruner,
    keep: int,
    room: int,
) -> LayerPrefill:
    """Run prompts of equal length and equally many visual tokens through the language model.

    Args:
        tokens: the visual tokens [N, D] of each prompt.
        keep: visual tokens that the deepest layers see.
        room: positions that the cache leaves for the answer.

    Raises:
        ModelError: the model has too few layers for the pruner.
        ValueError: the prompts differ in their number of visual tokens, or ``keep`` is out of range.
    """
    total = len(prompts[0].visual)
    if any(len(prompt.visual) != total for prompt in prompts):
        raise ValueError("prompts: differ in their number of visual tokens")
    if not 0 < keep <= total:
        raise ValueError(f"keep: {keep} is not in 1..{total}")
    steps = {step.layer: step for step in pruner.steps(language.layers, total, keep)}
    counts = tokens_by_layer(language.layers, total, steps.values())
    embeddings = embed_prompts(language, prompts, tokens)
    cache = language.cache(len(prompts), embeddings.shape[1] + room, [total - count for count in counts])
    run = _Run(language, prompts, embeddings, cache, pruner.raters)
    for index in range(language.layers):
        if index in steps:
            run.drop(index, steps[index].keep, pruner.choose)
        run.layer(index)
    cache.used = embeddings.shape[1]
    return LayerPrefill(language.logits(run.hidden), cache, run.kept, counts)


def tokens_by_layer(layers: int, total: int, steps: Sequence[LayerStep]) -> tuple[int, ...]:
    """Visual tokens that each layer sees under a schedule."""
    counts = [total] * layers
    for step in sorted(steps, key=lambda step: step.layer):
        counts[step.layer :] = [step.keep] * (layers - step.layer)
    return tuple(counts)


@torch.inference_mode()
def text_attention(language: LanguageModel, prompt: Prompt, tokens: torch.Tensor, layer: int = 1) -> torch.Tensor:
    """Attention that the text behind the images pays to each visual token in a layer of the unpruned model.

    Args:
        tokens: [C, N, D], as the vision backend gives them.
        layer: from 0; of a model with fewer layers the last.

    Returns:
        float32 [C, N], the mean over heads and text tokens.
    """
    layer = min(layer, language.layers - 1)
    pruned = [prune_prompt(prompt, None)]
    embeddings = embed_prompts(language, pruned, [tokens.flatten(0, 1)])
    run = _Run(language, pruned, embeddings, language.cache(1, len(prompt)), _all_text)
    for index in range(layer + 1):
        run.layer(index)
    return run.attention(layer, 0).reshape(tokens.shape[:2])


def _all_text(visual: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(text), device=text.device)


class _Run:
    """A batch on its way through the layers: its states, and where its visual tokens and raters stand."""

    def __init__(
        self,
        language: LanguageModel,
        prompts: Sequence[PrunedPrompt],
        embeddings: torch.Tensor,
        cache: KvCache,
        raters: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ):
        device = embeddings.device
        positions = torch.stack([prompt.position_ids for prompt in prompts], dim=1).to(device)
        self._language, self._cache = language, cache
        self._cos, self._sin = (angle.unsqueeze(2) for angle in language.rotary(positions))
        self._visual = [prompt.visual.to(device) for prompt in prompts]
        self._behind = [_from_end(row, visual, raters) for row, visual in zip(embeddings, self._visual, strict=True)]
        self._before = embeddings  # the input of the layer that was run last
        self.hidden = embeddings
        self.kept = [torch.arange(len(visual)) for visual in self._visual]

    def layer(self, index: int) -> None:
        self._before = self.hidden
        self.hidden = self._language.layer(index, self.hidden, self._cos, self._sin, self._cache, 0)

    def attention(self, index: int, row: int) -> torch.Tensor:
        """float32 [N'] that the raters of one prompt paid its visual tokens in the layer that was run last."""
        length = self._before.shape[1]
        weights = self._language.attention(
            index,
            self._before[row],
            self._cos[row],
            self._sin[row],
            length - self._behind[row],
            self._cache.keys[index][row, :, :length],
        )
        return weights[:, :, self._visual[row]].mean(dim=(0, 1))

    def drop(self, index: int, keep: int, choose: Callable[[torch.Tensor, torch.Tensor, int], LayerChoice]) -> None:
        """Leave ``keep`` visual tokens of each prompt, in front of layer ``index``."""
        stays = []
        for row, visual in enumerate(self._visual):
            choice = choose(self.attention(index - 1, row), self.hidden[row, visual], keep)
            stays.append(self._leave(row, visual, choice))
        self.hidden, self._cos, self._sin = (
            torch.stack([values[row, stay] for row, stay in enumerate(stays)])
            for values in (self.hidden, self._cos, self._sin)
        )

    def _leave(self, row: int, visual: torch.Tensor, choice: LayerChoice) -> torch.Tensor:
        """int64, the places of one prompt's sequence that stay."""
        if choice.hidden is not None:
            self.hidden[row, visual[choice.indices]] = choice.hidden.to(self.hidden.dtype)
        present = torch.ones(self.hidden.shape[1], dtype=torch.bool, device=visual.device)
        present[visual] = False
        present[visual[choice.indices]] = True
        stay = present.nonzero().flatten()
        self._visual[row] = torch.searchsorted(stay, visual[choice.indices])
        self.kept[row] = self.kept[row][choice.indices.cpu()]
        return stay


def _from_end(embeddings: torch.Tensor, visual: torch.Tensor, raters: Callable) -> torch.Tensor:
    """The raters' distances from the sequence's end, which stay when visual tokens in front of them are dropped."""
    text = embeddings[visual[-1] + 1 :]
    if not len(text):
        raise ValueError("prompt: has no text behind its images to rate them")
    return len(text) - raters(embeddings[visual], text)
