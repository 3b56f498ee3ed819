"""What every runtime of the language half gives, for prefill and greedy decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch


class Cache(Protocol):
    """Keys and values of what was run. They are the backend's own; setting ``used`` back forgets the last positions."""

    used: int  # positions


class LanguageBackend(Protocol):
    """The language half of a VLA. B prompts of equal length L run together, where the backend takes more than one."""

    def rotary(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """M-RoPE ids [3, B, L] -> cos and sin, each [B, L, head dim]; rotate-half's sign is folded into sin."""

    def start(
        self,
        ids: torch.Tensor,
        places: Sequence[torch.Tensor],
        visual: Sequence[torch.Tensor],
        cos: torch.Tensor,
        sin: torch.Tensor,
        room: int,
    ) -> tuple[torch.Tensor, Cache]:
        """Run prompts.

        Args:
            ids: int64 [B, L].
            places: of each prompt, int64 [K]: where its visual tokens stand in place of an id's embedding.
            visual: of each prompt, the visual tokens [K, D].
            cos, sin: [B, L, head dim].
            room: positions that the cache leaves for the answer.

        Returns:
            Logits of the last position, [B, vocabulary], and the cache, filled.
        """

    def step(self, ids: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cache: Cache) -> torch.Tensor:
        """Run one token of each prompt behind those in the cache, which is filled in place.

        Args:
            ids: int64 [B].
            cos, sin: [B, 1, head dim].

        Returns:
            Logits [B, vocabulary].
        """
