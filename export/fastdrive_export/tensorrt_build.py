"""TensorRT plans: built on the machine that runs them, from the same graph as the ONNX file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastdrive_export.build import ONNX_FILE, GraphOptions, write_engine
from fastdrive_export.files import builder_lock, file_info, publish, staging
from fastdrive_export.source import load_source
from fastdrive_node.engines.graph_info import FUSED, STANDARD
from fastdrive_node.engines.manifest import Manifest, VisionManifest, check_tensors
from fastdrive_node.engines.tensorrt_api import MAX_TOP_K, BuilderSettings, check_opset, default_opset, load_tensorrt
from fastdrive_node.engines.tensorrt_plan import PlanExecutor, engine_information, layer_rows, serialize_plan
from fastdrive_node.engines.tensorrt_runner import io_table, present_target
from fastdrive_node.errors import ModelError, UsageError

PLAN_FILE = "vision.plan"
LAYERS_SUFFIX = ".layers.json"


def build_tensorrt(
    vla_dir: str | Path | None,
    pruner_file: str | Path | None,
    out: str | Path,
    options: GraphOptions | None = None,
    settings: BuilderSettings | None = None,
) -> tuple[Path, VisionManifest]:
    """Write ``vision.plan``, the list of its layers and its manifest. Returns the plan's path and the manifest.

    Args:
        options: ``opset`` None is the one that the installed TensorRT reads.
        settings: of TensorRT's builder.

    Raises:
        ModelError: no TensorRT or GPU, a VLA or pruner that cannot be used, or a graph that TensorRT refuses.
        UsageError: options that do not fit.
        InputError: another process builds in ``out``.
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
    """Options with the opset and the operators that this TensorRT reads. Raises UsageError for others."""
    if options.operators == FUSED:
        raise UsageError(f"operators: TensorRT has none of {FUSED}'s; give {STANDARD}")
    wanted = default_opset(trt)
    check_opset(trt, wanted if options.opset is None else options.opset)
    return replace(options, opset=wanted, operators=STANDARD)


def check_top_k(keep: int) -> None:
    """Raises UsageError where TensorRT cannot sort so many."""
    if keep > MAX_TOP_K:
        raise UsageError(
            f"max_keep: {keep} tokens, but TensorRT sorts at most {MAX_TOP_K}; give --max-keep {MAX_TOP_K} or less"
        )


def build_plan(
    trt: Any, onnx_path: Path, onnx: VisionManifest, stage: Path, settings: BuilderSettings, cache_folder: Path
) -> VisionManifest:
    """Build a plan of an ONNX file into ``stage``. Returns its manifest, unwritten.

    Args:
        onnx: manifest of the ONNX file.
        cache_folder: where timings are kept from one build to the next.

    Raises:
        ModelError: TensorRT refuses the graph, or gives a plan with other tensors.
        UsageError: the graph has another opset than this TensorRT reads.
    """
    device = torch.device("cuda", torch.cuda.current_device())
    target = present_target(trt, device)
    cache_file = cache_folder / _cache_name(target)
    plan, flags = serialize_plan(trt, onnx_path, onnx.graph.opset, onnx.graph.precision, settings, cache_file)
    file = stage / PLAN_FILE
    file.write_bytes(plan)
    executor = PlanExecutor(trt, plan)
    layers = file.with_name(file.name + LAYERS_SUFFIX)
    layers.write_text(json.dumps(layer_rows(engine_information(trt, executor.engine)), indent=1) + "\n")
    manifest = VisionManifest(
        kind="tensorrt",
        files={path.name: file_info(path) for path in (file, layers)},
        graph=onnx.graph,
        source=onnx.source,
        versions={**onnx.versions, "tensorrt": trt.__version__},
        onnx=onnx.files,
        target=target.model_copy(update={"flags": flags}),
        parity=None,
    )
    check_tensors(file, manifest, *io_table(trt, executor.engine))
    return manifest


def _cache_name(target) -> str:
    return f"tensorrt-{target.tensorrt}-sm{target.compute_capability.replace('.', '')}.timing"


def plan_layers(file: Path, manifest: Manifest) -> list[dict]:
    """The layers of a plan as they were listed at its build; TensorRT is not needed.

    Raises:
        ModelError: the list is missing or not readable.
    """
    path = file.with_name(file.name + LAYERS_SUFFIX)
    if path.name not in manifest.files:
        raise ModelError(f"{path}: not among the manifest's files; build the plan with this version of the package")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable as a list of layers ({error})") from error
