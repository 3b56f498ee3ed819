"""A VLA directory: Hugging Face files, ``vla.json``, a prompt. Weights from safetensors only, no remote code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.utils import logging as transformers_logging

from fastdrive_node.errors import ModelError
from fastdrive_node.families.qwen2_5_vl.prompt import check_prompt
from fastdrive_node.families.spec import SPEC_FILE, VlaSpec, load_spec
from fastdrive_node.families.vla import Vla

CONFIG, WEIGHTS, WEIGHTS_INDEX, TOKENIZER = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
)
_MAX_TEXT_BYTES = 64 * 1024

__all__ = ["Vla", "load_vla"]


def load_vla(path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Vla:
    """Load a VLA directory for inference (``eval`` mode).

    Raises:
        ModelError: a file is missing or unreadable, a field of vla.json is wrong, or the parts do not fit together;
            the text names the file and field.
    """
    path = Path(path)
    if not path.is_dir():
        raise ModelError(f"{path}: no such VLA directory")
    spec = load_spec(path)
    template = _read_template(path, spec)
    config = _read_config(path)
    _check_image_size(path, spec, config)
    _check_weights(path)
    tokenizer = _read_tokenizer(path, config)
    model = _read_model(path, device, dtype)
    vla = Vla(path, model, tokenizer, spec, template)
    check_prompt(vla)
    return vla


def _require(path: Path, purpose: str) -> Path:
    if not path.is_file():
        raise ModelError(f"{path}: missing; a VLA directory needs it ({purpose})")
    return path


def _read_template(path: Path, spec: VlaSpec) -> str:
    file = _require(path / spec.prompt_file, f"the prompt template that {SPEC_FILE} names")
    if file.stat().st_size > _MAX_TEXT_BYTES:
        raise ModelError(f"{file}: larger than {_MAX_TEXT_BYTES} bytes; this is no prompt template")
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            return stream.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{file}: not readable as UTF-8 text ({error})") from error


def _read_config(path: Path) -> Qwen2_5_VLConfig:
    file = _require(path / CONFIG, "the model's configuration")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or data.get("model_type") != "qwen2_5_vl":
            raise ModelError(f"{file}: model_type: only 'qwen2_5_vl' is supported")
        return Qwen2_5_VLConfig.from_dict(data)
    except ModelError:
        raise
    except Exception as error:  # transformers raises many kinds for a bad configuration
        raise ModelError(f"{file}: not a usable configuration ({_first_line(error)})") from error


def _check_image_size(path: Path, spec: VlaSpec, config: Qwen2_5_VLConfig) -> None:
    cell = config.vision_config.patch_size * config.vision_config.spatial_merge_size
    for name, side in zip(("height", "width"), spec.image_size, strict=True):
        if side % cell:
            raise ModelError(f"{path / SPEC_FILE}: image_size.{name}: {side} is not a multiple of {cell} px")


def _check_weights(path: Path) -> None:
    """All weight files are there and readable, before transformers allocates anything."""
    index = path / WEIGHTS_INDEX
    files = [path / WEIGHTS]
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelError(f"{index}: not readable as a weight index ({_first_line(error)})") from error
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


def _read_tokenizer(path: Path, config: Qwen2_5_VLConfig) -> PreTrainedTokenizerFast:
    file = _require(path / TOKENIZER, "the tokenizer")
    try:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), clean_up_tokenization_spaces=False)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ModelError(f"{file}: not a usable tokenizer ({_first_line(error)})") from error
    if len(tokenizer) > config.text_config.vocab_size:
        raise ModelError(
            f"{file}: {len(tokenizer)} tokens, but {CONFIG} has vocab_size {config.text_config.vocab_size}"
        )
    special = {"<|image_pad|>": config.image_token_id, "<|vision_start|>": config.vision_start_token_id}
    for token, expected in special.items():
        if tokenizer.convert_tokens_to_ids(token) != expected:
            raise ModelError(f"{file}: {token} is not token {expected}, as {CONFIG} says")
    return tokenizer


def _read_model(path: Path, device: str | torch.device, dtype: torch.dtype) -> Qwen2_5_VLForConditionalGeneration:
    try:
        with _no_progress_bar():
            model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                path,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                attn_implementation="sdpa",
                output_loading_info=True,
            )
    except Exception as error:  # transformers raises many kinds for weights that do not fit
        raise ModelError(f"{path}: the weights do not fit {CONFIG} ({_first_line(error)})") from error
    for problem in ("missing_keys", "mismatched_keys"):
        if info.get(problem):
            names = ", ".join(sorted(map(str, info[problem]))[:3])
            raise ModelError(f"{path}: {problem.replace('_', ' ')} in the weights: {names}; they do not fit {CONFIG}")
    model.requires_grad_(False)
    return model.to(device).eval()


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
