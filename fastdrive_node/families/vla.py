"""A VLA directory: Hugging Face files, ``vla.json``, a prompt. Weights from safetensors only, no remote code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from fastdrive_node.errors import ModelError
from fastdrive_node.families.base import PARTS, LayeredLanguageModel, VlaFamily
from fastdrive_node.families.fingerprint import encoder_fingerprint, language_fingerprint
from fastdrive_node.families.spec import SPEC_FILE, VlaSpec, load_spec

CONFIG, WEIGHTS, WEIGHTS_INDEX, TOKENIZER = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
)
_MAX_TEXT_BYTES = 64 * 1024


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
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the visual tokens of one image."""
        height, width = self.spec.image_size
        return height // self.pixels_per_token, width // self.pixels_per_token

    @property
    def tokens(self) -> int:
        """Visual tokens over all cameras."""
        return len(self.spec.cameras) * self.grid[0] * self.grid[1]

    @property
    def image_token_id(self) -> int:
        return self.family.image_token_id(self.config)

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Token ids that end every text of the model."""
        eos = self.model.generation_config.eos_token_id
        return frozenset(set(eos) if isinstance(eos, list | tuple) else {eos}) - {None}

    def encode_text(self, text: str) -> list[int]:
        """Token ids, without special tokens of the tokenizer's own."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def check_text(self, text: str, where: str) -> None:
        """Raises ModelError, naming ``where``, if the tokenizer does not give a text back."""
        ids = self.encode_text(text)
        if self.tokenizer.decode(ids) != text:
            tokens = self.tokenizer.convert_ids_to_tokens(ids)
            bad = next((token for token in tokens if token == self.tokenizer.unk_token), "other text")
            raise ModelError(f"{where}: tokenizer.json does not give this text back (it reads {bad})")

    def torch_vision(self) -> Any:
        """A torch ``VisionBackend`` over the model's own vision tower (no copy)."""
        return self.family.vision(self)

    def torch_language(self) -> LayeredLanguageModel:
        """The torch language model over the model's own weights (no copy). Raises ModelError: not supported."""
        return self.family.language(self)

    @cached_property
    def encoder_fingerprint(self) -> str:
        """SHA-256 of the vision tower's stored tensors."""
        return encoder_fingerprint(self.path, self.family.encoder_prefixes)

    @cached_property
    def language_fingerprint(self) -> str:
        """SHA-256 of the language model's stored tensors and of what a graph of it bakes in beside them."""
        constants = json.dumps(self.family.language_constants(self.config))
        return language_fingerprint(self.path, self.family.language_prefixes, self.family.encoder_prefixes, constants)

    @cached_property
    def position_cache(self) -> dict[bytes, tuple[torch.Tensor, int]]:
        """Position ids by prompt form, filled by ``prompt.full_positions``."""
        return {}


def load_vla(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str = torch.float32,
    parts: frozenset[str] = PARTS,
) -> Vla:
    """Load a VLA directory for inference (``eval`` mode).

    Args:
        dtype: of the weights; ``"auto"`` for the stored one.
        parts: ``base.VISION`` and ``base.LANGUAGE``: whose weights are needed. A part that an engine supplies is left
            out and takes no memory; configuration, tokenizer and embeddings are always there.

    Raises:
        ModelError: a file is missing or unreadable, a field of vla.json is wrong, or the parts do not fit together;
            the text names the file and field.
    """
    from fastdrive_node.families.prompt import check_prompt  # which imports this module

    path = Path(path)
    if not path.is_dir():
        raise ModelError(f"{path}: no such VLA directory")
    spec = load_spec(path)
    template = _read_template(path, spec)
    family, config = read_config(path)
    _check_image_size(path, spec, family.pixels_per_token(config))
    _check_weights(path)
    tokenizer = _read_tokenizer(path, family, config)
    model = family.load(path, config, torch.device(device), dtype, parts)
    vla = Vla(path, family, config, model, tokenizer, spec, template, parts)
    check_prompt(vla)
    return vla


def _require(path: Path, purpose: str) -> Path:
    if not path.is_file():
        raise ModelError(f"{path}: missing; a VLA directory needs it ({purpose})")
    return path


def _read_template(path: Path, spec: VlaSpec) -> str:
    file = _require(path / spec.prompt, f"the prompt template that {SPEC_FILE} names")
    if file.stat().st_size > _MAX_TEXT_BYTES:
        raise ModelError(f"{file}: larger than {_MAX_TEXT_BYTES} bytes; this is no prompt template")
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            return stream.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{file}: not readable as UTF-8 text ({error})") from error


def read_config(path: Path) -> tuple[VlaFamily, Any]:
    """The family and configuration of a VLA directory.

    Raises:
        ModelError: ``config.json`` is missing or unreadable, or of no family that is known.
    """
    from fastdrive_node.families import family_of  # the registry imports the families, which import this module

    file = _require(path / CONFIG, "the model's configuration")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
        family = family_of(content.get("model_type"), file)
        return family, family.read_config(content)
    except ModelError:
        raise
    except Exception as error:  # transformers raises many kinds for a bad configuration
        raise ModelError(f"{file}: not a usable configuration ({first_line(error)})") from error


def _check_image_size(path: Path, spec: VlaSpec, pixels: int) -> None:
    for name, side in zip(("height", "width"), spec.image_size, strict=True):
        if side % pixels:
            raise ModelError(f"{path / SPEC_FILE}: image_size.{name}: {side} is not a multiple of {pixels} px")


def _check_weights(path: Path) -> None:
    """All weight files are there and readable, before transformers allocates anything."""
    index = path / WEIGHTS_INDEX
    files = [path / WEIGHTS]
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelError(f"{index}: not readable as a weight index ({first_line(error)})") from error
        if any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise ModelError(f"{index}: weight_map: names a file outside of the directory")
        files = [path / name for name in sorted(names)]
    for file in files:
        _require(file, "the weights, as safetensors")
        try:
            with safe_open(file, framework="pt") as stored:
                stored.keys()
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file}: not a readable safetensors file ({error}); fetch it again") from error


def _read_tokenizer(path: Path, family: VlaFamily, config: Any) -> PreTrainedTokenizerFast:
    file = _require(path / TOKENIZER, "the tokenizer")
    try:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), clean_up_tokenization_spaces=False)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ModelError(f"{file}: not a usable tokenizer ({first_line(error)})") from error
    vocabulary = family.language_sizes(config)["vocabulary"]
    if len(tokenizer) > vocabulary:
        raise ModelError(f"{file}: {len(tokenizer)} tokens, but {CONFIG} has vocab_size {vocabulary}")
    for token, expected in family.special_tokens(config).items():
        if tokenizer.convert_tokens_to_ids(token) != expected:
            raise ModelError(f"{file}: {token} is not token {expected}, as {CONFIG} says")
    return tokenizer


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """transformers without its progress bar for loading."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def first_line(error: Exception) -> str:
    """An exception in one short line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
