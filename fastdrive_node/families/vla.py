"""A VLA in memory: the model with its tokenizer, spec and prompt template."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from fastdrive_node.engines.fingerprint import encoder_fingerprint, language_fingerprint
from fastdrive_node.families.spec import VlaSpec


@dataclass(frozen=True)
class Vla:
    """A loaded VLA.

    ``grid`` is (rows, columns) of the visual tokens of one image; there are ``tokens`` of them over all cameras.
    """

    path: Path
    model: Qwen2_5_VLForConditionalGeneration
    tokenizer: PreTrainedTokenizerFast
    spec: VlaSpec
    template: str  # of prompt.txt

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def width(self) -> int:
        """D, the width of a visual token."""
        return self.model.config.text_config.hidden_size

    @cached_property
    def grid(self) -> tuple[int, int]:
        vision = self.model.config.vision_config
        cell = vision.patch_size * vision.spatial_merge_size
        return self.spec.image_size[0] // cell, self.spec.image_size[1] // cell

    @property
    def tokens(self) -> int:
        return len(self.spec.cameras) * self.grid[0] * self.grid[1]

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end an answer: the model's EOS, and the closing tag where it is one token."""
        eos = self.model.generation_config.eos_token_id
        ids = set(eos) if isinstance(eos, list | tuple) else {eos}
        closing = self.tokenizer.encode(self.spec.answer.closing, add_special_tokens=False)
        if len(closing) == 1:
            ids.add(closing[0])
        return frozenset(ids - {None})

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """The EOS ids that are no part of the answer's text."""
        closing = self.tokenizer.encode(self.spec.answer.closing, add_special_tokens=False)
        return self.stop_ids - (frozenset(closing) if len(closing) == 1 else frozenset())

    @cached_property
    def encoder_fingerprint(self) -> str:
        """SHA-256 of the vision tower's stored tensors."""
        return encoder_fingerprint(self.path)

    @cached_property
    def language_fingerprint(self) -> str:
        """SHA-256 of the language half's stored tensors and of what a graph of it bakes in beside them."""
        config = self.model.config.text_config
        facts = {name: getattr(config, name) for name in ("rms_norm_eps", "num_attention_heads", "tie_word_embeddings")}
        return language_fingerprint(self.path, json.dumps(facts))

    @cached_property
    def position_cache(self) -> dict[bytes, tuple[torch.Tensor, int]]:
        """Position ids by prompt form, filled by ``prompt.full_positions``."""
        return {}
