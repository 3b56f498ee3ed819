"""A VLA directory: Hugging Face files, ``vla.json``, a prompt. Weights from safetensors only, no remote code."""

from __future__ import annotations

import importlib
import itertools
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from fastdrive_node.devices import free_memory
from fastdrive_node.errors import ModelError
from fastdrive_node.families.base import PARTS, VlaFamily
from fastdrive_node.families.common.cpu_linear import use_float32_products
from fastdrive_node.families.config_checks import ConfigFault, check_content
from fastdrive_node.families.prompt import check_prompt
from fastdrive_node.families.spec import SPEC_FILE, VlaSpec, image_markers, load_spec, required_file
from fastdrive_node.families.vla import CONFIG, Vla, first_line
from fastdrive_node.families.weights import stored_parameters, weight_files, weight_problems
from fastdrive_node.validation import read_json

TOKENIZER = "tokenizer.json"
log = logging.getLogger(__name__)
_TOLD_BYTES = 1_000_000_000  # weights that are worth a line before they are read
_TOLD_PROBLEMS = 3
_MAX_TEXT_BYTES = 64 * 1024
MODEL_TYPES = (
    "qwen2_5_vl",
    "qwen3_vl",
    "llava",
    "llava_onevision",
    "internvl",
)  # each names a module here, which has an object FAMILY


def family_of(model_type: object, where: str | Path = "config.json") -> VlaFamily:
    """The family of a ``model_type``.

    Raises:
        ModelError: no such family; the text names ``where`` and those that there are.
    """
    if model_type not in MODEL_TYPES:
        raise ModelError(
            f"{where}: model_type: {str(model_type)[:40]!r} is not supported; use {', '.join(MODEL_TYPES)}"
        )
    return importlib.import_module(f"fastdrive_node.families.{model_type}").FAMILY


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
    read = read_vla(path)
    path, spec, family, config = read.path, read.spec, read.family, read.config
    problems = weight_problems(path, family, config, parts)
    if problems:
        raise ModelError("; ".join(problems[:_TOLD_PROBLEMS]) + f"; the weights do not fit {CONFIG}")
    _check_memory(path, family, torch.device(device), dtype, parts)
    for problem in preprocessor_problems(path, family, config, spec):
        log.warning("%s", problem)
    tokenizer = _read_tokenizer(path, family, config)
    model = family.load(path, config, torch.device(device), dtype, parts)
    use_float32_products(model)
    vla = replace(read, model=model, tokenizer=tokenizer, parts=parts)
    _check_eos(vla)
    check_prompt(vla)
    return vla


def read_vla(path: str | Path) -> Vla:
    """A VLA directory without weights and tokenizer, which are None: for its sizes, cameras and fingerprints.

    Raises:
        ModelError: a file is missing or unreadable, or a field of vla.json is wrong.
    """
    path, absent = Path(path), cast(Any, None)
    spec = load_spec(path)
    template = _read_template(path, spec)
    family, config = read_config(path)
    _check_sizes(path, family, config, spec)
    return Vla(path, family, config, absent, absent, spec, template, frozenset())


def _check_sizes(path: Path, family: VlaFamily, config: Any, spec: VlaSpec) -> None:
    """Raises ModelError where the family cannot read the number of images, or the image size of a camera."""
    images, others = len(image_markers(spec)), {f"image_sizes.{name}": size for name, size in spec.image_sizes.items()}
    for field, size in {"image_size": spec.image_size, **others}.items():
        try:
            family.check_images(config, images, size)
        except ValueError as error:
            text = re.sub(r"^image_size\b", field, str(error))
            raise ModelError(f"{path / SPEC_FILE}: {text}") from error


def _check_eos(vla: Vla) -> None:
    """Every answer must be able to end: raises ModelError where the ids that end a text are missing or none."""
    given, vocabulary = vla.model.generation_config.eos_token_id, vla.family.language_sizes(vla.config)["vocabulary"]
    ids = given if isinstance(given, list | tuple) else [given]
    if not ids or any(type(each) is not int or not 0 <= each < vocabulary for each in ids):
        raise ModelError(
            f"{vla.path / 'generation_config.json'}: eos_token_id: {str(given)[:60]!r}: give the ids of tokens that "
            f"end a text, below {vocabulary}"
        )


