"""Engines as a vision backend: one file that turns images into tokens, their scores and their order.

The file is checked before it runs, and what it gives is checked on each run, because an index out of range would end a
CUDA process.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from fastdrive_node.engines.graph_info import IMAGES, INDICES, SCORES, TOKENS, TensorInfo
from fastdrive_node.engines.manifest import Manifest, VisionManifest, build_hint, check_files, read_manifest, short
from fastdrive_node.errors import InputError, ModelError
from fastdrive_node.families import VisualTokens, Vla
from fastdrive_node.families.fingerprint import pruner_fingerprint
from fastdrive_node.families.images import resize

_log = logging.getLogger(__name__)


class Runner(Protocol):
    """Runs an engine on raw memory."""

    device: torch.device
    name: str  # runtime, version and provider

    def execute(self, pointers: Mapping[str, int]) -> None:
        """Run once and wait: ``pointers`` are the addresses of all inputs and outputs, contiguous, on ``device``."""


class EngineVision:
    """Images to tokens by an engine, which scores them in the same run.

    Args:
        file, manifest, runner: the engine, checked and loaded.
        device, dtype: of the tokens that are given out.
    """

    def __init__(
        self,
        file: Path,
        manifest: VisionManifest,
        runner: Runner,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ):
        self.file = file
        self.runner = runner
        self.manifest = manifest
        self.device, self.dtype = device, dtype
        self.image_size = manifest.graph.image_size
        self.cameras = len(manifest.graph.cameras)
        self.grid = manifest.graph.grid
        self.max_keep = manifest.graph.max_keep
        tensors = manifest.graph.inputs() | manifest.graph.outputs()
        self._tensors = {name: _empty(each, runner.device) for name, each in tensors.items()}
        self._pointers = {name: tensor.data_ptr() for name, tensor in self._tensors.items()}

    def preprocess(self, images: Sequence[np.ndarray] | np.ndarray) -> torch.Tensor:
        """uint8 RGB images [H, W, 3] of any size -> uint8 [C, 3, height, width].

        Raises:
            InputError: an image is not uint8 [H, W, 3].
        """
        return resize(images, self.image_size)

    def encode(self, inputs: torch.Tensor, attention: bool = False) -> VisualTokens:
        """uint8 [C, 3, height, width] -> the ``max_keep`` best tokens, best first, and the scores of all.

        Raises:
            ModelError: the engine gave scores that are not finite, or no valid order; or ``attention`` is asked for.
        """
        if attention:
            raise ModelError("engine: gives no attention of the vision encoder; set vision_backend to torch")
        images = self._tensors[IMAGES]
        if inputs.shape != images.shape or inputs.dtype != images.dtype:
            raise InputError(f"engine: images {inputs.dtype} {tuple(inputs.shape)}, expected {tuple(images.shape)}")
        images.copy_(inputs)
        self.runner.execute(self._pointers)
        scores, order = self._tensors[SCORES].cpu().clone(), self._tensors[INDICES].cpu().long()
        self._check(scores, order)
        rows = self._tensors[TOKENS].to(self.device, self.dtype, copy=True)
        return VisualTokens(rows, order, (self.cameras, self.grid[0], self.grid[1]), scores)

    def identity(self) -> dict[str, str]:
        """What runs, for the diagnostics."""
        graph, parity = self.manifest.graph, self.manifest.parity
        return {
            "engine": str(self.file),
            "engine_fingerprint": short(self.manifest.files[self.file.name].sha256),
            "runtime": self.runner.name,
            "precision": graph.precision,
            "pruner": "reconpruner in the engine",
            "pruner_fingerprint": short(graph.pruner),
            "parity": "not verified" if parity is None else f"cosine {parity.cosine:.6f}",
        }

    def _check(self, scores: torch.Tensor, order: torch.Tensor) -> None:
        if not np.isfinite(scores.numpy()).all():
            raise ModelError(
                f"engine: {SCORES}: not finite; run `fastdrive export verify`, or build it with another --precision"
            )
        total, places = scores.numel(), order.numpy()  # numpy's steps take less time than torch's where there is little
        if places.min() < 0 or places.max() >= total or np.bincount(places).max() > 1:
            raise ModelError(
                f"engine: {INDICES}: not {len(order)} different tokens of {total}; run `fastdrive export verify`"
            )


@dataclass(frozen=True)
class EngineChoice:
    """Which engine runs on what; see ``open_engine``."""

    backend: str  # onnxruntime or tensorrt
    file: Path  # the engine; its manifest lies beside it
    provider: str = "auto"  # for onnxruntime, one of types.ONNX_PROVIDERS


def choose_engine(backend: str, file: str | Path | None, provider: str = "auto") -> EngineChoice | None:
    """The engine that options or parameters name; None for torch.

    Raises:
        InputError: an engine without its backend, or a backend without its engine.
    """
    if backend == "torch":
        if file:
            raise InputError(f"engine: {file} is given, but vision_backend is torch; set it to onnxruntime or tensorrt")
        return None
    if not file:
        raise InputError(
            f"engine: vision_backend {backend} needs an engine file; build one with: fastdrive export build --backend "
            f"{backend} --out DIR"
        )
    return EngineChoice(backend, Path(file), provider)


def open_engine(choice: EngineChoice, vla: Vla, pruner_file: str | Path | None = None) -> EngineVision:
    """Check an engine against its manifest and a VLA, and load it.

    Args:
        choice: ``provider`` auto is cuda where the VLA is on a GPU and onnxruntime has it, else cpu.
        pruner_file: that the engine must have been built with; None accepts any.

    Raises:
        ModelError: file, manifest and VLA do not fit together, or the runtime cannot run it; the text names the field,
            both values and the command that fixes it.
        ModuleNotFoundError: the runtime is not installed.
    """
    file = choice.file
    manifest = check_engine(file, vla, pruner_file)
    if manifest.backend != choice.backend:
        raise ModelError(
            f"{file}: kind: the file is for {manifest.backend!r}, but the vision backend is {choice.backend!r}; "
            f"set vision_backend to {manifest.backend!r}"
        )
    check_parity(file, manifest, vla)
    return load_engine(file, manifest, vla, choice.provider)


def check_engine(file: Path, vla: Vla, pruner_file: str | Path | None) -> VisionManifest:
    """The manifest of an engine that is whole and of this VLA and pruner. Raises ModelError as ``open_engine``."""
    manifest: Any = read_manifest(file)
    check_part(file, manifest, "vision")
    check_identity(file, manifest, vla, pruner_file)
    check_files(file, manifest)
    return manifest


def load_engine(file: Path, manifest: VisionManifest, vla: Vla, provider: str = "auto") -> EngineVision:
    """Load an engine that was checked. Raises ModelError where its runtime cannot run it."""
    try:
        runner = _make_runner(file, manifest, vla.device, provider)
    except ModuleNotFoundError as error:
        raise ModelError(
            f"{file}: the Python package {error.name!r} is missing; onnxruntime comes with pip install -e .[export], "
            "tensorrt with JetPack or from NVIDIA"
        ) from error
    return EngineVision(file, manifest, runner, vla.device, vla.dtype)


def _make_runner(file: Path, manifest: Manifest, device: torch.device, provider: str) -> Runner:
    if manifest.kind == "onnx":
        from fastdrive_node.engines.onnx_runner import OnnxRunner

        return OnnxRunner(file, manifest, device, provider)
    from fastdrive_node.engines.tensorrt_runner import TensorRtRunner

    return TensorRtRunner(file, manifest, device)


def check_identity(file: Path, manifest: Manifest, vla: Vla, pruner_file: str | Path | None) -> None:
    """The engine is of this VLA's encoder, and of this pruner.

    Raises:
        ModelError: a field differs, or the pruner file is missing.
    """
    expected = {
        "cameras": tuple(vla.spec.cameras),
        "image_size": tuple(vla.spec.image_size),
        "grid": tuple(vla.grid),
        "width": vla.width,
        "encoder": vla.encoder_fingerprint,
    }
    hint = build_hint(file, manifest, vla.path, None if pruner_file is None else Path(pruner_file))
    refuse_others(file, manifest, expected, vla.path, hint)
    if pruner_file is not None:
        refuse_others(file, manifest, {"pruner": pruner_fingerprint(pruner_file)}, pruner_file, hint)


def refuse_others(file: Path, manifest: Manifest, expected: Mapping[str, object], place: str | Path, hint: str) -> None:
    """Fields of the manifest's graph are those of a model. Raises ModelError where one differs.

    Args:
        place: where the model lies, and ``hint`` what makes a right engine, for the text.
    """
    for name, ours in expected.items():
        theirs = getattr(manifest.graph, name)
        if theirs != ours:
            raise ModelError(f"{file}: {name}: the engine has {short(theirs)}, but {place} has {short(ours)}; {hint}")


def require_engines(vla: Vla) -> None:
    """Raises ModelError where the VLA's family has no engines at all, or its cameras have different image sizes."""
    vla.require_one_size("an engine")
    if not vla.family.has_engines:
        raise ModelError(
            f"{vla.path}: config.json: model_type: there are no engines for {vla.family.model_type!r}; run the vision "
            "encoder and the language model with torch"
        )


def check_part(file: Path, manifest: Manifest, part: str) -> None:
    """Raises ModelError where the engine holds another part of a VLA."""
    if manifest.part != part:
        raise ModelError(
            f"{file}: part: it is a {manifest.part} engine, but a {part} engine is needed; the parameter for vision "
            "engines is engine (--engine), for language engines language_engine (--language-engine)"
        )


def check_parity(file: Path, manifest: Manifest, vla: Vla) -> None:
    """Raises ModelError where the engine was found too far from torch; warns where nobody looked."""
    if manifest.parity is not None and not manifest.parity.passed:
        raise ModelError(
            f"{file}: parity: `fastdrive export verify` found a cosine of {manifest.parity.cosine:.4f}, which is too "
            f"low; change --precision; {build_hint(file, manifest, vla.path)}"
        )
    if manifest.parity is None:
        _log.warning("%s was never compared with torch; run: fastdrive export verify %s", file, file)


def _empty(info: TensorInfo, device: torch.device) -> torch.Tensor:
    return torch.empty(*map(int, info.shape), dtype=getattr(torch, info.dtype), device=device)
