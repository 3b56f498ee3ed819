"""Safetensors files of modules that belong to one vision tower: their metadata names format, version and encoder.

Only tensors are read from a file, and its sizes are compared with the VLA's before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from fastdrive_node.errors import ModelError
from fastdrive_node.families import Vla
from fastdrive_node.files import write_atomically


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors, in the dtype that they have, and metadata."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with write_atomically(path) as partial:
        partial.write_bytes(save(plain, dict(metadata)))  # save_file would make it private to its owner


@contextmanager
def opened(
    path: Path, form: str, versions: Sequence[str], kind: str, missing: str
) -> Iterator[tuple[Any, dict[str, str]]]:
    """A file of one format, and its metadata.

    Args:
        form, versions: what ``format`` and ``version`` of the metadata must be.
        kind: what the file is, for messages.
        missing: the message behind the path where there is no file.

    Raises:
        ModelError: it is missing, not readable, or of another format or version.
    """
    if not path.is_file():
        raise ModelError(f"{path}: {missing}")
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("format") != form:
                raise ModelError(f"{path}: format: not a {kind} file (its metadata lacks format {form!r})")
            if metadata.get("version") not in versions:
                found, known = metadata.get("version", "")[:20], " or ".join(map(repr, versions))
                raise ModelError(f"{path}: version: {found!r} is not {known}; update this package")
            yield stored, metadata
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a readable safetensors file ({error}); fetch it again") from error


def check_encoder(path: Path, metadata: Mapping[str, str], vla: Vla, kind: str) -> None:
    """Raises ModelError where a file belongs to another vision tower than the VLA's."""
    if metadata.get("encoder") != vla.encoder_fingerprint:
        raise ModelError(
            f"{path}: encoder: trained on the vision encoder {metadata.get('encoder', '')[:12]!r}, but {vla.path} has "
            f"{vla.encoder_fingerprint[:12]!r}; train the {kind} on this encoder"
        )


def compare(path: Path, stored: Any, module: nn.Module, kind: str) -> None:
    """Names and shapes of a file's tensors are those of a module. Raises ModelError where they are not."""
    expected = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    names = set(stored.keys())
    if names != set(expected):
        odd = min(names ^ set(expected))
        raise ModelError(f"{path}: tensor {odd[:80]!r} is {'missing' if odd in expected else f'not a {kind} tensor'}")
    for name, shape in expected.items():
        found = stored.get_slice(name).get_shape()
        if found != shape:
            raise ModelError(f"{path}: tensor {name!r} has shape {found}, expected {shape} by the file's own config")


def fill(path: Path, stored: Any, module: nn.Module, kind: str, device: torch.device, dtype: torch.dtype) -> None:
    """Take a file's tensors as the parameters of a module without storage, and freeze it in ``eval`` mode.

    Raises:
        ModelError: as ``compare``, or a value is not finite.
    """
    compare(path, stored, module, kind)
    tensors = {name: stored.get_tensor(name).to(device, dtype) for name in module.state_dict()}
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{path}: tensor {name!r} holds values that are not finite")
    module.load_state_dict(tensors, assign=True)
    module.requires_grad_(False).eval()
