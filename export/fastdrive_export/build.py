"""From a VLA directory and a pruner to an ONNX file with its manifest."""

from __future__ import annotations

import logging
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fastdrive_export.files import builder_lock, file_info, publish, staging
from fastdrive_export.graph_writer import GraphWriter
from fastdrive_export.network import Network
from fastdrive_export.onnx_file import write_onnx
from fastdrive_export.precision import Precision, choose_precision
from fastdrive_export.source import Source, load_source
from fastdrive_node.engines.fingerprint import pruner_fingerprint
from fastdrive_node.engines.graph_info import VisionGraphInfo
from fastdrive_node.engines.manifest import SourceInfo, VisionManifest
from fastdrive_node.errors import InputError

OPSETS = (17, 18)
ONNX_FILE = "vision.onnx"
_PACKAGES = ("fastdrive_node", "torch", "transformers", "onnx", "onnxruntime")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GraphOptions:
    """What the graph shall be.

    ``opset`` None: the backend's. ``max_keep`` is K_max, the tokens that the engine gives; None: all. ``fp32_mlp``: see
    ``choose_precision``. ``external``: see ``write_onnx``.
    """

    precision: str = "fp32"
    opset: int | None = 18
    max_keep: int | None = None
    fp32_mlp: Sequence[int] | None = None
    external: bool | None = None

    def __post_init__(self) -> None:
        if self.opset not in (None, *OPSETS):
            raise InputError(
                f"opset: {self.opset}; give 17 for TensorRT 8.5 and 8.6, 18 for later ones and onnxruntime"
            )
        if self.opset == 17 and self.precision == "bf16":
            raise InputError("precision: bf16 is for opset 18: TensorRT 8 does not have it; give fp16 or fp32")


def build_onnx(
    vla_dir: str | Path | None, pruner_file: str | Path | None, out: str | Path, options: GraphOptions | None = None
) -> tuple[Path, VisionManifest]:
    """Write ``vision.onnx`` and its manifest. Returns both.

    Args:
        vla_dir, pruner_file: as in ``load_source``.
        out: folder, made where absent.

    Raises:
        ModelError: VLA or pruner cannot be used.
        InputError: an option that does not fit them, or another process builds in ``out``.
    """
    options = options or GraphOptions()
    if options.opset is None:
        options = replace(options, opset=18)
    source = load_source(vla_dir, pruner_file)
    file = Path(out) / ONNX_FILE
    with builder_lock(file.parent), staging(file.parent) as stage:
        manifest = write_engine(source, options, stage)
        publish(stage, file, manifest)
    return file, manifest


def write_engine(source: Source, options: GraphOptions, folder: Path) -> VisionManifest:
    """Write the ONNX files of a source into a folder. Returns their manifest, unwritten. Raises as ``build_onnx``."""
    depth = len(source.vision.visual.blocks)
    precision = choose_precision(options.precision, depth, options.fp32_mlp)
    facts = graph_facts(source, options, precision)
    graph = GraphWriter(options.opset)
    outputs = Network(graph, source.vision, source.pruner, precision).build(facts.max_keep)
    files = write_onnx(graph, outputs, facts, folder / ONNX_FILE, options.external)
    return VisionManifest(
        kind="onnx",
        files={path.name: file_info(path) for path in files},
        graph=facts,
        source=SourceInfo(vla=str(source.vla.path.resolve()), pruner=str(source.pruner_file.resolve())),
        versions=package_versions(),
        onnx={},
        target=None,
        parity=None,
    )


def graph_facts(source: Source, options: GraphOptions, precision: Precision) -> VisionGraphInfo:
    """The manifest's graph section. Raises InputError where ``max_keep`` is out of range."""
    vla = source.vla
    max_keep = vla.tokens if options.max_keep is None else options.max_keep
    if not 1 <= max_keep <= vla.tokens:
        raise InputError(f"max_keep: {max_keep} is not in 1..{vla.tokens}, the tokens of {vla.path}")
    return VisionGraphInfo(
        opset=options.opset,
        precision=precision.name,
        fp32_mlp=precision.fp32_mlp,
        cameras=tuple(vla.spec.cameras),
        image_size=tuple(vla.spec.image_size),
        grid=tuple(vla.grid),
        width=vla.width,
        max_keep=max_keep,
        encoder=vla.encoder_fingerprint,
        pruner=pruner_fingerprint(source.pruner_file),
    )


def package_versions() -> dict[str, str]:
    """Of Python and the packages that take part, where they are installed."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            _log.debug("%s is not installed", name)
    return versions
