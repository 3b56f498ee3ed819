"""A plan from an ONNX file, the list of its layers, and its execution on raw addresses. It needs no torch."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastdrive_node.engines.tensorrt_api import (
    BuilderSettings,
    check_opset,
    configure,
    create_network,
    load_timing_cache,
    parse_onnx,
    start,
    timing_cache_bytes,
)
from fastdrive_node.engines.tensorrt_messages import make_logger, progress
from fastdrive_node.errors import ModelError
from fastdrive_node.files import write_atomically

_log = logging.getLogger(__name__)


def serialize_plan(
    trt: Any, onnx_file: Path, opset: int, precision: str, settings: BuilderSettings, cache_file: Path
) -> tuple[Any, dict]:
    """Build a plan on the current GPU. Returns its content as a buffer, and the flags of the build for the manifest.

    Args:
        opset, precision: of the graph; the precision is fp32, fp16 or bf16.
        cache_file: timings, kept from one build to the next; made where it is missing.

    Raises:
        ModelError: TensorRT cannot use the GPU, refuses the graph, or finds no way to run it.
        UsageError: another opset than this TensorRT reads.
        KeyboardInterrupt: see ``progress``.
    """
    check_opset(trt, opset)
    logger = make_logger(trt)
    builder = start(trt.Builder, logger)
    network = create_network(trt, builder)
    parse_onnx(trt, network, logger, str(onnx_file))
    config, flags = configure(trt, builder, network, precision, settings)
    load_timing_cache(config, cache_file.read_bytes() if cache_file.is_file() else b"")
    with progress(trt, config):
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ModelError(f"TensorRT built no plan: {'; '.join(logger.errors)[:400] or 'no reason given'}")
    with write_atomically(cache_file) as partial:
        partial.write_bytes(timing_cache_bytes(config))
    return plan, flags


def engine_information(trt: Any, engine: Any) -> str:
    """TensorRT's own list of an engine's layers, as JSON."""
    inspector = engine.create_engine_inspector()
    return inspector.get_engine_information(trt.LayerInformationFormat.JSON)


def layer_rows(information: str) -> list[dict]:
    """Name, type and output type of each layer, from the engine inspector's JSON; versions differ in what it has."""
    try:
        layers = json.loads(information).get("Layers", [])
    except (ValueError, AttributeError):
        _log.warning("TensorRT's list of layers cannot be read")
        return []
    rows = []
    for entry in layers:
        details: Any = {"Name": entry} if isinstance(entry, str) else entry
        outputs = details.get("Outputs") or [{}]
        dtype = outputs[0].get("Format/Datatype") or outputs[0].get("Datatype") or ""
        rows.append({"name": details.get("Name", ""), "type": details.get("LayerType", ""), "precision": dtype})
    return rows


class PlanExecutor:
    """A deserialized plan with one execution context. It takes raw addresses and a raw stream.

    Args:
        trt: the TensorRT module.
        plan: content of the plan file, bytes or a buffer.

    Raises:
        ModelError: TensorRT cannot use the GPU, or does not accept the plan.
    """

    def __init__(self, trt: Any, plan: Any):
        self._logger = make_logger(trt)
        runtime = start(trt.Runtime, self._logger)
        engine = runtime.deserialize_cuda_engine(plan)
        context = None if engine is None else engine.create_execution_context()
        if context is None:
            raise ModelError(
                f"TensorRT does not accept the plan: {'; '.join(self._logger.errors)[:300] or 'no reason given'}"
            )
        self._runtime, self.engine, self._context = runtime, engine, context  # the runtime must outlive the engine

    def bind(self, pointers: Mapping[str, int]) -> None:
        """Set the device address of every input and output."""
        for name, address in pointers.items():
            if not self._context.set_tensor_address(name, address):
                raise ModelError(f"TensorRT: {name}: the address is refused: {'; '.join(self._logger.errors)[-300:]}")

    def enqueue(self, stream: int) -> None:
        """Put one run on a CUDA stream."""
        if not self._context.execute_async_v3(stream):
            raise ModelError(f"TensorRT: the run failed: {'; '.join(self._logger.errors)[-300:] or 'no reason given'}")
