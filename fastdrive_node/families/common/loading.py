"""transformers' model of a VLA directory, of which parts may be left out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from fastdrive_node.errors import ModelError
from fastdrive_node.families.base import LANGUAGE, VISION
from fastdrive_node.families.vla import CONFIG, first_line, quiet_loading, without_meta_initialisation


def load_parts(
    model_class: Any,
    path: Path,
    config: Any,
    device: torch.device,
    dtype: Any,
    parts: frozenset[str],
    encoder: dict[str, tuple[str, ...]],
) -> Any:
    """A model for inference with the weights of ``parts``, of the others only what is small.

    Args:
        model_class: of transformers.
        encoder: the modules of ``model.model`` that make visual tokens, each with the prefixes of its tensors.

    Raises:
        ModelError: weights are missing or do not fit the configuration.
    """
    try:
        with quiet_loading(), without_meta_initialisation():
            model, info = model_class.from_pretrained(
                path,
                config=_config_of_parts(config, parts),
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                attn_implementation="sdpa",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are named below
            )
    except Exception as error:  # transformers raises many kinds for weights that do not fit
        raise ModelError(f"{path}: the weights do not fit {CONFIG} ({first_line(error)})") from error
    unused = () if VISION in parts else tuple(prefix for prefixes in encoder.values() for prefix in prefixes)
    for problem in ("missing_keys", "mismatched_keys"):
        wrong = [name for name in sorted(map(str, info.get(problem) or ())) if not name.startswith(unused)]
        if wrong:
            names = ", ".join(wrong[:3])
            raise ModelError(f"{path}: {problem.replace('_', ' ')} in the weights: {names}; they do not fit {CONFIG}")
    if VISION not in parts:
        for name in encoder:
            setattr(model.model, name, None)
    model.requires_grad_(False)
    return model.to(device).eval()


def _config_of_parts(config: Any, parts: frozenset[str]) -> Any:
    """The configuration with no layers in what is left out: transformers then reads none of their weights."""
    wanted = copy.deepcopy(config)
    if VISION not in parts:
        depth = "depth" if hasattr(wanted.vision_config, "depth") else "num_hidden_layers"
        setattr(wanted.vision_config, depth, 0)
    if LANGUAGE not in parts:
        wanted.text_config.num_hidden_layers = 0
        if getattr(wanted.text_config, "layer_types", None) is not None:
            wanted.text_config.layer_types = []
    return wanted
