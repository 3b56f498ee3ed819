"""Identities: a pruner serves exactly the encoder that it was trained on, an engine holds exactly one pruner."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from fastdrive_node.errors import ModelError

_PREFIXES = ("model.visual.", "visual.")  # in memory, and in checkpoints
_LANGUAGE_PREFIXES = ("model.language_model.", "language_model.", "model.", "lm_head.")


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


def encoder_fingerprint(vla_dir: str | Path) -> str:
    """Fingerprint of the vision tower in a VLA directory, as stored, whatever dtype it is loaded in.

    Raises:
        ModelError: no readable safetensors file, or none that holds a vision tower.
    """
    return _stored_fingerprint(str(vla_dir), _weight_files(vla_dir))


def language_fingerprint(vla_dir: str | Path, configuration: str) -> str:
    """Fingerprint of a VLA's language half: its tensors as stored, and the configuration that a graph of it bakes in.

    Raises:
        ModelError: no readable safetensors file, or none that holds a language model.
    """
    stored = _stored_language_fingerprint(str(vla_dir), _weight_files(vla_dir))
    return hashlib.sha256(f"{configuration}|{stored}".encode()).hexdigest()


def _weight_files(vla_dir: str | Path) -> tuple[tuple[str, int, int], ...]:
    files = sorted(Path(vla_dir).glob("*.safetensors"))
    return tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)


@lru_cache(maxsize=8)
def _stored_fingerprint(vla_dir: str, files: tuple[tuple[str, int, int], ...]) -> str:
    tensors = [pair for file, _, _ in files for pair in _tower_tensors(file)]
    if not tensors:
        raise ModelError(f"{vla_dir}: no safetensors file holds a vision tower (tensors named 'visual.*')")
    return tensors_fingerprint(tensors)


@lru_cache(maxsize=8)
def _stored_language_fingerprint(vla_dir: str, files: tuple[tuple[str, int, int], ...]) -> str:
    """One tensor at a time is in memory: this is most of a VLA."""
    places = {}
    for file, _, _ in files:
        places |= {name: file for name in _names(file) if _is_language(name)}
    if not places:
        raise ModelError(f"{vla_dir}: no safetensors file holds a language model (tensors named 'model.*')")
    digest = hashlib.sha256()
    for name in sorted(places, key=_bare):
        try:
            with safe_open(places[name], framework="pt") as stored:
                _add(digest, _bare(name), stored.get_tensor(name))
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{places[name]}: not a readable safetensors file ({error}); fetch it again") from error
    return digest.hexdigest()


def _names(file: str) -> list[str]:
    try:
        with safe_open(file, framework="pt") as stored:
            return list(stored.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file}: not a readable safetensors file ({error}); fetch it again") from error


def _is_language(name: str) -> bool:
    return name.startswith(_LANGUAGE_PREFIXES) and not name.startswith(_PREFIXES)


def _bare(name: str) -> str:
    """Checkpoints of several versions name the same tensor differently."""
    prefix = next((each for each in _LANGUAGE_PREFIXES[:3] if name.startswith(each)), "")
    return name.removeprefix(prefix)


def _tower_tensors(file: str) -> list[tuple[str, torch.Tensor]]:
    try:
        with safe_open(file, framework="pt") as stored:
            stored_names = list(stored.keys())
            names = [(name, prefix) for name in stored_names for prefix in _PREFIXES if name.startswith(prefix)]
            return [(name.removeprefix(prefix), stored.get_tensor(name)) for name, prefix in names]
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
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            tensors = [(name, stored.get_tensor(name)) for name in stored.keys()]  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a readable safetensors file ({error}); fetch it again") from error
    facts = "|".join([metadata.get("config", ""), metadata.get("encoder", ""), tensors_fingerprint(tensors)])
    return hashlib.sha256(facts.encode()).hexdigest()
