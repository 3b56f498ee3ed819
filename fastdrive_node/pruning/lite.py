"""The layer of a lite pruner: a family's decoder layer, narrower than the tokens that it scores.

Heads keep their size, so that positions are rotated as in the full layer; there are fewer of them. The feed-forward
half shrinks in the same ratio as the width.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from fastdrive_node.families.base import VlaFamily


def narrow_sizes(family: VlaFamily, text_config: Any, width: int) -> dict[str, Any]:
    """Sizes of a layer of ``width``, from a VLA's text configuration; ``ReconPruner`` takes them with ``token_width``.

    Raises:
        ValueError: ``width`` is no multiple of the head size, or not below the width of the tokens.
    """
    with torch.device("meta"):
        sizes = family.pruner_layer(text_config).sizes()
    whole, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    head = sizes.get("head_dim") or whole // heads
    if not 0 < width < whole or width % head:
        raise ValueError(f"{width} is not a multiple of the head size {head} below the width of the tokens, {whole}")
    number = width // head
    return {
        **sizes,
        "hidden_size": width,
        "intermediate_size": -(-sizes["intermediate_size"] * width // whole),
        "num_attention_heads": number,
        "num_key_value_heads": math.gcd(number, sizes["num_key_value_heads"]),
    }
