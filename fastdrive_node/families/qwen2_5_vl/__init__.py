"""Qwen2.5-VL (arXiv 2502.13923), as transformers' ``Qwen2_5_VLForConditionalGeneration``: M-RoPE, windowed tower."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration

from fastdrive_node.families.base import PositionInputs
from fastdrive_node.families.common.loading import load_parts
from fastdrive_node.families.config_checks import check_heads
from fastdrive_node.families.images import require_multiple
from fastdrive_node.families.qwen2_5_vl.cuda_graphs import GraphedLanguage
from fastdrive_node.families.qwen2_5_vl.language import TorchLanguage, folded_angles
from fastdrive_node.families.qwen2_5_vl.preprocess import differences
from fastdrive_node.families.qwen2_5_vl.pruner_layer import Qwen25VlPrunerLayer, layer_config
from fastdrive_node.families.qwen2_5_vl.tower import TorchVision
from fastdrive_node.families.vla import Vla

IMAGE, IMAGE_START, IMAGE_END = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"
_Config = Any  # Qwen2_5_VLConfig, whose annotations allow its parts to be a dict or None


class Qwen25Vl:
    """The ``VlaFamily`` of Qwen2.5-VL; see ``families.base`` for what each member is."""

    model_type: str = "qwen2_5_vl"
    model_class: Any = Qwen2_5_VLForConditionalGeneration
    has_engines = True
    encoder_prefixes: tuple[str, ...] = ("model.visual.", "visual.")
    language_prefixes: tuple[str, ...] = ("model.language_model.", "language_model.", "model.")

    def read_config(self, content: dict) -> _Config:
        config = Qwen2_5_VLConfig.from_dict(content)
        check_heads(config, mrope=True)
        return config

    def load(
        self, path: Path, config: _Config, device: torch.device, dtype: Any, parts: frozenset[str]
    ) -> Qwen2_5_VLForConditionalGeneration:
        encoder = {"visual": self.encoder_prefixes}
        return load_parts(self.model_class, path, config, device, dtype, parts, encoder)

    def pixels_per_token(self, config: _Config) -> int:
        return config.vision_config.patch_size * config.vision_config.spatial_merge_size

    def preprocessor_problems(self, config: _Config, stored: dict, size: tuple[int, int]) -> list[str]:
        return differences(config, stored, size)

    def check_images(self, config: _Config, images: int, size: tuple[int, int]) -> None:
        require_multiple(size, self.pixels_per_token(config))

    def special_tokens(self, config: _Config) -> dict[str, int]:
        return {IMAGE: config.image_token_id, IMAGE_START: config.vision_start_token_id}

    def image_text(self, tokens: int) -> str:
        return f"{IMAGE_START}{IMAGE * tokens}{IMAGE_END}"

    def image_token_id(self, config: _Config) -> int:
        return config.image_token_id

    def visual_positions(self, vla: Vla, input_ids: torch.Tensor) -> torch.Tensor:
        return (input_ids == vla.image_token_id).nonzero().flatten()

    def position_ids(
        self, vla: Vla, input_ids: torch.Tensor, grids: Sequence[tuple[int, int]]
    ) -> tuple[torch.Tensor, int]:
        """M-RoPE ids [3, L] by the model's own ``get_rope_index``, and the maximum + 1."""
        merge = vla.config.vision_config.spatial_merge_size
        kinds = (input_ids == self.image_token_id(vla.config)).to(torch.int32)
        sizes = torch.tensor([[1, rows * merge, columns * merge] for rows, columns in grids])
        ids, delta = vla.model.model.get_rope_index(input_ids[None], kinds[None], image_grid_thw=sizes)
        return ids[:, 0], int(delta) + len(input_ids)

    def vision(self, vla: Vla) -> TorchVision:
        return TorchVision(vla.model.model.visual, vla.spec.image_size, len(vla.spec.cameras))

    def encoder_constants(self, vla: Vla) -> dict[str, Any]:
        return {}

    def language(self, vla: Vla) -> TorchLanguage:
        return GraphedLanguage(vla) if vla.device.type == "cuda" else TorchLanguage(vla)

    def language_position_inputs(self, vla: Vla, position_ids: torch.Tensor) -> PositionInputs:
        return folded_angles(vla.model.model.language_model.rotary_emb, position_ids)

    def language_sizes(self, config: _Config) -> dict[str, int]:
        text = config.text_config
        return {
            "layers": text.num_hidden_layers,
            "heads": text.num_attention_heads,
            "kv_heads": text.num_key_value_heads,
            "head_dim": text.hidden_size // text.num_attention_heads,
            "width": text.hidden_size,
            "vocabulary": text.vocab_size,
        }

    def language_constants(self, config: _Config) -> dict[str, Any]:
        text = config.text_config
        return {
            "rms_norm_eps": text.rms_norm_eps,
            "num_attention_heads": text.num_attention_heads,
            # flat configurations of early 2025 have it at the top only
            "tie_word_embeddings": getattr(text, "tie_word_embeddings", config.tie_word_embeddings),
        }

    def pruner_layer(self, sizes: Any) -> Qwen25VlPrunerLayer:
        return Qwen25VlPrunerLayer(layer_config(sizes))


FAMILY = Qwen25Vl()
