"""Checks of ``config.json`` before transformers reads it: each fault names its field and what may stand there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

_PARTS = ("text_config", "vision_config")
_WIDTH, _LAYERS, _HEADS = 1 << 17, 1000, 1024
_WHOLE = {  # the largest value of each field; the least is 1
    "vocab_size": 1 << 24,
    "hidden_size": _WIDTH,
    "out_hidden_size": _WIDTH,
    "intermediate_size": 1 << 20,
    "num_hidden_layers": _LAYERS,
    "depth": _LAYERS,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": _HEADS,
    "num_heads": _HEADS,
    "head_dim": _HEADS,
    "spatial_merge_size": 16,
    "temporal_patch_size": 16,
    "window_size": 1 << 14,
    "num_position_embeddings": 1 << 20,
    "max_position_embeddings": 1 << 30,
}
_NULLABLE = ("head_dim", "num_key_value_heads")  # then made of other fields
_SQUARES = ("image_size", "patch_size")  # a side, or two of them
_REAL = {"rms_norm_eps": (1e-12, 1.0), "layer_norm_eps": (1e-12, 1.0), "rope_theta": (1.0, 1e12)}
_ACTIVATIONS = ("hidden_act", "projector_hidden_act")
_INDEXES = ("fullatt_block_indexes", "deepstack_visual_indexes")
_ROPES = ("rope_parameters", "rope_scaling")  # new and old name
_DTYPES = ("dtype", "torch_dtype")


class ConfigFault(ValueError):
    """A field of ``config.json`` cannot be used; the text starts with it."""


def check_content(content: dict[str, Any]) -> None:
    """Look at every field of a ``config.json`` that has a known form, whether it is flat or nested.

    Raises:
        ConfigFault: one is wrong; the text starts with the field and says what may stand there.
    """
    for part in _PARTS:
        if part in content and not isinstance(content[part], dict):
            raise ConfigFault(f"{part}: {_shown(content[part])}: give an object with the sizes of this part")
    for where, fields in (("", content), *((f"{part}.", content.get(part, {})) for part in _PARTS)):
        for name, value in fields.items():
            if where == "vision_config." and name in _ROPES:
                continue  # towers have forms of their own
            wanted = next(iter(_faults(name, value)), None)
            if wanted is not None:
                raise ConfigFault(f"{where}{wanted[0]}: {_shown(wanted[1])}: give {wanted[2]}")
        kinds, layers = fields.get("layer_types"), fields.get("num_hidden_layers")
        if kinds is not None and layers is not None and (not isinstance(kinds, list) or len(kinds) != layers):
            raise ConfigFault(f"{where}layer_types: give a list with one kind for each of the {layers} layers, or null")


def _faults(name: str, value: Any) -> Iterator[tuple[str, Any, str]]:
    """Field, value and what may stand there, for each fault of a field."""
    if name in _WHOLE:
        if not (value is None and name in _NULLABLE) and not _whole(value, 1, _WHOLE[name]):
            yield name, value, f"a whole number from 1 to {_WHOLE[name]}"
    elif name in _SQUARES:
        sides = value if isinstance(value, list) and len(value) == 2 else [value]
        if not all(_whole(side, 1, 1 << 14) for side in sides):
            yield name, value, f"a side in px, from 1 to {1 << 14}"
    elif name in _REAL:
        least, most = _REAL[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            yield name, value, f"a number from {least:g} to {most:g}"
    elif name in _ACTIVATIONS:
        if not isinstance(value, str) or value not in ACT2FN:
            yield name, value, f"an activation of transformers, such as {_near(value)}"
    elif name in _INDEXES:
        if not isinstance(value, list) or not all(_whole(index, 0, _LAYERS) for index in value):
            yield name, value, "a list of the indexes of blocks, from 0 on"
    elif name in _DTYPES:
        if value is not None and not isinstance(getattr(torch, str(value).removeprefix("torch."), None), torch.dtype):
            yield name, value, "a dtype of torch, such as bfloat16"
    elif name in _ROPES and value is not None:
        yield from _rope_faults(name, value)


def _rope_faults(name: str, value: Any) -> Iterator[tuple[str, Any, str]]:
    if not isinstance(value, dict):
        yield name, value, "an object, such as {'rope_type': 'default', 'rope_theta': 10000.0}"
        return
    known = ("default", "mrope", *ROPE_INIT_FUNCTIONS)
    for key in ("type", "rope_type"):
        if key in value and value[key] not in known:
            yield f"{name}.{key}", value[key], f"one of {', '.join(known)}"
    if "rope_theta" in value:
        for field, theta, wanted in _faults("rope_theta", value["rope_theta"]):
            yield f"{name}.{field}", theta, wanted
    section = value.get("mrope_section")
    wrong = not isinstance(section, list) or len(section) != 3 or not all(_whole(each, 1, _HEADS) for each in section)
    if section is not None and wrong:
        yield f"{name}.mrope_section", section, "three whole numbers, of time, height and width"


def check_heads(config: Any, mrope: bool) -> None:
    """Compare fields of a parsed configuration, which must fit each other.

    Args:
        mrope: whether the family's language model has M-RoPE.

    Raises:
        ConfigFault: they do not fit; the text names the fields.
    """
    text, tower = config.text_config, config.vision_config
    heads, kv_heads = text.num_attention_heads, text.num_key_value_heads or text.num_attention_heads
    if heads % kv_heads:
        raise ConfigFault(f"num_key_value_heads: {kv_heads}: give a divisor of num_attention_heads ({heads})")
    head_dim = getattr(text, "head_dim", None)
    if head_dim is None and text.hidden_size % heads:
        raise ConfigFault(f"num_attention_heads: {heads}: give a divisor of hidden_size ({text.hidden_size})")
    head_dim = head_dim or text.hidden_size // heads
    if head_dim % 2:
        raise ConfigFault(f"num_attention_heads: {heads}: makes heads of {head_dim} numbers; the number must be even")
    if mrope:
        section = (text.rope_parameters or {}).get("mrope_section")
        if section is None or sum(section) != head_dim // 2:
            raise ConfigFault(
                f"rope_scaling.mrope_section: {section}: give three numbers whose sum is {head_dim // 2}, half of the "
                f"size of a head (hidden_size {text.hidden_size}, num_attention_heads {heads})"
            )
    name = "num_heads" if hasattr(tower, "num_heads") else "num_attention_heads"
    if tower.hidden_size % getattr(tower, name):
        raise ConfigFault(
            f"vision_config.{name}: {getattr(tower, name)}: give a divisor of vision_config.hidden_size "
            f"({tower.hidden_size})"
        )


def _whole(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _shown(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return " ".join(repr(value).split())[:60]


def _near(value: Any) -> str:
    """Some activations, first those whose names begin as the given one."""
    known = sorted(ACT2FN, key=lambda name: (not name.startswith(str(value)[:2]), name not in ("silu", "gelu"), name))
    return ", ".join(known[:3])
