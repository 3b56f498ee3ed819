"""TensorRT plans: built on the machine that runs them, from the same graph as the ONNX file."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastdrive_export.build import ONNX_FILE, GraphOptions, write_engine
from fastdrive_export.files import builder_lock, facts_of, publish, staging
from fastdrive_export.source import load_source
from fastdrive_node.types import InputError, ModelError
from fastdrive_node.vision.manifest import Manifest
from fastdrive_node.vision.tensorrt_api import (
    MAX_TOP_K,
    BuilderSettings,
    configure,
    create_network,
    default_opset,
    io_table,
    load_tensorrt,
    load_timing_cache,
    make_logger,
    parse_onnx,
    progress,
    timing_cache_bytes,
)
from fastdrive_node.vision.tensorrt_backend import PlanExecutor, check_tensors, present_target

PLAN_FILE = "vision.plan"
LAYERS_SUFFIX = ".layers.json"
_log = logging.getLogger(__name__)


def build_tensorrt(
    vla_dir: str | Path | None,
    pruner_file: str | Path | None,
    out: str | Path,
    options: GraphOptions | None = None,
    settings: BuilderSettings | None = None,
) -> tuple[Path, Manifest]:
    """Write ``vision.plan``, the list of its layers and its manifest. Returns the plan's path and the manifest.

    Args:
        options: ``opset`` None is the one that the installed TensorRT reads.
        settings: of TensorRT's builder.

    Raises:
        ModelError: no TensorRT or GPU, a VLA or pruner that cannot be used, or a graph that TensorRT refuses.
        InputError: options that do not fit, or another process builds in ``out``.
    """
    trt = load_tensorrt()
    if not torch.cuda.is_available():
        raise ModelError(
            "tensorrt: torch finds no GPU, and a plan is built on the GPU that runs it; use --backend onnxruntime"
        )
    options = choose_options(trt, options or GraphOptions(opset=None))
    source = load_source(vla_dir, pruner_file)
    check_top_k(options.max_keep or source.vla.tokens)
    file = Path(out) / PLAN_FILE
    with builder_lock(file.parent), staging(file.parent) as stage:
        onnx = write_engine(source, options, stage)
        manifest = build_plan(trt, stage / ONNX_FILE, onnx, stage, settings or BuilderSettings(), file.parent)
        publish(stage, file, manifest)
    return file, manifest


def choose_options(trt: Any, options: GraphOptions) -> GraphOptions:
    """Options with the opset that this TensorRT reads. Raises InputError where they ask for more."""
    wanted = default_opset(trt)
    if options.opset not in (None, wanted):
        raise InputError(f"opset: {options.opset}, but TensorRT {trt.__version__} is given {wanted}; leave --opset out")
    return replace(options, opset=wanted)


def check_top_k(keep: int) -> None:
    """Raises InputError where TensorRT cannot sort so many."""
    if keep > MAX_TOP_K:
        raise InputError(
            f"max_keep: {keep} tokens, but TensorRT sorts at most {MAX_TOP_K}; give --max-keep {MAX_TOP_K} or less"
        )


def build_plan(
    trt: Any, onnx_path: Path, onnx: Manifest, stage: Path, settings: BuilderSettings, cache_folder: Path
) -> Manifest:
    """Build a plan of an ONNX file into ``stage``. Returns its manifest, unwritten.

    Args:
        onnx: manifest of the ONNX file.
        cache_folder: where timings are kept from one build to the next.

    Raises:
        ModelError: TensorRT refuses the graph, or gives a plan with other tensors.
    """
    device = torch.device("cuda", torch.cuda.current_device())
    target = present_target(trt, device)
    plan, flags = _serialize(trt, onnx_path, onnx.graph.precision, settings, cache_folder / _cache_name(target))
    file = stage / PLAN_FILE
    file.write_bytes(plan)
    executor = PlanExecutor(trt, plan)
    layers = file.with_name(file.name + LAYERS_SUFFIX)
    layers.write_text(json.dumps(layer_rows(_engine_information(trt, executor.engine)), indent=1) + "\n")
    manifest = replace(
        onnx,
        kind="tensorrt",
        files={path.name: facts_of(path) for path in (file, layers)},
        versions={**onnx.versions, "tensorrt": trt.__version__},
        onnx=onnx.files,
        target=replace(target, flags=flags),
    )
    check_tensors(file, manifest, *io_table(trt, executor.engine))
    return manifest


def _serialize(
    trt: Any, onnx_path: Path, precision: str, settings: BuilderSettings, cache_file: Path
) -> tuple[bytes, dict]:
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    network = create_network(trt, builder)
    parse_onnx(trt, network, logger, str(onnx_path))
    config, flags = configure(trt, builder, network, precision, settings)
    load_timing_cache(config, cache_file.read_bytes() if cache_file.is_file() else b"")
    with progress(trt, config):
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ModelError(f"TensorRT built no plan: {'; '.join(logger.errors)[:400] or 'no reason given'}")
    partial = cache_file.with_name(cache_file.name + ".partial")
    partial.write_bytes(timing_cache_bytes(config))
    os.replace(partial, cache_file)
    return bytes(plan), flags


def _cache_name(target) -> str:
    return f"tensorrt-{target.tensorrt}-sm{target.compute_capability.replace('.', '')}.timing"


def _engine_information(trt: Any, engine: Any) -> str:
    inspector = engine.create_engine_inspector()
    return inspector.get_engine_information(trt.LayerInformationFormat.JSON)


def layer_rows(information: str) -> list[dict]:
    """Name, type and output type of each layer, from the engine inspector's JSON; versions differ in what they tell."""
    try:
        layers = json.loads(information).get("Layers", [])
    except (ValueError, AttributeError):
        _log.warning("TensorRT's list of layers cannot be read")
        return []
    rows = []
    for entry in layers:
        facts = {"Name": entry} if isinstance(entry, str) else entry
        outputs = facts.get("Outputs") or [{}]
        kind = outputs[0].get("Format/Datatype") or outputs[0].get("Datatype") or ""
        rows.append({"name": facts.get("Name", ""), "type": facts.get("LayerType", ""), "precision": kind})
    return rows


def plan_layers(file: Path, manifest: Manifest) -> list[dict]:
    """The layers of a plan as they were listed at its build; no TensorRT is needed.

    Raises:
        ModelError: the list is missing or none.
    """
    path = file.with_name(file.name + LAYERS_SUFFIX)
    if path.name not in manifest.files:
        raise ModelError(f"{path}: not among the manifest's files; build the plan with this version of the package")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable as a list of layers ({error})") from error
