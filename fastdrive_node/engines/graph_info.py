"""Facts that the manifests of all engines hold."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FileFacts:
    """One file of an engine."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class TensorFacts:
    """An input or output. A name in the shape stands for a length that differs from run to run."""

    dtype: str  # uint8, int32, float32, ...
    shape: tuple[int | str, ...]
