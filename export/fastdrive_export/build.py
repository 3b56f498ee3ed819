"""From a VLA directory, and a pruner for vision, to an ONNX file with its manifest."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch

from fastdrive_export.families import networks_of
from fastdrive_export.files import builder_lock, file_info, publish, staging
from fastdrive_export.graph_writer import GraphWriter
from fastdrive_export.onnx_file import write_onnx
from fastdrive_export.precision import Precision, choose_precision
from fastdrive_export.source import Source, load_source
from fastdrive_node.engines.graph_info import (
    FUSED,
    FUSED_HEAD_DIM,
    STANDARD,
    LanguageGraphInfo,
    VisionGraphInfo,
)
from fastdrive_node.engines.language_engine import language_sizes
from fastdrive_node.engines.manifest import LanguageManifest, SourceInfo, VisionManifest
from fastdrive_node.errors import UsageError
from fastdrive_node.families import Vla, load_vla
from fastdrive_node.families.fingerprint import pruner_fingerprint
from fastdrive_node.planning.loading import default_vla_dir
from fastdrive_node.types import ENGINE_OPERATORS

OPSETS = (17, 18)
ONNX_FILE, LANGUAGE_FILE = "vision.onnx", "language.onnx"
_PACKAGES = ("fastdrive_node", "torch", "transformers", "onnx", "onnxruntime")
_Manifest = TypeVar("_Manifest", VisionManifest, LanguageManifest)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GraphOptions:
    """What the graph shall be.

    ``opset`` None: the backend's. ``max_keep`` is K_max, the tokens that a vision engine gives; None: all.
    ``fp32_mlp``: see ``choose_precision``. ``external``: see ``write_onnx``. ``operators``: "standard" for ONNX's
    alone, "onnxruntime" for its own too; None: its own where they compute, which is in fp32 and opset 18, unless this
    machine has a GPU that torch finds: they run on a CPU.
    """

    precision: str = "fp32"
    opset: int | None = None
    max_keep: int | None = None
    fp32_mlp: Sequence[int] | None = None
    external: bool | None = None
    operators: str | None = None

    def __post_init__(self) -> None:
        if self.opset not in (None, *OPSETS):
            raise UsageError(
                f"opset: {self.opset}; give 17 for TensorRT 8.5 and 8.6, 18 for later ones and onnxruntime"
            )
        if self.opset == 17 and self.precision == "bf16":
            raise UsageError("precision: bf16 is for opset 18: TensorRT 8 does not have it; give fp16 or fp32")
        if self.operators not in (None, *ENGINE_OPERATORS):
            raise UsageError(f"operators: {self.operators!r} is not one of {', '.join(ENGINE_OPERATORS)}")
        if self.operators == FUSED and not self._may_be_fused:
            raise UsageError(
                f"operators: {FUSED} is for fp32 and opset 18, not for {self.precision} and opset {self.graph_opset}; "
                f"give {STANDARD}"
            )

    @property
    def graph_opset(self) -> int:
        """18 where no backend decides."""
        return self.opset or 18

    @property
    def graph_operators(self) -> str:
        """Those that were given, or the fastest that the types allow."""
        fused = self._may_be_fused and not torch.cuda.is_available()
        return self.operators or (FUSED if fused else STANDARD)

    @property
    def _may_be_fused(self) -> bool:
        return (self.precision, self.graph_opset) == ("fp32", 18)


def build_onnx(
    vla_dir: str | Path | None, pruner_file: str | Path | None, out: str | Path, options: GraphOptions | None = None
) -> tuple[Path, VisionManifest]:
    """Write ``vision.onnx`` and its manifest. Returns both.

    Args:
        vla_dir, pruner_file: as in ``load_source``.
        out: folder, made where it is missing.

    Raises:
        ModelError: VLA or pruner cannot be used.
        UsageError: an option does not fit them.
        InputError: another process builds in ``out``.
    """
    source = load_source(vla_dir, pruner_file)
    return _build(Path(out) / ONNX_FILE, lambda stage: write_engine(source, options or GraphOptions(), stage))


def build_language(
    vla_dir: str | Path | None, out: str | Path, options: GraphOptions | None = None
) -> tuple[Path, LanguageManifest]:
    """Write ``language.onnx`` and its manifest; as ``build_onnx``.

    Args:
        options: without ``max_keep``, which is of vision engines.
    """
    options = options or GraphOptions()
    if options.max_keep is not None:
        raise UsageError("max_keep: is for vision engines; a language engine takes any number of tokens")
    vla = load_vla(default_vla_dir() if vla_dir is None else Path(vla_dir), "cpu", "auto")
    vla.require_one_size("an engine")
    return _build(Path(out) / LANGUAGE_FILE, lambda stage: write_language(vla, options, stage))


def _build(file: Path, write: Callable[[Path], _Manifest]) -> tuple[Path, _Manifest]:
    with builder_lock(file.parent), staging(file.parent) as stage:
        manifest = write(stage)
        publish(stage, file, manifest)
    return file, manifest


def write_engine(source: Source, options: GraphOptions, folder: Path) -> VisionManifest:
    """Write the ONNX files of a source into a folder. Returns their manifest, unwritten. Raises as ``build_onnx``."""
    vla, networks = source.vla, networks_of(source.vla)
    precision = choose_precision(options.precision, networks.tower_blocks(source), options.fp32_mlp)
    max_keep = vla.tokens if options.max_keep is None else options.max_keep
    if not 1 <= max_keep <= vla.tokens:
        raise UsageError(f"max_keep: {max_keep} is not in 1..{vla.tokens}, the tokens of {vla.path}")
    info = VisionGraphInfo(
        **_types(options, precision),
        cameras=tuple(vla.spec.cameras),
        image_size=vla.spec.image_size,
        grid=vla.grid,
        width=vla.width,
        max_keep=max_keep,
        encoder=vla.encoder_fingerprint,
        pruner=pruner_fingerprint(source.pruner_file),
    )
    graph = GraphWriter(info.opset, info.fused)
    outputs = networks.write_vision(graph, source, precision, max_keep)
    files = write_onnx(graph, outputs, info, folder / ONNX_FILE, options.external)
    return VisionManifest(graph=info, **_origin(files, vla, str(source.pruner_file.resolve())))


def write_language(vla: Vla, options: GraphOptions, folder: Path) -> LanguageManifest:
    """Write the ONNX files of a language model into a folder. Returns their manifest, unwritten.

    Raises:
        ModelError: the language model has parts that the graph does not.
        UsageError: an option does not fit it.
    """
    vla.torch_language()  # it refuses what the graph does not have either
    sizes: dict[str, Any] = language_sizes(vla)
    # which layers leave fp16's range depends on the checkpoint: none but those that are given
    precision = choose_precision(options.precision, sizes["layers"], options.fp32_mlp or (), "language model")
    types = _types(_for_heads(options, sizes["head_dim"]), precision)
    info = LanguageGraphInfo(**types, part="language", **sizes)
    graph = GraphWriter(info.opset, info.fused)
    outputs = networks_of(vla).write_language(graph, vla, info, precision)
    files = write_onnx(graph, outputs, info, folder / LANGUAGE_FILE, options.external)
    return LanguageManifest(graph=info, **_origin(files, vla, ""))


def _for_heads(options: GraphOptions, head_dim: int) -> GraphOptions:
    """Options with operators that compute heads of this size. Raises UsageError where others were asked for."""
    if head_dim % FUSED_HEAD_DIM == 0:
        return options
    if options.operators == FUSED:
        raise UsageError(
            f"operators: {FUSED} is for heads of a multiple of {FUSED_HEAD_DIM}, not of {head_dim}; give {STANDARD}"
        )
    return replace(options, operators=STANDARD)


def _types(options: GraphOptions, precision: Precision) -> dict[str, Any]:
    return {
        "opset": options.graph_opset,
        "precision": precision.name,
        "fp32_mlp": precision.fp32_mlp,
        "operators": options.graph_operators,
    }


def _origin(files: Sequence[Path], vla: Vla, pruner: str) -> dict[str, Any]:
    """What the manifests of all ONNX files say about where they come from."""
    return {
        "kind": "onnx",
        "files": {path.name: file_info(path) for path in files},
        "source": SourceInfo(vla=str(vla.path.resolve()), pruner=pruner),
        "versions": package_versions(),
        "onnx": {},
        "target": None,
        "parity": None,
    }


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that take part, where they are installed."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            _log.debug("%s is not installed", name)
    return versions
