"""The language model as an engine: prefill and single tokens by onnxruntime, over a cache that stays on the device.

``standard_language`` runs graphs of ONNX's operators, ``fused_language`` those with onnxruntime's own.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from fastdrive_node.engines.graph_info import STORED_TYPES
from fastdrive_node.engines.language_cache import CacheMemory
from fastdrive_node.engines.manifest import LanguageManifest, build_hint, check_files, read_manifest, short
from fastdrive_node.engines.vision_engine import check_parity, check_part, refuse_others
from fastdrive_node.errors import ModelError
from fastdrive_node.families import VisualTokens, Vla
from fastdrive_node.families.base import PositionInputs


class LanguageRunner(Protocol):
    """Runs a language engine on raw memory."""

    device: torch.device
    name: str  # runtime, version and provider

    def execute(self, pointers: Mapping[str, int], lengths: Mapping[str, int]) -> None:
        """Run once and wait: addresses of all inputs and outputs, contiguous, on ``device``; the lengths by name."""


@dataclass(frozen=True)
class LanguageChoice:
    """Which language engine runs on what; see ``open_language_engine``."""

    file: Path  # its manifest lies beside it
    provider: str = "auto"  # one of types.ONNX_PROVIDERS


class EngineLanguage(ABC):
    """A ``HeadedLanguageModel``, one prompt at a time.

    Args:
        file, manifest, runner: the engine, checked and loaded.
        vla: gives the rotary angles; its weights are not used.
    """

    takes_head = True

    def __init__(self, file: Path, manifest: LanguageManifest, runner: LanguageRunner, vla: Vla):
        self.file, self.manifest, self.runner = file, manifest, runner
        self.info = manifest.graph
        self._vla = vla
        self.layers = self.info.layers
        self._stored = getattr(torch, STORED_TYPES[self.info.precision])
        self._memory = CacheMemory(self.info, self._stored, runner.device)

    def position_inputs(self, position_ids: torch.Tensor) -> PositionInputs:
        """See ``LanguageModel``; float32 whatever the VLA's type is."""
        return self._vla.family.language_position_inputs(self._vla, position_ids)

    @abstractmethod
    def prefill(
        self,
        ids: torch.Tensor,
        visual_positions: Sequence[torch.Tensor],
        visual: Sequence[VisualTokens],
        positions: PositionInputs,
        max_new_tokens: int,
        last: int = 1,
        head: Any = None,
    ) -> tuple[torch.Tensor, Any]:
        """See ``HeadedLanguageModel``.

        Raises:
            ModelError: more than one prompt, or logits that are not finite.
        """

    @abstractmethod
    def decode_step(self, ids: torch.Tensor, positions: PositionInputs, cache: Any) -> torch.Tensor:
        """See ``LanguageModel``.

        Raises:
            ModelError: the cache is full.
        """

    @abstractmethod
    def extend(self, ids: torch.Tensor, positions: PositionInputs, cache: Any) -> torch.Tensor:
        """See ``ExtendingLanguageModel``.

        Raises:
            ModelError: the cache has too few positions left.
        """

    def identity(self) -> dict[str, str]:
        """What runs, for the diagnostics."""
        parity = self.manifest.parity
        return {
            "language_engine": str(self.file),
            "language_engine_fingerprint": short(self.manifest.files[self.file.name].sha256),
            "language_runtime": self.runner.name,
            "language_precision": self.info.precision,
            "language_parity": "not verified" if parity is None else f"cosine {parity.cosine:.6f}",
        }

    def _require_one(self, ids: torch.Tensor) -> None:
        if len(ids) != 1:
            raise ModelError(f"language engine: {len(ids)} prompts at a time; it runs one, torch runs batches")

    def _check(self, logits: torch.Tensor) -> None:
        if math.isfinite(float(logits.sum())):  # a tenth of the time; a sum of finite ones may leave float32's range
            return
        if not bool(torch.isfinite(logits).all()):
            raise ModelError(
                "language engine: logits that are not finite; run `fastdrive export verify`, or build it with "
                "--precision bf16 or fp32"
            )


def source_of(length: int, visual: torch.Tensor) -> torch.Tensor:
    """The graphs' input ``source``, int64 [length], of a prompt whose visual tokens are at these positions."""
    source = torch.arange(length, device=visual.device)
    source[visual] = length + torch.arange(len(visual), device=visual.device)
    return source


def open_language_engine(choice: LanguageChoice, vla: Vla) -> EngineLanguage:
    """Check a language engine against its manifest and a VLA, and load it.

    Args:
        choice: ``provider`` auto is cuda where the VLA is on a GPU and onnxruntime has it, else cpu.

    Raises:
        ModelError: file, manifest and VLA do not fit together, or onnxruntime is absent or cannot run it; the text
            names the field, both values and the command that fixes it.
    """
    manifest = check_language_engine(choice.file, vla)
    check_parity(choice.file, manifest, vla)
    return load_language_engine(choice.file, manifest, vla, choice.provider)


def check_language_engine(file: Path, vla: Vla) -> LanguageManifest:
    """The manifest of an engine that is whole and of this VLA. Raises ModelError as ``open_language_engine``."""
    manifest: Any = read_manifest(file)
    check_part(file, manifest, "language")
    refuse_others(file, manifest, language_sizes(vla), vla.path, build_hint(file, manifest, vla.path))
    check_files(file, manifest)
    return manifest


def load_language_engine(file: Path, manifest: LanguageManifest, vla: Vla, provider: str = "auto") -> EngineLanguage:
    """Load an engine that was checked. Raises ModelError where its runtime cannot run it."""
    if manifest.kind != "onnx":
        raise ModelError(f"{file}: kind: a language engine runs with onnxruntime only, not with {manifest.backend}")
    try:
        from fastdrive_node.engines.onnx_runner import OnnxRunner
    except ModuleNotFoundError as error:
        raise ModelError(
            f"{file}: the Python package {error.name!r} is missing; it comes with pip install -e .[export]"
        ) from error
    if provider == "tensorrt" and not manifest.graph.fused:  # of which none runs on a GPU, as it says then
        provider = "cuda"  # it would build anew for lengths that it has not seen, for minutes, between two plans
    runner = OnnxRunner(file, manifest, vla.device, provider)
    from fastdrive_node.engines.fused_language import FusedLanguage
    from fastdrive_node.engines.standard_language import StandardLanguage

    kind = FusedLanguage if manifest.graph.fused else StandardLanguage
    return kind(file, manifest, runner, vla)


def language_sizes(vla: Vla) -> dict[str, int | str]:
    """What an engine's manifest says of the VLA: sizes of its language model, and the fingerprint of its weights."""
    return {**vla.family.language_sizes(vla.config), "language": vla.language_fingerprint}
