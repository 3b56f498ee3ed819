"""Decoder layers of transformers' text models with attention in both directions: the layer of ReconPruner.

What the paper leaves open is set here. In a model with plain positions the query has position 0 and the tokens of an
image follow in raster order from 1 on, as the language model would number them. With M-RoPE see
:func:`query_and_grid_positions`. Scaled rotary embeddings are not used: an image has few tokens.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import asdict
from functools import lru_cache
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from fastdrive_node.validation import STRICT

Size = Annotated[int, Field(ge=1, le=1 << 17)]
_MODELS = {  # text_config.model_type -> package in transformers, prefix of its classes
    "llama": ("llama", "Llama"),
    "mistral": ("mistral", "Mistral"),
    "qwen2": ("qwen2", "Qwen2"),
    "qwen3": ("qwen3", "Qwen3"),
    "qwen3_vl_text": ("qwen3_vl", "Qwen3VLText"),
}
_MROPE = ("qwen3_vl_text",)
TEXT_MODELS = tuple(name for name in _MODELS if name not in _MROPE)  # with plain positions


@dataclass(frozen=True, config=STRICT)
class DecoderLayerSizes:
    """What a pruner file says of its layer."""

    layer: Literal["llama", "mistral", "qwen2", "qwen3", "qwen3_vl_text"]
    hidden_size: Size
    intermediate_size: Size
    num_attention_heads: Size
    num_key_value_heads: Size
    head_dim: Size
    hidden_act: Literal["silu"]
    rms_norm_eps: Annotated[float, Field(gt=0, le=1)]
    rope_theta: Annotated[float, Field(ge=1, le=1e12)]
    attention_bias: bool = False
    mlp_bias: bool = False
    mrope_section: tuple[Size, Size, Size] | None = None


_SIZES = TypeAdapter(DecoderLayerSizes)


def build_pruner_layer(sizes: Any) -> Any:
    """An untrained ``families.base.PrunerLayer`` from a text configuration, or from ``DecoderLayerSizes`` as a mapping.

    Raises:
        ValueError: a size is missing or wrong, or they do not fit each other; the text names it.
    """
    content = sizes if isinstance(sizes, dict) else _sizes_of(sizes)
    try:
        checked = _SIZES.validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"config: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    _check(checked)
    return _layer_class(checked.layer)(checked)


def _sizes_of(text: Any) -> dict[str, Any]:
    """The sizes of a text configuration's layers."""
    rope = text.rope_parameters
    heads = text.num_attention_heads
    section = rope.get("mrope_section")
    return {
        "layer": text.model_type,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_attention_heads": heads,
        "num_key_value_heads": text.num_key_value_heads,
        "head_dim": getattr(text, "head_dim", None) or text.hidden_size // heads,
        "hidden_act": text.hidden_act,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": rope["rope_theta"],
        "attention_bias": bool(getattr(text, "attention_bias", False)),
        "mlp_bias": bool(getattr(text, "mlp_bias", False)),
        "mrope_section": None if section is None else list(section),
    }


def _check(sizes: DecoderLayerSizes) -> None:
    if sizes.num_attention_heads % sizes.num_key_value_heads or sizes.head_dim % 2:
        raise ValueError("config: head_dim, heads and key/value heads do not fit each other")
    if (sizes.mrope_section is None) != (sizes.layer not in _MROPE):
        raise ValueError(f"config: mrope_section: is for layers of {', '.join(_MROPE)}, and no others")
    if sizes.mrope_section is not None and sum(sizes.mrope_section) != sizes.head_dim // 2:
        raise ValueError("config: mrope_section does not fit the head size")


def _class(layer: str, name: str) -> Any:
    package, prefix = _MODELS[layer]
    where = "configuration" if name == "Config" else "modeling"
    return getattr(importlib.import_module(f"transformers.models.{package}.{where}_{package}"), prefix + name)


def _config_of(sizes: DecoderLayerSizes) -> Any:
    """The configuration of one plain decoder layer."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": sizes.rope_theta}
    if sizes.mrope_section is not None:
        rope |= {"mrope_section": list(sizes.mrope_section), "mrope_interleaved": True}
    content = {name: value for name, value in asdict(sizes).items() if name not in ("layer", "rope_theta")}
    content.pop("mrope_section")
    config = _class(sizes.layer, "Config")(**content, num_hidden_layers=1, rope_parameters=rope)
    config._attn_implementation = "sdpa"
    return config


@lru_cache
def _layer_class(layer: str) -> type:
    """transformers' decoder layer of a text model as a pruner layer: the weights keep a decoder layer's names."""
    return type(f"{_MODELS[layer][1]}PrunerLayer", (_Bidirectional, _class(layer, "DecoderLayer")), {})


class _Bidirectional:
    """Put in front of a decoder layer; see ``families.base.PrunerLayer``."""

    def __init__(self, sizes: DecoderLayerSizes):
        config = _config_of(sizes)
        super().__init__(config, layer_idx=0)  # pyright: ignore[reportCallIssue]  # the decoder layer's
        self._sizes, self._config = sizes, config
        self.self_attn: Any = self.self_attn
        self.self_attn.is_causal = False  # read by transformers' attention where no mask is given
        self.rebuild_buffers(None)

    @property
    def width(self) -> int:
        """D, the width of the tokens."""
        return self._sizes.hidden_size

    @property
    def norm_eps(self) -> float:
        return self._sizes.rms_norm_eps

    @property
    def init_range(self) -> float:
        """Standard deviation of new weights."""
        return self._config.initializer_range

    def forward(self, hidden: torch.Tensor, grid: tuple[int, int], query: bool = True) -> torch.Tensor:
        if self._sizes.mrope_section is None:
            positions = torch.arange(hidden.shape[1] + (not query), device=hidden.device)[None]
        else:
            positions = query_and_grid_positions(grid, hidden.device)
        angles = self.rotary(hidden, positions if query else positions[..., 1:])
        layer: Any = super()
        return layer.forward(hidden, position_embeddings=angles)

    def sizes(self) -> dict[str, Any]:
        return json.loads(_SIZES.dump_json(self._sizes))

    def rebuild_buffers(self, device: torch.device | None) -> None:
        """Compute what is not stored in a pruner file; after building on the meta device."""
        rotary = _class(self._sizes.layer, "RotaryEmbedding")(self._config)
        self.rotary = rotary if device is None else rotary.to(device)


def query_and_grid_positions(grid: tuple[int, int], device: torch.device | None = None) -> torch.Tensor:
    """M-RoPE ids int64 [3, 1, 1 + rows * columns]: the query as the text token at the origin, then the token grid.

    As the language model itself would number an image behind one token: (row, column) has ids (1, 1 + row, 1 + column).
    """
    rows, columns = torch.meshgrid(*(torch.arange(side, device=device) for side in grid), indexing="ij")
    ids = torch.stack([torch.ones_like(rows), 1 + rows, 1 + columns]).flatten(1)
    return torch.cat([torch.zeros_like(ids[:, :1]), ids], dim=1)[:, None]
