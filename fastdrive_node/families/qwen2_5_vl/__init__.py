"""Qwen2.5-VL (arXiv 2502.13923), as transformers' ``Qwen2_5_VLForConditionalGeneration``: M-RoPE, windowed tower."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from fastdrive_node.errors import ModelError
from fastdrive_node.families.base import LANGUAGE, VISION, PositionInputs
from fastdrive_node.families.qwen2_5_vl.language import TorchLanguage, fold_rotation_sign
from fastdrive_node.families.qwen2_5_vl.preprocess import differences
from fastdrive_node.families.qwen2_5_vl.pruner_layer import Qwen25VlPrunerLayer, layer_config
from fastdrive_node.families.qwen2_5_vl.tower import TorchVision
from fastdrive_node.families.vla import CONFIG, Vla, first_line, quiet_loading

IMAGE, IMAGE_START, IMAGE_END = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"
_Config = Any  # Qwen2_5_VLConfig, whose annotations allow its parts to be a dict or None


class Qwen25Vl:
    """The ``VlaFamily`` of Qwen2.5-VL; see ``families.base`` for what each member is."""

    model_type = "qwen2_5_vl"
    encoder_prefixes: tuple[str, ...] = ("model.visual.", "visual.")
    language_prefixes: tuple[str, ...] = ("model.language_model.", "language_model.", "model.")

    def read_config(self, content: dict) -> _Config:
        return Qwen2_5_VLConfig.from_dict(content)

    def load(
        self, path: Path, config: _Config, device: torch.device, dtype: Any, parts: frozenset[str]
    ) -> Qwen2_5_VLForConditionalGeneration:
        try:
            with quiet_loading():
                model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
                    path,
                    config=_config_of_parts(config, parts),
                    dtype=dtype,
                    use_safetensors=True,
                    local_files_only=True,
                    attn_implementation="sdpa",
                    output_loading_info=True,
                )
        except Exception as error:  # transformers raises many kinds for weights that do not fit
            raise ModelError(f"{path}: the weights do not fit {CONFIG} ({first_line(error)})") from error
        for problem in ("missing_keys", "mismatched_keys"):
            wrong = sorted(map(str, info.get(problem) or ()))
            if VISION not in parts:
                wrong = [name for name in wrong if not name.startswith(self.encoder_prefixes)]
            if wrong:
                names = ", ".join(wrong[:3])
                raise ModelError(
                    f"{path}: {problem.replace('_', ' ')} in the weights: {names}; they do not fit {CONFIG}"
                )
        if VISION not in parts:
            model.model.visual = None
        model.requires_grad_(False)
        return model.to(device).eval()

    def pixels_per_token(self, config: _Config) -> int:
        return config.vision_config.patch_size * config.vision_config.spatial_merge_size

    def preprocessor_problems(self, config: _Config, stored: dict, size: tuple[int, int]) -> list[str]:
        return differences(config, stored, size)

    def special_tokens(self, config: _Config) -> dict[str, int]:
        return {IMAGE: config.image_token_id, IMAGE_START: config.vision_start_token_id}

    def image_text(self, tokens: int) -> str:
        return f"{IMAGE_START}{IMAGE * tokens}{IMAGE_END}"

    def image_token_id(self, config: _Config) -> int:
        return config.image_token_id

    def position_ids(self, vla: Vla, input_ids: torch.Tensor) -> tuple[torch.Tensor, int]:
        """M-RoPE ids [3, L] by the model's own ``get_rope_index``, and the maximum + 1."""
        merge = vla.config.vision_config.spatial_merge_size
        kinds = (input_ids == self.image_token_id(vla.config)).to(torch.int32)
        grids = torch.tensor([[1, vla.grid[0] * merge, vla.grid[1] * merge]] * len(vla.spec.cameras))
        ids, delta = vla.model.model.get_rope_index(input_ids[None], kinds[None], image_grid_thw=grids)
        return ids[:, 0], int(delta) + len(input_ids)

    def vision(self, vla: Vla) -> TorchVision:
        return TorchVision(vla.model.model.visual, vla.spec.image_size, len(vla.spec.cameras))

    def language(self, vla: Vla) -> TorchLanguage:
        return TorchLanguage(vla)

    def language_position_inputs(self, vla: Vla, position_ids: torch.Tensor) -> PositionInputs:
        rotary = vla.model.model.language_model.rotary_emb
        return fold_rotation_sign(*rotary(torch.empty(0, device=position_ids.device), position_ids))

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


def _config_of_parts(config: _Config, parts: frozenset[str]) -> _Config:
    """The configuration with no layers in what is left out: transformers then reads none of their weights."""
    wanted = copy.deepcopy(config)
    if VISION not in parts:
        wanted.vision_config.depth = 0
    if LANGUAGE not in parts:
        wanted.text_config.num_hidden_layers = 0
        wanted.text_config.layer_types = []
    return wanted


FAMILY = Qwen25Vl()
