"""The language model of any family: transformers' own text model, run on embeddings with a transformers cache.

What is pruned is not in the sequence and what is kept has its own position id, so the cache's index and the position id
of a token differ. Nothing here may depend on their being equal; sliding windows do, and are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from fastdrive_node.errors import ModelError
from fastdrive_node.families.base import PositionInputs
from fastdrive_node.families.config_checks import ConfigFault
from fastdrive_node.families.tokens import VisualTokens
from fastdrive_node.families.vla import Vla


class TransformersCache:
    """A transformers cache as a ``families.base.Cache``."""

    def __init__(self, config: Any):
        self.states = DynamicCache(config=config)

    @property
    def used(self) -> int:
        return int(self.states.get_seq_length())

    @used.setter
    def used(self, count: int) -> None:
        if count < self.used:
            self.states.crop(count - self.used)  # negative: how many are removed


class TransformersLanguage:
    """A ``LanguageModel`` over a VLA's own weights that also embeds text, for inference only.

    Args:
        layer_features: how many ``VisualTokens.layer_features`` the text model adds behind its first layers.
    """

    def __init__(self, vla: Vla, layer_features: int = 0):
        self.model_type = vla.family.model_type
        self._text = vla.model.model.language_model
        self._head = vla.model.lm_head
        self._layer_features = layer_features
        self.layers = len(self._text.layers)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids [...] of a prompt -> embeddings [..., D]."""
        return self._text.embed_tokens(ids)

    def position_inputs(self, position_ids: torch.Tensor) -> PositionInputs:
        """Position ids [P, B, L] -> the same, [B, L, P]."""
        return (position_ids.permute(1, 2, 0),)

    def prefill(
        self,
        ids: torch.Tensor,
        visual_positions: Sequence[torch.Tensor],
        visual: Sequence[VisualTokens],
        positions: PositionInputs,
        max_new_tokens: int,
        last: int = 1,
    ) -> tuple[torch.Tensor, TransformersCache]:
        """See ``LanguageModel``; the cache grows by itself.

        Raises:
            ModelError: the visual tokens lack the features of later layers that this text model reads.
        """
        embeddings = self.embed(ids).clone()
        visual_mask = torch.zeros_like(ids, dtype=torch.bool)
        for row, mask, places, tokens in zip(embeddings, visual_mask, visual_positions, visual, strict=True):
            row[places] = tokens.rows.to(row.dtype)
            mask[places] = True
        cache = TransformersCache(self._text.config)
        return self._run(embeddings, positions, cache, last, **self._features(visual_mask, visual)), cache

    def decode_step(self, ids: torch.Tensor, positions: PositionInputs, cache: TransformersCache) -> torch.Tensor:
        """See ``LanguageModel``."""
        return self._run(self._text.embed_tokens(ids)[:, None], positions, cache)[:, 0]

    def extend(self, ids: torch.Tensor, positions: PositionInputs, cache: TransformersCache) -> torch.Tensor:
        """See ``ExtendingLanguageModel``."""
        return self._run(self._text.embed_tokens(ids), positions, cache, ids.shape[1])

    def _features(self, visual_mask: torch.Tensor, visual: Sequence[VisualTokens]) -> dict[str, Any]:
        """The arguments of a text model that adds visual features behind its first layers (DeepStack)."""
        given = {len(tokens.layer_features) for tokens in visual}
        if given != {self._layer_features}:
            raise ModelError(
                f"visual tokens: {min(given)} features of later layers, but {self.model_type} reads "
                f"{self._layer_features}; take them from the VLA's own vision encoder"
            )
        if not self._layer_features:
            return {}
        features = zip(*(tokens.layer_features for tokens in visual), strict=True)
        return {"visual_pos_masks": visual_mask, "deepstack_visual_embeds": [torch.cat(each) for each in features]}

    def _run(
        self,
        embeddings: torch.Tensor,
        positions: PositionInputs,
        cache: TransformersCache,
        last: int = 1,
        **features: Any,
    ) -> torch.Tensor:
        """Logits [B, last, vocabulary] of the last of the new positions [B, L, D]; fills the cache."""
        (ids,) = positions
        position_ids = ids[..., 0] if ids.shape[-1] == 1 else ids.permute(2, 0, 1)
        out = self._text(
            inputs_embeds=embeddings,
            position_ids=position_ids,
            past_key_values=cache.states,
            use_cache=True,
            **features,
        )
        return self._head(out.last_hidden_state[:, -last:])


def check_text_config(config: Any, known: Sequence[str]) -> None:
    """Raises ConfigFault where a text configuration is of no known model, or has sliding windows."""
    if config.model_type not in known:
        raise ConfigFault(f"text_config.model_type: {config.model_type!r} is not supported; use {', '.join(known)}")
    kinds = getattr(config, "layer_types", None)
    windows = "sliding_attention" in kinds if kinds else getattr(config, "sliding_window", None)
    if windows:
        raise ConfigFault("text_config.sliding_window: not supported, pruning changes what a window covers; use null")
