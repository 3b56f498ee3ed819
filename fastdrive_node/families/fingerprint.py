"""Identities: a pruner serves exactly the encoder that it was trained on, an engine holds exactly one pruner."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from fastdrive_node.errors import ModelError
from fastdrive_node.files import GEOMETRY_FILE, VIEW_WEIGHTS_FILE
from fastdrive_node.validation import read_json

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
_HEAD = "lm_head."  # of the language model, named so in every checkpoint
Files = tuple[tuple[str, int, int], ...]  # name, time of change and size: what a cached fingerprint belongs to
Prefixes = tuple[str, ...]
_SAMPLED, _BLOCK = 64 << 20, 1 << 16  # bytes that ``directory_fingerprint`` reads of all weights, and at a time


def tensors_fingerprint(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 over (name, dtype, shape, bytes) of tensors in name order; names without the model's prefix."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        _add(digest, name, tensor)
    return digest.hexdigest()


def _add(digest, name: str, tensor: torch.Tensor) -> None:
    dtype = str(tensor.dtype).removeprefix("torch.")
    digest.update(f"{name}|{dtype}|{tuple(tensor.shape)}|".encode())
    digest.update(tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes())


def encoder_fingerprint(vla_dir: str | Path, prefixes: Prefixes, constants: str = "") -> str:
    """Fingerprint of the vision encoder in a VLA directory, as stored, whatever dtype it is loaded in.

    Args:
        prefixes: of the tensors of tower and projector; names enter the fingerprint without them.
        constants: what visual tokens depend on beside the tensors.

    Raises:
        ModelError: no readable safetensors file, or none that holds a vision tower.
    """
    stored = _stored_fingerprint(str(vla_dir), _weight_files(vla_dir), prefixes, (), "a vision tower")
    return hashlib.sha256(f"{constants}|{stored}".encode()).hexdigest() if constants else stored


def language_fingerprint(vla_dir: str | Path, prefixes: Prefixes, others: Prefixes, constants: str) -> str:
    """Fingerprint of a VLA's language model: its tensors as stored, and the constants that a graph of it bakes in.

    Args:
        prefixes: of the language model's tensors, without the head's; of two that fit the first counts.
        others: prefixes of tensors that are not the language model's, though one of ``prefixes`` fits.

    Raises:
        ModelError: no readable safetensors file, or none that holds a language model.
    """
    stored = _stored_fingerprint(str(vla_dir), _weight_files(vla_dir), prefixes, others, "a language model")
    return hashlib.sha256(f"{constants}|{stored}".encode()).hexdigest()


def model_files(vla_dir: str | Path) -> list[Path]:
    """The files of a VLA directory that decide its answers, in the order of their names: configuration, tokenizer,
    prompt and weights. What a pruner or an engine has there beside them decides nothing of the others.

    Raises:
        ModelError: the index of the weights cannot be read, or a file of it is missing.
    """
    folder = Path(vla_dir)
    texts = [file for end in ("json", "txt", "jinja") for file in folder.glob(f"*.{end}") if file.is_file()]
    manifests = {file for file in texts if file.suffix == ".json" and file.with_suffix("").is_file()}
    weights = (Path(name) for name, _, _ in _weight_files(folder))
    return sorted({*texts, *weights} - manifests - {folder / VIEW_WEIGHTS_FILE, folder / GEOMETRY_FILE})


def indexed_weights(path: Path) -> list[Path]:
    """The weight files that an index names, there or not. Raises ModelError where it cannot be read."""
    index = path / WEIGHTS_INDEX
    try:
        names = set(read_json(index)["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index}: not readable as a weight index ({error})") from error
    if any(
        not isinstance(name, str) or Path(name).name != name or name in ("", "..") or "\0" in name for name in names
    ):
        raise ModelError(f"{index}: weight_map: names a file outside of the directory")
    return [path / name for name in sorted(names)]


def weight_paths(folder: Path) -> list[Path]:
    """The weight files that transformers loads, there or not: the usual one, else those of the index.

    Raises ModelError where the index cannot be read.
    """
    usual = folder / WEIGHTS
    return [usual] if usual.is_file() or not (folder / WEIGHTS_INDEX).is_file() else indexed_weights(folder)


def _any_weights(folder: Path) -> list[Path]:
    """``weight_paths``; every safetensors file where there is neither."""
    found = weight_paths(folder)
    missing = found == [folder / WEIGHTS] and not found[0].is_file()
    return sorted(folder.glob("*.safetensors")) if missing else found


def _weight_files(vla_dir: str | Path) -> Files:
    """Raises ModelError where the index cannot be read, or a file of it is missing."""
    found = []
    for file in _any_weights(Path(vla_dir)):
        try:
            found.append((str(file), file.stat().st_mtime_ns, file.stat().st_size))
        except OSError as error:
            raise ModelError(f"{file}: cannot be read ({error.strerror}); fetch it again") from error
    return tuple(found)


@lru_cache(maxsize=16)
def _stored_fingerprint(vla_dir: str, files: Files, prefixes: Prefixes, others: Prefixes, what: str) -> str:
    """One tensor at a time is in memory: this may be most of a VLA."""
    found: dict[str, tuple[str, str]] = {}  # name without prefix -> file, stored name
    for file, _, _ in files:
        with _opened(file) as stored:
            for name in stored.keys():  # noqa: SIM118
                prefix = next((each for each in prefixes if name.startswith(each)), None)
                if others and name.startswith(others):
                    continue
                if prefix is not None:
                    found[name.removeprefix(prefix)] = file, name
                elif others and name.startswith(_HEAD):
                    found[name] = file, name
    if not found:
        raise ModelError(f"{vla_dir}: no safetensors file holds {what} (tensors named {' or '.join(prefixes)}*)")
    digest = hashlib.sha256()
    for bare in sorted(found):
        file, name = found[bare]
        with _opened(file) as stored:
            _add(digest, bare, stored.get_tensor(name))
    return digest.hexdigest()


def directory_fingerprint(vla_dir: str | Path) -> str:
    """Tells two VLA directories apart without reading gigabytes: over ``model_files``, and of the files of weights over
    their sizes and blocks at even distances, 64 MB in all. In larger models a change of single tensors may be missed.

    Raises:
        ModelError: a file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        files = _weight_files(vla_dir)
        weights = {Path(name) for name, _, _ in files}
        for file in model_files(vla_dir):
            if file not in weights:
                digest.update(f"{file.name}|".encode() + file.read_bytes())
        step = max(1, sum(size for _, _, size in files) // _SAMPLED) * _BLOCK
        for name, _, size in files:
            digest.update(f"{Path(name).name}|{size}|".encode())
            with open(name, "rb") as content:
                for offset in range(0, size, step):
                    content.seek(offset)
                    digest.update(content.read(_BLOCK))
    except OSError as error:
        raise ModelError(f"{error.filename or vla_dir}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()


@contextmanager
def _opened(file: str) -> Iterator:
    try:
        with safe_open(file, framework="pt") as stored:
            yield stored
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file}: not a readable safetensors file ({error}); fetch it again") from error


def pruner_fingerprint(path: str | Path) -> str:
    """SHA-256 over the weights, configuration and encoder of a pruner file; its calibration has no part in it.

    Raises:
        ModelError: no readable safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: no such pruner file; correct its path")
    with _opened(str(path)) as stored:
        metadata = stored.metadata() or {}
        tensors = [(name, stored.get_tensor(name)) for name in stored.keys()]  # noqa: SIM118
    parts = "|".join([metadata.get("config", ""), metadata.get("encoder", ""), tensors_fingerprint(tensors)])
    return hashlib.sha256(parts.encode()).hexdigest()
