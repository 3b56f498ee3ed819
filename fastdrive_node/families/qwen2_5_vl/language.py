"""The language model run lean: transformers' own modules and weights over a preallocated key/value cache.

At a driving VLA's sizes the time of a decode step on a CPU is mostly Python: this loop calls the same layers with the
same mathematics as ``Qwen2_5_VLTextModel.forward``, without its mask, cache and hook machinery.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm

from fastdrive_node.errors import ModelError
from fastdrive_node.families.base import PositionInputs
from fastdrive_node.families.qwen2_5_vl.kv_cache import KvCache, KvMemory
from fastdrive_node.families.tokens import VisualTokens

if TYPE_CHECKING:
    from fastdrive_node.families.vla import Vla

# Of an MLP's inner width, run at once on a CPU, where they stay in the cache; 3 to 4 % of the prefill of a 3B.
_INNER = 1376


class TorchLanguage:
    """A ``LayeredLanguageModel`` over a VLA's own weights, for inference only. One prompt may begin behind a head.

    Raises:
        ModelError: the configuration has sliding-window layers or another activation than SiLU.
    """

    takes_head: ClassVar[bool] = True

    def __init__(self, vla: Vla):
        self.config = vla.config.text_config
        if "sliding_attention" in self.config.layer_types or self.config.hidden_act != "silu":
            raise ModelError(
                f"{vla.path / 'config.json'}: text_config: sliding windows and activations other than "
                "silu are not supported"
            )
        self._text = vla.model.model.language_model
        self._head = vla.model.lm_head
        self.layers = len(self._text.layers)
        self._head_dim = self.config.hidden_size // self.config.num_attention_heads
        self._memory = KvMemory(self.config)

    def cache(self, batch: int, length: int, missing: Sequence[int] | None = None) -> KvCache:
        """See ``LayeredLanguageModel``. Its keys and values may be used as long as the cache itself is held."""
        return self._memory.cache(batch, length, self._head.weight, missing)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids [...] -> embeddings [..., D]."""
        return self._text.embed_tokens(ids)

    def position_inputs(self, position_ids: torch.Tensor) -> PositionInputs:
        """M-RoPE ids [3, B, L] -> cos and sin, each [B, L, head dim]; rotate-half's sign is folded into sin."""
        return fold_rotation_sign(*self._text.rotary_emb(self._head.weight, position_ids))

    def embed_prompts(
        self, ids: torch.Tensor, visual_positions: Sequence[torch.Tensor], visual: Sequence[VisualTokens]
    ) -> torch.Tensor:
        """See ``LayeredLanguageModel``."""
        embeddings = self.embed(ids)
        for row, positions, tokens in zip(embeddings, visual_positions, visual, strict=True):
            row[positions] = tokens.rows.to(row.dtype)
        return embeddings

    def prefill(
        self,
        ids: torch.Tensor,
        visual_positions: Sequence[torch.Tensor],
        visual: Sequence[VisualTokens],
        positions: PositionInputs,
        max_new_tokens: int,
        last: int = 1,
        head: KvCache | None = None,
    ) -> tuple[torch.Tensor, KvCache]:
        """See ``HeadedLanguageModel``."""
        known = 0 if head is None else head.used
        cache = self.cache(len(ids), known + ids.shape[1] + max_new_tokens)
        if head is not None:
            cache.copy_from(head, known)
            cache.used = known
        return self.forward(self.embed_prompts(ids, visual_positions, visual), positions, cache, last), cache

    def decode_step(self, ids: torch.Tensor, positions: PositionInputs, cache: KvCache) -> torch.Tensor:
        """See ``LanguageModel``."""
        return self.forward(self.embed(ids)[:, None], positions, cache)[:, 0]

    def extend(self, ids: torch.Tensor, positions: PositionInputs, cache: KvCache) -> torch.Tensor:
        """See ``ExtendingLanguageModel``."""
        return self.forward(self.embed(ids), positions, cache, ids.shape[1])

    def forward(
        self, embeddings: torch.Tensor, positions: PositionInputs, cache: KvCache, last: int | torch.Tensor = 1
    ) -> torch.Tensor:
        """Run new positions after those in the cache.

        Args:
            embeddings: [B, L, D].
            positions: of the new ones.
            cache: filled in place.
            last: how many new positions' logits are given, those of the last; or their indices, int64 [last].

        Returns:
            Logits [B, last, vocabulary].
        """
        hidden = embeddings
        for index in range(self.layers):
            hidden = self.layer(index, hidden, positions, cache, cache.used - cache.missing[index], last)
        cache.used += embeddings.shape[1]
        return _linear(self._head, _norm(self._text.norm, hidden))

    def layer(
        self,
        index: int,
        hidden: torch.Tensor,
        positions: PositionInputs,
        cache: KvCache,
        start: int,
        last: int | torch.Tensor = 1,
    ) -> torch.Tensor:
        """One layer on new positions; fills its part of the cache, and leaves ``cache.used`` to the caller.

        Args:
            hidden: [B, L, D], the layer's input.
            positions: of the L positions.
            start: positions that the layer's cache holds already.
            last: positions that the last layer gives; see ``forward``.

        Returns:
            [B, L, D]; of the last layer [B, last, D].
        """
        layer = self._text.layers[index]
        hidden = hidden + self._attend(
            layer.self_attn,
            _norm(layer.input_layernorm, hidden),
            positions,
            cache.keys[index],
            cache.values[index],
            start,
            start + hidden.shape[1],
        )
        if index == self.layers - 1:
            # the others only mattered as keys and values
            hidden = hidden[:, -last:] if isinstance(last, int) else hidden[:, last]
        return hidden + _mlp(layer, hidden)

    def run_static(
        self,
        ids: torch.Tensor,
        positions: PositionInputs,
        cache: KvCache,
        places: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """Run new positions of one prompt with shapes and addresses that do not depend on what is in the cache.

        Args:
            ids: int64 [1, L].
            places: int64 [L], where their keys and values go in the cache.
            mask: bool [L, C], which of the cache's positions each sees.

        Returns:
            Logits [1, L, vocabulary].
        """
        hidden, bias = self.embed(ids), None
        if len(places) > 1:  # a single position has too few rows for it (docs/latency.md)
            group = self.config.num_attention_heads // cache.keys[0].shape[1]
            bias = torch.zeros_like(mask, dtype=hidden.dtype).masked_fill_(~mask, -torch.inf).repeat(group, 1)
        for layer, keys, values in zip(self._text.layers, cache.keys, cache.values, strict=True):
            normed = _norm(layer.input_layernorm, hidden)
            query, key, value = self._heads(layer.self_attn, normed, positions)
            keys.index_copy_(2, places, key)
            values.index_copy_(2, places, value)
            if bias is None:
                hidden = hidden + self._mix(layer.self_attn, query, keys, values, mask, False)
            else:
                hidden = hidden + self._mix_grouped(layer.self_attn, query, keys, values, bias)
            hidden = hidden + _mlp(layer, hidden)
        return _linear(self._head, _norm(self._text.norm, hidden))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Output of the last layer [B, L, D] -> logits of the last position [B, vocabulary]."""
        return _linear(self._head, _norm(self._text.norm, hidden[:, -1]))

    def attention(
        self, index: int, hidden: torch.Tensor, positions: PositionInputs, rows: torch.Tensor, keys: torch.Tensor
    ) -> torch.Tensor:
        """See ``LayeredLanguageModel``."""
        cos, sin = (angle.unsqueeze(1) for angle in positions)  # [L, 1, head dim]
        layer = self._text.layers[index]
        normed = _norm(layer.input_layernorm, hidden[rows])
        query = _linear(layer.self_attn.q_proj, normed).view(len(rows), -1, self._head_dim)
        query = _rotate(query, cos[rows], sin[rows]).unflatten(1, (len(keys), -1))  # [R, kv heads, group, head dim]
        scores = torch.einsum("rkgd,kld->kgrl", query, keys).flatten(0, 1).float() * layer.self_attn.scaling
        later = torch.arange(keys.shape[1], device=rows.device) > rows[:, None]
        return scores.masked_fill(later, -torch.inf).softmax(dim=-1)

    def _attend(self, attention, hidden, positions, keys, values, start, stop):
        length = hidden.shape[1]
        query, keys[:, :, start:stop], values[:, :, start:stop] = self._heads(attention, hidden, positions)
        mask = _behind(length, stop, query.device) if length > 1 and start else None
        return self._mix(attention, query, keys[:, :, :stop], values[:, :, :stop], mask, length > 1 and not start)

    def _heads(self, attention, hidden, positions) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query, key and value [B, heads, L, head dim], rotated."""
        cos, sin = (angle.unsqueeze(2) for angle in positions)
        shape = (*hidden.shape[:2], -1, self._head_dim)
        query, key, value = (
            _linear(part, hidden).view(shape) for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def _mix_grouped(self, attention, query, keys, values, bias) -> torch.Tensor:
        """The heads of a group as rows of one head: of a GPU's kernels, those that take a mask take no groups."""
        kv_heads = keys.shape[1]
        group = query.shape[1] // kv_heads
        rows = query.unflatten(1, (kv_heads, group)).flatten(2, 3)
        mixed = scaled_dot_product_attention(rows, keys, values, attn_mask=bias, scale=attention.scaling)
        mixed = mixed.unflatten(2, (group, -1)).flatten(1, 2)
        return _linear(attention.o_proj, mixed.transpose(1, 2).flatten(2))

    def _mix(self, attention, query, keys, values, mask, causal) -> torch.Tensor:
        mixed = scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, is_causal=causal, scale=attention.scaling, enable_gqa=True
        )
        return _linear(attention.o_proj, mixed.transpose(1, 2).flatten(2))


def _mlp(layer, hidden: torch.Tensor) -> torch.Tensor:
    mlp, normed = layer.mlp, _norm(layer.post_attention_layernorm, hidden)
    width = mlp.gate_proj.out_features
    if normed.device.type != "cpu" or width < 2 * _INNER or type(mlp.gate_proj) is not nn.Linear:
        gate, up = _linear(mlp.gate_proj, normed), _linear(mlp.up_proj, normed)
        return _linear(mlp.down_proj, silu(gate, inplace=True).mul_(up))
    inner = normed.new_empty(*normed.shape[:-1], width)
    for start in range(0, width, _INNER):
        gate, up = (_columns(part, normed, start) for part in (mlp.gate_proj, mlp.up_proj))
        inner[..., start : start + _INNER] = silu(gate, inplace=True).mul_(up)
    return _linear(mlp.down_proj, inner)


def _columns(module: nn.Linear, values: torch.Tensor, start: int) -> torch.Tensor:
    """``_INNER`` of a linear layer's outputs, or those that are left."""
    part = slice(start, start + _INNER)
    return linear(values, module.weight[part], None if module.bias is None else module.bias[part])


@lru_cache(maxsize=64)  # those of the forwards of a few plans, which come again
def _behind(length: int, stop: int, device: torch.device) -> torch.Tensor:
    """bool [length, stop]: what the last ``length`` of ``stop`` positions see."""
    return torch.ones(length, stop, dtype=torch.bool, device=device).tril(stop - length)


def _linear(module: nn.Linear, values: torch.Tensor) -> torch.Tensor:
    if type(module) is not nn.Linear:
        return module(values)
    return linear(values, module.weight, module.bias)


def _norm(module: Qwen2_5_VLRMSNorm, values: torch.Tensor) -> torch.Tensor:
    if values.dtype != torch.float32:
        return module(values)  # its rounding between normalisation and weight is part of the model
    return rms_norm(values, values.shape[-1:], module.weight, module.variance_epsilon)


def _rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = states.shape[-1] // 2
    return states * cos + torch.cat([states[..., half:], states[..., :half]], dim=-1) * sin


def fold_rotation_sign(cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [..., head dim] for a rotation without negation: the sign of rotate-half goes into sin."""
    half = sin.shape[-1] // 2
    return cos, torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)


def folded_angles(rotary: Any, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What ``fold_rotation_sign`` makes of a rotary module's angles, to the last bit and in less time.

    Args:
        rotary: transformers' ``Qwen2_5_VLRotaryEmbedding``.
        position_ids: int64 [3, B, L].

    Returns:
        cos and sin, float32 [B, L, head dim].
    """
    if rotary.rope_type != "default":  # its frequencies may depend on the length
        return fold_rotation_sign(*rotary(torch.empty(0, device=position_ids.device), position_ids))
    axes = torch.tensor(_axes(tuple(rotary.mrope_section)), device=position_ids.device)
    angles = position_ids.float().index_select(0, axes).movedim(0, -1) * rotary.inv_freq.to(position_ids.device).float()
    cos, sin = angles.cos() * rotary.attention_scaling, angles.sin() * rotary.attention_scaling
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


@lru_cache(maxsize=8)
def _axes(sections: tuple[int, ...]) -> tuple[int, ...]:
    """Of each frequency, the row of the position ids that it turns with."""
    return tuple(part % 3 for part, count in enumerate(sections) for _ in range(count))
