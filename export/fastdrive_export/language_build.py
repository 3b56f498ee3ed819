"""From a VLA directory to the ONNX file of its language half, with its manifest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fastdrive_export.build import GraphOptions, package_versions
from fastdrive_export.files import builder_lock, file_info, publish, staging
from fastdrive_export.graph_writer import GraphWriter
from fastdrive_export.language_network import LanguageNetwork
from fastdrive_export.onnx_file import write_onnx
from fastdrive_export.precision import choose_precision
from fastdrive_node.engines.graph_info import LanguageGraphInfo
from fastdrive_node.engines.language_engine import language_sizes
from fastdrive_node.engines.manifest import LanguageManifest, SourceInfo
from fastdrive_node.errors import InputError
from fastdrive_node.families.loading import load_vla
from fastdrive_node.families.qwen2_5_vl.language import LanguageModel
from fastdrive_node.families.vla import Vla
from fastdrive_node.planning.loading import default_vla_dir

LANGUAGE_FILE = "language.onnx"


def build_language(
    vla_dir: str | Path | None, out: str | Path, options: GraphOptions | None = None
) -> tuple[Path, LanguageManifest]:
    """Write ``language.onnx`` and its manifest. Returns both.

    Args:
        vla_dir: None for the shipped tiny VLA.
        out: folder, made where absent.
        options: without ``max_keep``, which is of vision engines.

    Raises:
        ModelError: the VLA cannot be used, or its language half has parts that the graph does not.
        InputError: an option that does not fit, or another process builds in ``out``.
    """
    options = options or GraphOptions()
    if options.max_keep is not None:
        raise InputError("max_keep: is of vision engines; a language engine takes any number of tokens")
    vla = load_vla(default_vla_dir() if vla_dir is None else Path(vla_dir), "cpu", "auto")
    file = Path(out) / LANGUAGE_FILE
    with builder_lock(file.parent), staging(file.parent) as stage:
        manifest = write_language(vla, options, stage)
        publish(stage, file, manifest)
    return file, manifest


def write_language(vla: Vla, options: GraphOptions, folder: Path) -> LanguageManifest:
    """Write the ONNX files into a folder. Returns their manifest, unwritten. Raises as ``build_language``."""
    LanguageModel(vla)  # refuses what the graph does not have either
    options = replace(options, opset=options.opset or 18)
    sizes = language_sizes(vla)
    # which layers leave fp16's range is a checkpoint's matter: none but those that are given
    precision = choose_precision(options.precision, sizes["layers"], options.fp32_mlp or (), "language model")
    facts = LanguageGraphInfo(
        opset=options.opset, precision=precision.name, fp32_mlp=precision.fp32_mlp, part="language", **sizes
    )
    graph = GraphWriter(options.opset)
    outputs = LanguageNetwork(graph, vla.model.model.language_model, vla.model.lm_head, facts, precision).build()
    files = write_onnx(graph, outputs, facts, folder / LANGUAGE_FILE, options.external)
    return LanguageManifest(
        kind="onnx",
        files={path.name: file_info(path) for path in files},
        graph=facts,
        source=SourceInfo(vla=str(vla.path.resolve()), pruner=""),
        versions=package_versions(),
        onnx={},
        target=None,
        parity=None,
    )
