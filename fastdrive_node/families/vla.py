"""A VLA in memory: the model with its tokenizer, spec and prompt template."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from fastdrive_node.errors import ModelError
from fastdrive_node.families.base import PARTS, EmbeddingLanguageModel, VlaFamily
from fastdrive_node.families.fingerprint import encoder_fingerprint, language_fingerprint
from fastdrive_node.families.spec import VlaSpec, image_markers

CONFIG = "config.json"


@dataclass(frozen=True)
class Vla:
    """A loaded VLA: the model with its tokenizer, spec and prompt template."""

    path: Path
    family: VlaFamily
    config: Any  # of config.json
    model: Any  # transformers' model; what an engine supplies is not in it
    tokenizer: PreTrainedTokenizerFast
    spec: VlaSpec
    template: str  # of the prompt file
    parts: frozenset[str] = PARTS  # whose weights are loaded

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @cached_property
    def width(self) -> int:
        """D, the width of a visual token."""
        return self.family.language_sizes(self.config)["width"]

    @cached_property
    def pixels_per_token(self) -> int:
        """Side of the square of image pixels that one visual token stands for."""
        return self.family.pixels_per_token(self.config)

    @cached_property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of the visual tokens of an image of each camera."""
        return self.grids_of(self.spec.cameras)

    def grids_of(self, cameras: Sequence[str]) -> tuple[tuple[int, int], ...]:
        """As ``grids``, of any cameras; one that is none of the VLA's has the spec's ``image_size``."""
        side = self.pixels_per_token
        return tuple((height // side, width // side) for height, width in self.spec.sizes_of(cameras))

    def of_size(self, size: tuple[int, int]) -> Vla:
        """The same VLA with one image size, (height, width) in px, for all cameras."""
        return replace(self, spec=replace(self.spec, image_size=size, image_sizes={}))

    @cached_property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the visual tokens of one image, where all cameras have one image size.

        Raises:
            ModelError: they have several; see ``grids``.
        """
        self.require_one_size("this")
        return self.grids[0]

    @cached_property
    def images(self) -> tuple[tuple[int, int], ...]:
        """The images in the prompt's order: (camera's index, steps of ``spec.frames`` before t0)."""
        markers = image_markers(self.spec)
        named = [markers[name] for name in re.findall(r"\{(image:[^{}]*)\}", self.template) if name in markers]
        return tuple(named or markers.values())

    @property
    def covered_size(self) -> tuple[int, int]:
        """Height and width in px of the part of an image that has tokens: all but a remainder right and below."""
        return self.grid[0] * self.pixels_per_token, self.grid[1] * self.pixels_per_token

    @property
    def tokens(self) -> int:
        """Visual tokens over all images."""
        return sum(rows * columns for rows, columns in self.image_grids())

    @property
    def set_tokens(self) -> int:
        """Visual tokens of one image of each camera."""
        return sum(rows * columns for rows, columns in self.grids)

    def image_grids(self, present: Sequence[int] | None = None) -> tuple[tuple[int, int], ...]:
        """Token rows and columns of each image of the prompt; ``present``: which of ``images`` are there."""
        there = range(len(self.images)) if present is None else present
        return tuple(self.grids[self.images[place][0]] for place in there)

    def require_one_size(self, task: str) -> None:
        """Raises ModelError where cameras have different image sizes, which ``task`` cannot work with."""
        if self.spec.image_sizes:
            raise ModelError(f"{self.path / 'vla.json'}: image_sizes: {task} needs one image size for all cameras")

    def require_one_frame(self, task: str) -> None:
        """Raises ModelError where the VLA reads past images, which ``task`` does not give it."""
        if self.spec.frames is not None:
            raise ModelError(f"{self.path / 'vla.json'}: frames: {task} gives a VLA the images of t0 only")

    @property
    def image_token_id(self) -> int:
        return self.family.image_token_id(self.config)

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Token ids that end every text of the model."""
        eos = self.model.generation_config.eos_token_id
        return frozenset(set(eos) if isinstance(eos, list | tuple) else {eos}) - {None}

    def short_prompt(self, text: str) -> str:
        """A prompt's text with one ``<image>`` in place of all placeholders of each image."""
        for tokens in sorted({rows * columns for rows, columns in self.grids}, reverse=True):
            text = text.replace(self.family.image_text(tokens), "<image>")
        return text

    def encode_text(self, text: str) -> list[int]:
        """Token ids, without special tokens of the tokenizer's own."""
        # Not by transformers' ``encode``, which takes four times as long for a short text.
        return self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids

    def check_text(self, text: str, where: str) -> None:
        """Raises ModelError, naming ``where``, if the tokenizer does not give a text back.

        Spaces behind added tokens do not count: Llama's tokenizer writes one there of its own.
        """
        ids = self.encode_text(text)
        if self._without_gaps(str(self.tokenizer.decode(ids))) != self._without_gaps(text):
            tokens = self.tokenizer.convert_ids_to_tokens(ids)
            bad = next((token for token in tokens if token == self.tokenizer.unk_token), "other text")
            raise ModelError(f"{where}: tokenizer.json does not give this text back (it reads {bad})")

    def _without_gaps(self, text: str) -> str:
        added = "|".join(map(re.escape, self.tokenizer.get_added_vocab()))
        return re.sub(f"({added}) +", r"\1", text) if added else text

    def torch_vision(self) -> Any:
        """A ``VisionBackend`` over the model's vision tower (no copy), for one image size a ``TorchVisionBackend``."""
        from fastdrive_node.families.common.vision import MixedVision  # it builds on this module

        return MixedVision(self) if self.spec.image_sizes else self.family.vision(self)

    def torch_language(self) -> EmbeddingLanguageModel:
        """The torch language model over the model's own weights (no copy). Raises ModelError: not supported."""
        return self.family.language(self)

    @cached_property
    def encoder_fingerprint(self) -> str:
        """SHA-256 of the stored tensors that make visual tokens, and of what the tokens depend on beside them."""
        constants = self.family.encoder_constants(self)
        return encoder_fingerprint(self.path, self.family.encoder_prefixes, json.dumps(constants) if constants else "")

    @cached_property
    def language_fingerprint(self) -> str:
        """SHA-256 of the language model's stored tensors and of what a graph of it bakes in beside them."""
        constants = json.dumps(self.family.language_constants(self.config))
        return language_fingerprint(self.path, self.family.language_prefixes, self.family.encoder_prefixes, constants)

    @cached_property
    def position_cache(self) -> dict[tuple, tuple[torch.Tensor, int]]:
        """Position ids by prompt form, filled by ``prompt.full_positions``."""
        return {}


@contextmanager
def quiet_loading() -> Iterator[None]:
    """transformers without progress bar, and without its report on weights, which families check themselves."""
    shown, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shown:
            transformers_logging.enable_progress_bar()


@contextmanager
def without_meta_initialisation() -> Iterator[None]:
    """Modules made on the meta device are not initialised, which takes torch long and writes nothing."""
    functions = {name: getattr(torch.nn.init, name) for name in ("kaiming_uniform_", "normal_", "uniform_")}

    def only_real(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda tensor, *args, **options: tensor if tensor.is_meta else function(tensor, *args, **options)

    for name, function in functions.items():
        setattr(torch.nn.init, name, only_real(function))
    try:
        yield
    finally:
        for name, function in functions.items():
            setattr(torch.nn.init, name, function)


def first_line(error: Exception) -> str:
    """An exception in one short line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