def read_language_layer(vla: Vla, index: int) -> dict[str, torch.Tensor]:
    """The stored weights of one decoder layer by their names in it; the language model need not be loaded.

    Raises:
        ModelError: the files hold no such layer.
    """
    prefixes = tuple(f"{prefix}layers.{index}." for prefix in vla.family.language_prefixes)
    weights = {}
    for file in weight_files(vla.path):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
                if prefix is not None and not name.startswith(vla.family.encoder_prefixes):
                    weights[name.removeprefix(prefix)] = stored.get_tensor(name)
    if not weights:
        raise ModelError(f"{vla.path}: layer {index} of the language model is not in the weights")
    return weights


def _check_memory(path: Path, family: VlaFamily, device: torch.device, dtype: Any, parts: frozenset[str]) -> None:
    """Tell what the weights take before they are read; refuse what does not fit."""
    counts = stored_parameters(path, family)
    size = dtype.itemsize if isinstance(dtype, torch.dtype) else 4
    needed, free = sum(counts[part] for part in parts) * size, free_memory(device)
    text = f"{path}: {needed / 1e9:.2f} GB of weights as {str(dtype).removeprefix('torch.')} on {device.type}"
    if needed > free:
        raise ModelError(
            f"{text}, but {free / 1e9:.2f} GB are free; free memory, use bfloat16 (--dtype, or the parameter dtype), "
            "or engines for some parts"
        )
    level = logging.WARNING if needed >= _TOLD_BYTES else logging.INFO  # warnings are shown without a logging set-up
    log.log(level, "%s; %.2f GB are free", text, free / 1e9)


def preprocessor_problems(path: Path, family: VlaFamily, config: Any, spec: VlaSpec) -> list[str]:
    """How ``preprocessor_config.json``, where it is there, differs from what is done here; a line for each difference.

    Images are always resized to the sizes of ``vla.json``; the file's own rule for the size is only compared.
    """
    file = path / "preprocessor_config.json"
    if not file.is_file():
        return []
    try:
        stored = read_json(file)
        found = [family.preprocessor_problems(config, stored, size) for size in dict.fromkeys(spec.sizes)]
        return [f"{file}: {problem}" for problem in dict.fromkeys(itertools.chain(*found))]
    except (OSError, ValueError, TypeError) as error:
        return [f"{file}: not readable ({first_line(error)})"]


def _read_template(path: Path, spec: VlaSpec) -> str:
    file = required_file(path, spec.prompt)
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
    file = required_file(path, CONFIG)
    try:
        content = read_json(file)
        family = family_of(content.get("model_type"), file)
        check_content(content)
        return family, family.read_config(content)
    except ModelError:
        raise
    except ConfigFault as error:
        raise ModelError(f"{file}: {error}") from error
    except Exception as error:  # transformers raises many kinds for a bad configuration
        raise ModelError(
            f"{file}: not a usable configuration ({first_line(error)}); take that of the checkpoint"
        ) from error


def _read_tokenizer(path: Path, family: VlaFamily, config: Any) -> PreTrainedTokenizerFast:
    file = required_file(path, TOKENIZER)
    try:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), clean_up_tokenization_spaces=False)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ModelError(f"{file}: not a usable tokenizer ({first_line(error)})") from error
    tokenizer.backend_tokenizer.no_truncation()  # a checkpoint's file may ask for both, which would change prompts
    tokenizer.backend_tokenizer.no_padding()
    vocabulary = family.language_sizes(config)["vocabulary"]
    if len(tokenizer) > vocabulary:
        raise ModelError(f"{file}: {len(tokenizer)} tokens, but {CONFIG} has vocab_size {vocabulary}")
    for token, expected in family.special_tokens(config).items():
        if tokenizer.convert_tokens_to_ids(token) != expected:
            raise ModelError(f"{file}: {token} is not token {expected}, as {CONFIG} says")
    return tokenizer
