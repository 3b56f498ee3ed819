"""Pruned prefill: positions of the full sequence, of which the kept tokens are gathered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastdrive_node.families.language_backend import Cache, LanguageBackend
from fastdrive_node.families.qwen2_5_vl.language import LanguageModel
from fastdrive_node.families.qwen2_5_vl.prompt import Prompt


@dataclass(frozen=True)
class PrunedPrompt:
    """A prompt without its dropped visual tokens. What is kept stays where it was: positions are not renumbered."""

    places: torch.Tensor  # int64 [L'], ascending indices into the full sequence
    input_ids: torch.Tensor  # int64 [L']
    position_ids: torch.Tensor  # int64 [3, L'], those of the full sequence at ``places``
    visual: torch.Tensor  # int64 [K], where the kept visual tokens stand in the pruned sequence
    next_position: int  # the full sequence's maximum + 1: where the answer starts

    def __len__(self) -> int:
        return len(self.places)

    @property
    def rope_delta(self) -> int:
        """Added to a place in the pruned sequence to get the position of a text token behind the prompt."""
        return self.next_position - len(self.places)


def prune_prompt(prompt: Prompt, kept: torch.Tensor | None) -> PrunedPrompt:
    """Drop the visual tokens that are not in ``kept`` (int64 [K], ascending, over all cameras); None keeps all.

    Raises:
        ValueError: ``kept`` is not ascending, or outside of the prompt's visual tokens.
    """
    if kept is None:
        kept = torch.arange(len(prompt.visual))
    if len(kept) and (bool((kept.diff() <= 0).any()) or int(kept[0]) < 0 or int(kept[-1]) >= len(prompt.visual)):
        raise ValueError(f"kept tokens: expected ascending indices below {len(prompt.visual)}")
    keep = torch.ones(len(prompt), dtype=torch.bool)
    keep[prompt.visual] = False
    keep[prompt.visual[kept]] = True
    places = keep.nonzero().flatten()
    visual = torch.searchsorted(places, prompt.visual[kept])
    return PrunedPrompt(places, prompt.input_ids[places], prompt.position_ids[:, places], visual, prompt.next_position)


def embed_prompts(
    language: LanguageModel, prompts: Sequence[PrunedPrompt], tokens: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Embeddings [B, L', D] of prompts of equal length; ``tokens`` holds the kept visual tokens [K, D] of each."""
    ids, places = _ids_and_places(prompts, tokens[0].device)
    return language.embed_with(ids, places, tokens)


def _ids_and_places(prompts: Sequence[PrunedPrompt], device: torch.device) -> tuple[torch.Tensor, list[torch.Tensor]]:
    ids = torch.stack([prompt.input_ids for prompt in prompts]).to(device)
    return ids, [prompt.visual.to(device) for prompt in prompts]


def prefill(
    language: LanguageBackend, prompts: Sequence[PrunedPrompt], tokens: Sequence[torch.Tensor], room: int
) -> tuple[torch.Tensor, Cache]:
    """Run prompts of equal length through the language model.

    Args:
        tokens: kept visual tokens [K, D] of each prompt.
        room: positions that the cache leaves for the answer.

    Returns:
        Logits of the last position [B, vocabulary], and the filled cache.
    """
    ids, places = _ids_and_places(prompts, tokens[0].device)
    positions = torch.stack([prompt.position_ids for prompt in prompts], dim=1).to(ids.device)
    return language.start(ids, places, tokens, *language.rotary(positions), room)
