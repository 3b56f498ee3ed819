"""The language half run lean: transformers' own modules and weights over a preallocated key/value cache.

At a driving VLA's sizes the time of a decode step on a CPU is mostly Python: this loop calls the same layers with the
same mathematics as ``Qwen2_5_VLTextModel.forward``, without its mask, cache and hook machinery.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from fastdrive_node.planning.model import Vla
from fastdrive_node.types import ModelError


class KvCache:
    """Keys and values of every layer, preallocated for ``length`` positions; ``used`` of them are filled."""

    def __init__(self, config, batch: int, length: int, dtype: torch.dtype, device: torch.device):
        head_dim = config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, length, head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.used = 0


class LanguageModel:
    """Prefill and single-token steps of a VLA's language half, for inference only.

    Raises:
        ModelError: the configuration has sliding-window layers or another activation than SiLU.
    """

    def __init__(self, vla: Vla):
        self.config = vla.model.config.text_config
        if "sliding_attention" in self.config.layer_types or self.config.hidden_act != "silu":
            raise ModelError(
                f"{vla.path / 'config.json'}: text_config: sliding windows and activations other than "
                "silu are not supported"
            )
        self._text = vla.model.model.language_model
        self._head = vla.model.lm_head
        self._head_dim = self.config.hidden_size // self.config.num_attention_heads

    def cache(self, batch: int, length: int) -> KvCache:
        weight = self._head.weight
        return KvCache(self.config, batch, length, weight.dtype, weight.device)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids [...] -> embeddings [..., D]."""
        return self._text.embed_tokens(ids)

    def rotary(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """M-RoPE ids [3, B, L] -> cos and sin, each [B, L, head dim]; rotate-half's sign is folded into sin."""
        cos, sin = self._text.rotary_emb(self._head.weight, position_ids)
        half = self._head_dim // 2
        return cos, torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)

    def forward(self, embeddings: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cache: KvCache) -> torch.Tensor:
        """Run new positions behind those in the cache.

        Args:
            embeddings: [B, L, D]; L > 1 only on an empty cache (prefill), else 1 (a decode step).
            cos, sin: [B, L, head dim] of the new positions.
            cache: filled in place.

        Returns:
            Logits of the last position only, [B, vocabulary].
        """
        start, stop = cache.used, cache.used + embeddings.shape[1]
        hidden, cos, sin = embeddings, cos.unsqueeze(2), sin.unsqueeze(2)
        for index, layer in enumerate(self._text.layers):
            keys, values = cache.keys[index], cache.values[index]
            hidden = hidden + self._attend(
                layer.self_attn, _norm(layer.input_layernorm, hidden), cos, sin, keys, values, start, stop
            )
            if index == len(self._text.layers) - 1:
                hidden = hidden[:, -1:]  # the others only mattered as keys and values
            mlp, normed = layer.mlp, _norm(layer.post_attention_layernorm, hidden)
            hidden = hidden + _linear(
                mlp.down_proj, silu(_linear(mlp.gate_proj, normed)) * _linear(mlp.up_proj, normed)
            )
        cache.used = stop
        return _linear(self._head, _norm(self._text.norm, hidden[:, -1]))

    def _attend(self, attention, hidden, cos, sin, keys, values, start, stop):
        batch, length, width = hidden.shape
        shape = (batch, length, -1, self._head_dim)
        query = _rotate(_linear(attention.q_proj, hidden).view(shape), cos, sin)
        keys[:, :, start:stop] = _rotate(_linear(attention.k_proj, hidden).view(shape), cos, sin).transpose(1, 2)
        values[:, :, start:stop] = _linear(attention.v_proj, hidden).view(shape).transpose(1, 2)
        mixed = scaled_dot_product_attention(
            query.transpose(1, 2),
            keys[:, :, :stop],
            values[:, :, :stop],
            is_causal=length > 1,
            scale=attention.scaling,
            enable_gqa=True,
        )
        return _linear(attention.o_proj, mixed.transpose(1, 2).reshape(batch, length, width))


def _linear(module: nn.Module, values: torch.Tensor) -> torch.Tensor:
    return linear(values, module.weight, module.bias)


def _norm(module: nn.Module, values: torch.Tensor) -> torch.Tensor:
    if values.dtype != torch.float32:
        return module(values)  # its rounding between normalisation and weight is part of the model
    return rms_norm(values, values.shape[-1:], module.weight, module.variance_epsilon)


def _rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = states.shape[-1] // 2
    return states * cos + torch.cat([states[..., half:], states[..., :half]], dim=-1) * sin
