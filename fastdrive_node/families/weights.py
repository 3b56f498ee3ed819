"""The stored weights of a VLA directory by their safetensors headers, and how they differ from ``config.json``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from fastdrive_node.errors import ModelError
from fastdrive_node.families.base import LANGUAGE, VISION, VlaFamily
from fastdrive_node.families.fingerprint import weight_paths
from fastdrive_node.families.vla import CONFIG, first_line, quiet_loading, without_meta_initialisation
from fastdrive_node.validation import read_json

_FLOATS = ("F64", "F32", "F16", "BF16")  # dtypes of safetensors that hold weights as they are
Shape = tuple[int, ...]
Key = tuple[str, str]  # part, name without the model's prefixes

_HIDDEN, _INNER = ("hidden_size",), ("intermediate_size",)
_HEADS, _KV_HEADS = ("num_attention_heads", "head_dim"), ("num_key_value_heads", "num_attention_heads", "head_dim")
_PIXELS = (_HIDDEN, ("in_channels", "num_channels"))
_GRID = ("image_size", "patch_size")
# What decides each dimension of a tensor: fields of its part's configuration. The first pattern that is found counts.
_FIELDS: dict[str, tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]] = {
    LANGUAGE: (
        (r"embed_tokens\.weight$|lm_head\.weight$", (("vocab_size",), _HIDDEN)),
        (r"q_proj\.", (_HEADS, _HIDDEN)),
        (r"[kv]_proj\.", (_KV_HEADS, _HIDDEN)),
        (r"o_proj\.", (_HIDDEN, _HEADS)),
        (r"gate_proj\.|up_proj\.", (_INNER, _HIDDEN)),
        (r"down_proj\.", (_HIDDEN, _INNER)),
        (r"[qk]_norm\.", (("head_dim",),)),
        (r"", (_HIDDEN,)),
    ),
    VISION: (
        (r"patch_embed\.proj\.weight", (*_PIXELS, ("temporal_patch_size",), ("patch_size",), ("patch_size",))),
        (r"patch_embedding\.weight|projection\.weight", (*_PIXELS, ("patch_size",), ("patch_size",))),
        (r"pos_embed\.weight", (("num_position_embeddings",), _HIDDEN)),
        (r"position_embedding\.weight", (_GRID, _HIDDEN)),
        (r"position_embeddings$", ((), _GRID, _HIDDEN)),
        (r"cls_token", ((), (), _HIDDEN)),
        (r"mlp\.(gate_proj|up_proj|fc1|linear_fc1)\.", (_INNER, _HIDDEN)),
        (r"mlp\.(down_proj|fc2|linear_fc2)\.", (_HIDDEN, _INNER)),
        (r"merger\.mlp\.0|merger\.linear_fc1|list\.\d+\.linear_fc1", (("hidden_size", "spatial_merge_size"),) * 2),
        (r"merger\.mlp\.2|linear_fc2", (("out_hidden_size",), ("hidden_size", "spatial_merge_size"))),
        (r"deepstack_merger_list\.\d+\.norm", (("hidden_size", "spatial_merge_size"),)),
        (r"^linear_1\.", (("text_config.hidden_size",), _HIDDEN)),  # of a projector
        (r"^linear_2\.", (("text_config.hidden_size",), ("text_config.hidden_size",))),
        (r"", (_HIDDEN, _HIDDEN)),
    ),
}
_LISTS = (  # part, pattern of an index, field that says how many there are
    (LANGUAGE, r"^layers\.(\d+)\.", ("num_hidden_layers",)),
    (VISION, r"(?:blocks|encoder\.layers?)\.(\d+)\.", ("depth", "num_hidden_layers")),
    (VISION, r"deepstack_merger_list\.(\d+)\.", ("deepstack_visual_indexes",)),
)


@dataclass(frozen=True)
class StoredTensor:
    """What a header says of a tensor."""

    name: str
    file: str
    dtype: str  # as safetensors writes it
    shape: Shape


def weight_files(path: Path) -> list[Path]:
    """The weight files; all are there and readable.

    Raises:
        ModelError: one is missing or unreadable.
    """
    files = weight_paths(path)
    for file in files:
        if not file.is_file():
            raise ModelError(f"{file}: missing; a VLA directory needs it (the weights, as safetensors)")
        try:
            with safe_open(file, framework="pt") as stored:
                stored.keys()
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file}: not a readable safetensors file ({error}); fetch it again") from error
    return files


def stored_tensors(path: Path) -> list[StoredTensor]:
    """The headers of all weight files. Raises as ``weight_files``."""
    found = []
    for file in weight_files(path):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                part = stored.get_slice(name)
                found.append(StoredTensor(name, file.name, part.get_dtype(), tuple(part.get_shape())))
    return found


def stored_parameters(path: Path, family: VlaFamily) -> dict[str, int]:
    """Numbers in the weights of each part: ``vision``, and ``language`` with embeddings and head.

    Raises:
        ModelError: a weight file is missing or unreadable.
    """
    counts = {VISION: 0, LANGUAGE: 0}
    for tensor in stored_tensors(path):
        counts[_key(tensor.name, family)[0]] += math.prod(tensor.shape)
    return counts


def weight_problems(path: Path, family: VlaFamily, config: Any, parts: frozenset[str]) -> list[str]:
    """How the stored weights differ from those of a model that ``config.json`` describes, by headers only.

    Args:
        parts: whose weights are needed; of the language model the embeddings always are.

    Returns:
        A line for each field that is contradicted, and for weights that are missing or hold no floating-point numbers.

    Raises:
        ModelError: a weight file is missing or unreadable, or no model can be built by the configuration.
    """
    stored = {_key(tensor.name, family): tensor for tensor in stored_tensors(path)}
    wanted = _shapes(path, family)
    if any(getattr(each, "tie_word_embeddings", False) for each in (config, config.text_config)):
        wanted.pop((LANGUAGE, "lm_head.weight"), None)
    stored = {key: tensor for key, tensor in stored.items() if _needed(key, parts)}
    wanted = {key: shape for key, shape in wanted.items() if _needed(key, parts)}
    fields = _Fields(path, config)
    problems = list(_counts(stored, wanted, fields))
    missing = sorted(".".join(key) for key in wanted if key not in stored)
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        problems.append(f"{path}: missing keys in the weights: {', '.join(missing[:3])}{more}")
    pairs = [(key, stored[key], shape) for key, shape in wanted.items() if key in stored]
    for _, tensor, _ in pairs:
        if tensor.dtype not in _FLOATS:
            problems.append(
                f"{path / tensor.file}: {tensor.name}: is {tensor.dtype}, but weights are {', '.join(_FLOATS)} here; "
                "use a checkpoint that is not quantised"
            )
            break
    return problems + list(_sizes(path, pairs, fields))


def _key(name: str, family: VlaFamily) -> Key:
    """The part of a tensor, and its name without the prefixes of old and new checkpoints."""
    for part, prefixes in ((VISION, family.encoder_prefixes), (LANGUAGE, family.language_prefixes)):
        prefix = next((each for each in prefixes if name.startswith(each)), None)
        if prefix is not None:
            return part, name.removeprefix(prefix)
    return LANGUAGE, name.removeprefix("model.")


def _needed(key: Key, parts: frozenset[str]) -> bool:
    part, name = key
    return part in parts or (part == LANGUAGE and not name.startswith("layers."))


def _shapes(path: Path, family: VlaFamily) -> dict[Key, Shape]:
    """The tensors of a model of this configuration; none is allocated."""
    try:
        return dict(_shapes_of(family, json.dumps(read_json(path / CONFIG))))
    except Exception as error:  # transformers raises many kinds for a configuration that it cannot build
        raise ModelError(f"{path / CONFIG}: no model can be built of it ({first_line(error)})") from error


@lru_cache(maxsize=16)  # a directory is checked again when it is loaded
def _shapes_of(family: VlaFamily, content: str) -> dict[Key, Shape]:
    with quiet_loading(), without_meta_initialisation(), torch.device("meta"):
        model = family.model_class(family.read_config(json.loads(content)))
    return {_key(name, family): tuple(tensor.shape) for name, tensor in model.state_dict().items()}


class _Fields:
    """The names of a configuration's fields, as they are in the file, and their values."""

    def __init__(self, path: Path, config: Any):
        content = read_json(path / CONFIG)
        self.file = path / CONFIG
        self._parts = {LANGUAGE: config.text_config, VISION: config.vision_config}
        nested = isinstance(content.get("text_config"), dict)
        self._prefixes = {LANGUAGE: "text_config." if nested else "", VISION: "vision_config."}

    def first(self, part: str, names: tuple[str, ...]) -> str:
        """The first of some names that the configuration has."""
        return next(name for name in names if hasattr(self._parts[part], name))

    def of(self, part: str, names: tuple[str, ...]) -> tuple[str, ...]:
        """Full names and values of those that decide a dimension."""
        found = []
        for name in names:
            owner, bare = (LANGUAGE, name.split(".")[1]) if "." in name else (part, name)
            if bare == "head_dim" and getattr(self._parts[owner], bare, None) is None:
                bare = "hidden_size"  # which then makes it
            if hasattr(self._parts[owner], bare):
                found.append(f"{self._prefixes[owner]}{bare} {getattr(self._parts[owner], bare)}")
        return tuple(dict.fromkeys(found))


