"""The language model as an engine: prefill and single tokens by onnxruntime, over a cache that stays on the device.

``EngineLanguage`` runs graphs of ONNX's operators, which give new keys and values only; they are put into the cache
here, whose address does not change while an answer is written. See ``fastdrive_export.networks.language`` for the
graph, and ``fused_language`` for graphs with onnxruntime's own operators.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from fastdrive_node.engines.graph_info import (
    ASKED,
    COS,
    IDS,
    LOGITS,
    MASK,
    NEW,
    NEW_KEYS,
    NEW_VALUES,
    PAST,
    SEEN,
    SHOWN,
    SIN,
    SOURCE,
    STORED_TYPES,
    VISUAL,
    WANTED,
    cache_names,
)
from fastdrive_node.engines.language_cache import HIDDEN, CacheMemory, EngineCache, append, require_positions
from fastdrive_node.engines.manifest import LanguageManifest, build_hint, check_files, read_manifest, short
from fastdrive_node.engines.vision_engine import check_parity, check_part, refuse_others
from fastdrive_node.errors import ModelError
from fastdrive_node.families import VisualTokens, Vla
from fastdrive_node.families.base import PositionInputs

MOST_BUFFERS = 128  # numbers of tokens and of positions whose inputs and outputs are kept


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


class EngineLanguage:
    """A ``LanguageModel``, one prompt at a time.

    Args:
        file, manifest, runner: the engine, checked and loaded.
        vla: gives the rotary angles; its weights are not used.
    """

    def __init__(self, file: Path, manifest: LanguageManifest, runner: LanguageRunner, vla: Vla):
        self.file, self.manifest, self.runner = file, manifest, runner
        self.info = manifest.graph
        self._vla = vla
        self.layers = self.info.layers
        self._stored = getattr(torch, STORED_TYPES[self.info.precision])
        self._prepare()

    def _prepare(self) -> None:
        """Memory of the runs."""
        info, device = self.info, self.runner.device
        self._step = self._buffers(1)  # of every step; the mask is the cache's
        self._extensions: OrderedDict[tuple[int, int], dict[str, torch.Tensor]] = OrderedDict()  # the last used is last
        self._memory = CacheMemory(info, self._stored, device)
        self._before = torch.zeros(
            info.kv_heads * info.head_dim, dtype=self._stored, device=device
        )  # P = 1, of a prefill

    def position_inputs(self, position_ids: torch.Tensor) -> PositionInputs:
        """See ``LanguageModel``; float32 whatever the VLA's type is."""
        return self._vla.family.language_position_inputs(self._vla, position_ids)

    def prefill(
        self,
        ids: torch.Tensor,
        visual_positions: Sequence[torch.Tensor],
        visual: Sequence[VisualTokens],
        positions: PositionInputs,
        max_new_tokens: int,
        last: int = 1,
    ) -> tuple[torch.Tensor, EngineCache]:
        """See ``LanguageModel``.

        Raises:
            ModelError: more than one prompt, or logits that are not finite.
        """
        if len(ids) != 1:
            raise ModelError(f"language engine: {len(ids)} prompts at a time; it runs one, torch runs batches")
        (cos, sin), rows = positions, visual[0].rows
        length = ids.shape[1]
        source = torch.arange(length, device=ids.device)
        source[visual_positions[0]] = length + torch.arange(len(rows), device=ids.device)
        tensors = self._buffers(length, max(1, len(rows)), last)
        tensors[IDS].copy_(ids[0])
        tensors[SOURCE].copy_(source)
        tensors[VISUAL][: len(rows)] = rows
        tensors[COS].copy_(cos[0])
        tensors[SIN].copy_(sin[0])
        tensors[WANTED].copy_(torch.arange(length - last, length))
        tensors[MASK] = self._causal(length)
        past = {name: self._before.data_ptr() for layer in range(self.info.layers) for name in cache_names(layer)}
        self._run(tensors, past, length, 1)
        self._check(tensors[LOGITS])
        cache = self._memory.cache(length + max_new_tokens)
        append(cache, tensors, length)
        return tensors[LOGITS][None].to(ids.device), cache

    def decode_step(self, ids: torch.Tensor, positions: PositionInputs, cache: EngineCache) -> torch.Tensor:
        """See ``LanguageModel``.

        Raises:
            ModelError: the cache is full.
        """
        require_positions(cache, 1)
        cos, sin = positions
        tensors = {**self._step, MASK: cache.mask}
        tensors[IDS].copy_(ids)
        tensors[COS].copy_(cos[0])
        tensors[SIN].copy_(sin[0])
        cache.mask[:, cache.used : -1] = HIDDEN  # ``used`` may have been set back
        self._run(tensors, cache.pointers, 1, cache.length)
        append(cache, tensors, 1)
        return tensors[LOGITS].to(ids.device, copy=True)

    def extend(self, ids: torch.Tensor, positions: PositionInputs, cache: EngineCache) -> torch.Tensor:
        """See ``ExtendingLanguageModel``.

        Raises:
            ModelError: the cache has too few positions left.
        """
        count = ids.shape[1]
        require_positions(cache, count)
        cos, sin = positions
        tensors = self._extension(count, cache.length)
        tensors[IDS].copy_(ids[0])
        tensors[COS].copy_(cos[0])
        tensors[SIN].copy_(sin[0])
        tensors[MASK][:, : cache.used] = 0
        tensors[MASK][:, cache.used : cache.length] = HIDDEN
        self._run(tensors, cache.pointers, count, cache.length)
        append(cache, tensors, count)
        return tensors[LOGITS][None].to(ids.device, copy=True)

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

    def _check(self, logits: torch.Tensor) -> None:
        if math.isfinite(float(logits.sum())):  # a tenth of the time; a sum of finite ones may leave float32's range
            return
        if not bool(torch.isfinite(logits).all()):
            raise ModelError(
                "language engine: logits that are not finite; run `fastdrive export verify`, or build it with "
                "--precision bf16 or fp32"
            )

    def _run(self, tensors: Mapping[str, torch.Tensor], past: Mapping[str, int], new: int, earlier: int) -> None:
        pointers = {name: tensor.data_ptr() for name, tensor in tensors.items()} | dict(past)
        lengths = {NEW: new, PAST: earlier, SEEN: earlier + new, SHOWN: len(tensors[VISUAL])}
        lengths[ASKED] = len(tensors[WANTED])
        self.runner.execute(pointers, lengths)

    def _buffers(self, new: int, shown: int = 1, asked: int = 1) -> dict[str, torch.Tensor]:
        """Zeros for every input and output but the mask and the cache."""
        lengths: dict[int | str, int] = {NEW: new, SHOWN: shown, ASKED: asked}
        tensors = self.info.inputs() | self.info.outputs()
        names = (IDS, SOURCE, VISUAL, COS, SIN, WANTED, LOGITS, NEW_KEYS, NEW_VALUES)
        return {
            name: torch.zeros(
                [int(lengths.get(length, length)) for length in tensors[name].shape],
                dtype=getattr(torch, tensors[name].dtype),
                device=self.runner.device,
            )
            for name in names
        }

    def _extension(self, count: int, earlier: int) -> dict[str, torch.Tensor]:
        """Inputs and outputs of ``count`` tokens behind a cache of ``earlier`` positions, the same at each call."""
        key = (count, earlier)
        tensors = self._extensions.get(key)
        if tensors is None:
            tensors = self._extensions[key] = self._buffers(count, asked=count)
            for name in (SOURCE, WANTED):
                tensors[name].copy_(torch.arange(count))
            tensors[MASK] = torch.full((count, earlier + count), HIDDEN, device=self.runner.device)
            tensors[MASK][:, earlier:].triu_(1)
            if len(self._extensions) > MOST_BUFFERS:
                self._extensions.popitem(last=False)
        self._extensions.move_to_end(key)
        return tensors

    def _causal(self, length: int) -> torch.Tensor:
        """The mask of a prefill: the one earlier position is hidden from all."""
        mask = torch.full((length, length + 1), HIDDEN, device=self.runner.device).triu(2)
        mask[:, 0] = HIDDEN
        return mask


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
    if provider == "tensorrt":
        provider = "cuda"  # it would build anew for lengths that it has not seen, for minutes, between two plans
    runner = OnnxRunner(file, manifest, vla.device, provider)
    if not manifest.graph.fused:
        return EngineLanguage(file, manifest, runner, vla)
    from fastdrive_node.engines.fused_language import FusedLanguage

    return FusedLanguage(file, manifest, runner, vla)


def language_sizes(vla: Vla) -> dict[str, int | str]:
    """What an engine's manifest says of the VLA: sizes of its language model, and the fingerprint of its weights."""
    return {**vla.family.language_sizes(vla.config), "language": vla.language_fingerprint}
