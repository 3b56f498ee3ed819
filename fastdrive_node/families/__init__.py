"""VLA families by ``model_type``: one folder each, behind the Protocols of ``base``."""

from __future__ import annotations

import importlib
from pathlib import Path

from fastdrive_node.errors import ModelError
from fastdrive_node.families.base import (
    LANGUAGE,
    PARTS,
    VISION,
    LanguageModel,
    LayeredLanguageModel,
    Prompt,
    PrunedPrompt,
    VisionBackend,
    VisualTokens,
    VlaFamily,
    prune_prompt,
)
from fastdrive_node.families.prompt import build_prompt, full_positions
from fastdrive_node.families.vla import Vla, load_vla, read_config

__all__ = [
    "LANGUAGE",
    "PARTS",
    "VISION",
    "LanguageModel",
    "LayeredLanguageModel",
    "Prompt",
    "PrunedPrompt",
    "VisionBackend",
    "VisualTokens",
    "Vla",
    "VlaFamily",
    "build_prompt",
    "family_of",
    "full_positions",
    "load_vla",
    "prune_prompt",
    "read_config",
]

_MODULES = {"qwen2_5_vl": "fastdrive_node.families.qwen2_5_vl"}  # each has an object FAMILY


def family_of(model_type: object, where: str | Path = "config.json") -> VlaFamily:
    """The family of a ``model_type``.

    Raises:
        ModelError: no such family; the text names ``where`` and those that there are.
    """
    if not isinstance(model_type, str) or model_type not in _MODULES:
        raise ModelError(f"{where}: model_type: {str(model_type)[:40]!r} is not supported; use {', '.join(_MODULES)}")
    return importlib.import_module(_MODULES[model_type]).FAMILY