def _counts(stored: dict[Key, Any], wanted: dict[Key, Any], fields: _Fields) -> Iterator[str]:
    """Numbers of layers that differ; the layers that are too many in one are removed from it."""
    for part, pattern, names in _LISTS:
        indexes = {
            key: int(found[1])
            for key in (*stored, *wanted)
            if key[0] == part and (found := re.search(pattern, key[1])) is not None
        }
        counts = [max((indexes[key] + 1 for key in some if key in indexes), default=0) for some in (stored, wanted)]
        if counts[0] in (0, counts[1]):  # none at all: their keys are missing
            continue
        (text,) = fields.of(part, (fields.first(part, names),))
        yield f"{fields.file}: {text}: there are {counts[0]} in the weights"
        for some in (stored, wanted):
            for key in [key for key in some if indexes.get(key, -1) >= min(counts)]:
                del some[key]


def _sizes(path: Path, pairs: list[tuple[Key, StoredTensor, Shape]], fields: _Fields) -> Iterator[str]:
    """A line for each field, or set of fields, that makes another shape than a tensor has."""
    found: dict[tuple[str, ...], tuple[StoredTensor, Shape]] = {}
    for key, tensor, shape in pairs:
        for names in _decided(key, tensor.shape, shape):
            found.setdefault(fields.of(key[0], names), (tensor, shape))
    certain = {names[0] for names in found if len(names) == 1}
    for names, (tensor, shape) in found.items():
        if len(names) != 1 and certain & set(names):
            continue  # a field that is wrong on its own explains it
        yield (
            f"{fields.file}: {', '.join(names) or 'sizes'}: {tensor.name} in {path / tensor.file} is "
            f"{list(tensor.shape)}, not {list(shape)}"
        )


def _decided(key: Key, found: Shape, wanted: Shape) -> Iterator[tuple[str, ...]]:
    """The fields that decide each dimension in which two shapes of a tensor differ."""
    if len(found) != len(wanted):
        yield ()
        return
    dimensions = next(names for pattern, names in _FIELDS[key[0]] if re.search(pattern, key[1]))
    for index, (one, other) in enumerate(zip(found, wanted, strict=True)):
        if one != other:
            yield dimensions[index] if index < len(dimensions) else ()
