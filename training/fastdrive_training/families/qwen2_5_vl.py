"""The untrained model of models/tiny: Qwen2.5-VL's own classes, small."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def build_model(tokenizer: Tokenizer, size: Any) -> Qwen2_5_VLForConditionalGeneration:
    """A model with new weights, drawn from torch's generator; ``size`` is a ``vla.tiny_model.TinySize``."""
    return Qwen2_5_VLForConditionalGeneration(tiny_config(tokenizer, size))


def tiny_config(tokenizer: Tokenizer, size: Any) -> Qwen2_5_VLConfig:
    ids: dict[str, Any] = {token: tokenizer.token_to_id(token) for token in SPECIAL}  # int: all are in it
    pairs = size.width // size.heads // 2
    time = pairs // 4  # as in the full-size model: a quarter for time, the rest halved between rows and columns
    rows = (pairs - time) // 2
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": size.width,
            "intermediate_size": size.intermediate,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.kv_heads,
            "max_position_embeddings": 1024,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [time, rows, pairs - time - rows],
            },
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": size.tower_depth,
            "hidden_size": size.tower_width,
            "intermediate_size": size.tower_intermediate,
            "num_heads": 4,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": list(size.full_attention_blocks),
            "out_hidden_size": size.width,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
