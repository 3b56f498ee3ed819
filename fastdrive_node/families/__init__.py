"""VLA families: one module each, behind the Protocols of ``base``; found by ``model_type``.

The names are loaded when they are first read: most of their modules import torch, and the node's process, which reads
``spec`` only, does without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastdrive_node.families.base import (
        LANGUAGE,
        PARTS,
        VISION,
        CameraGroup,
        EmbeddingLanguageModel,
        ExtendingLanguageModel,
        HeadedLanguageModel,
        LanguageModel,
        LayeredLanguageModel,
        SeparableVision,
        VisionBackend,
        VlaFamily,
    )
    from fastdrive_node.families.loading import MODEL_TYPES, family_of, load_vla, read_config, read_vla
    from fastdrive_node.families.prompt import build_prompt, constant_head, full_positions
    from fastdrive_node.families.tokens import Prompt, PrunedPrompt, VisualTokens, prune_prompt
    from fastdrive_node.families.vla import Vla

__all__ = [
    "LANGUAGE",
    "MODEL_TYPES",
    "PARTS",
    "VISION",
    "CameraGroup",
    "EmbeddingLanguageModel",
    "ExtendingLanguageModel",
    "HeadedLanguageModel",
    "LanguageModel",
    "LayeredLanguageModel",
    "Prompt",
    "PrunedPrompt",
    "SeparableVision",
    "VisionBackend",
    "VisualTokens",
    "Vla",
    "VlaFamily",
    "build_prompt",
    "constant_head",
    "family_of",
    "full_positions",
    "load_vla",
    "prune_prompt",
    "read_config",
    "read_vla",
]
_BASE = ("LANGUAGE", "PARTS", "VISION", "EmbeddingLanguageModel", "ExtendingLanguageModel", "LanguageModel")
_MODULES = {
    **dict.fromkeys((*_BASE, "HeadedLanguageModel", "LayeredLanguageModel", "VlaFamily"), "base"),
    **dict.fromkeys(("CameraGroup", "SeparableVision", "VisionBackend"), "base"),
    **dict.fromkeys(("MODEL_TYPES", "family_of", "load_vla", "read_config", "read_vla"), "loading"),
    **dict.fromkeys(("build_prompt", "constant_head", "full_positions"), "prompt"),
    **dict.fromkeys(("Prompt", "PrunedPrompt", "VisualTokens", "prune_prompt"), "tokens"),
    "Vla": "vla",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
