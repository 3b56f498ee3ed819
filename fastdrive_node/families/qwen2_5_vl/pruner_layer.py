"""A Qwen2.5-VL decoder layer whose attention is bidirectional: the layer of ReconPruner and of its training decoder.

What the paper leaves open is set here: positions are M-RoPE over the token grid as the language model itself would
number it, the query as the text token at the origin and the image after it, so that token (row, column) has ids
(1, 1 + row, 1 + column).
"""

from __future__ import annotations

import copy
import json
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLDecoderLayer, Qwen2_5_VLRotaryEmbedding

from fastdrive_node.families.common.pruner_layer import query_and_grid_positions
from fastdrive_node.validation import STRICT

Size = Annotated[int, Field(ge=1, le=1 << 17)]


@dataclass(frozen=True, config=STRICT)
class LayerSizes:
    """What a pruner file says of its layer."""

    hidden_size: Size
    intermediate_size: Size
    num_attention_heads: Size
    num_key_value_heads: Size
    hidden_act: Literal["silu"]
    rms_norm_eps: Annotated[float, Field(gt=0, le=1)]
    rope_theta: Annotated[float, Field(ge=1, le=1e12)]
    mrope_section: tuple[Size, Size, Size]


_SIZES = TypeAdapter(LayerSizes)


def layer_config(sizes: Qwen2_5_VLTextConfig | dict[str, Any]) -> Qwen2_5_VLTextConfig:
    """The configuration of one plain decoder layer, from a language model's or from ``LayerSizes`` as a mapping.

    Raises:
        ValueError: a size is missing or wrong, or they do not fit each other; the text names it.
    """
    config = _config_of(sizes) if isinstance(sizes, dict) else copy.deepcopy(sizes)
    config.num_hidden_layers = 1
    config.layer_types = ["full_attention"]
    config.use_sliding_window, config.sliding_window = False, None
    config.attention_dropout = 0.0
    config._attn_implementation = "sdpa"
    return config


def _config_of(content: dict[str, Any]) -> Qwen2_5_VLTextConfig:
    try:
        sizes = _SIZES.validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"config: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    heads, groups = sizes.num_attention_heads, sizes.num_key_value_heads
    if sizes.hidden_size % (2 * heads) or heads % groups:
        raise ValueError("config: hidden_size, heads and key/value heads do not fit each other")
    if sum(sizes.mrope_section) != sizes.hidden_size // heads // 2:
        raise ValueError("config: mrope_section does not fit the head size")
    rope = {"rope_type": "default", "rope_theta": sizes.rope_theta, "mrope_section": list(sizes.mrope_section)}
    return Qwen2_5_VLTextConfig(
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        hidden_act=sizes.hidden_act,
        rms_norm_eps=sizes.rms_norm_eps,
        rope_parameters=rope,
    )


class Qwen25VlPrunerLayer(Qwen2_5_VLDecoderLayer):
    """See ``families.base.PrunerLayer``. Its weights have the names of a language model's layer, to start as one.

    Args:
        config: from :func:`layer_config`.
    """

    def __init__(self, config: Qwen2_5_VLTextConfig):
        super().__init__(config, layer_idx=0)
        self.config = config
        self.self_attn.is_causal = False  # bidirectional: read by transformers' attention where no mask is given
        self.rotary = Qwen2_5_VLRotaryEmbedding(config)  # pyright: ignore[reportArgumentType]  # it reads a text config

    @property
    def width(self) -> int:
        """D, the width of the tokens."""
        return self.config.hidden_size

    @property
    def norm_eps(self) -> float:
        return self.config.rms_norm_eps

    @property
    def init_range(self) -> float:
        """Standard deviation of new weights."""
        return self.config.initializer_range

    def forward(self, hidden: torch.Tensor, grid: tuple[int, int], query: bool = True) -> torch.Tensor:
        positions = query_and_grid_positions(grid, hidden.device)
        angles = self.rotary(hidden, positions if query else positions[..., 1:])
        return super().forward(hidden, position_embeddings=angles)

    def sizes(self) -> dict[str, Any]:
        config, rope = self.config, cast(dict[str, Any], self.config.rope_parameters)
        names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "hidden_act")
        return {
            **{name: getattr(config, name) for name in names},
            "rms_norm_eps": config.rms_norm_eps,
            "rope_theta": rope["rope_theta"],
            "mrope_section": list(rope["mrope_section"]),
        }

    def rebuild_buffers(self, device: torch.device) -> None:
        """Compute what is not stored in a pruner file; after building on the meta device."""
        self.rotary = Qwen2_5_VLRotaryEmbedding(self.config).to(device)  # pyright: ignore[reportArgumentType]  # as above
