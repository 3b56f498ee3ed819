"""VLA families: one module each, behind the Protocols of ``base``; found by ``model_type``."""

from __future__ import annotations

from fastdrive_node.families.base import (
    LANGUAGE,
    PARTS,
    VISION,
    EmbeddingLanguageModel,
    LanguageModel,
    LayeredLanguageModel,
    VisionBackend,
    VlaFamily,
)
from fastdrive_node.families.loading import MODEL_TYPES, family_of, load_vla, read_config
from fastdrive_node.families.prompt import build_prompt, full_positions
from fastdrive_node.families.tokens import Prompt, PrunedPrompt, VisualTokens, prune_prompt
from fastdrive_node.families.vla import Vla

__all__ = [
    "LANGUAGE",
    "MODEL_TYPES",
    "PARTS",
    "VISION",
    "EmbeddingLanguageModel",
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
