"""What differs between TensorRT 8.5 and 11, in one place.

Members that a version may lack are reached through ``optional`` only; the numbers of enums move between versions, so
they are never used. Everything takes the module ``trt`` as an argument, so that it can be tested without one.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from tqdm import tqdm

from fastdrive_node.types import ModelError
from fastdrive_node.vision.manifest import TensorFacts

MAX_TOP_K = 3840  # TopK's largest K in every version
HEARTBEAT_S = 10.0
_NAMES = {"UINT8": "uint8", "INT32": "int32", "FLOAT": "float32"}
# Layers that compute. Others only move numbers and keep the type of what they move.
_COMPUTING = ("ACTIVATION", "ELEMENTWISE", "MATRIX_MULTIPLY", "REDUCE", "SOFTMAX", "TOPK", "UNARY")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuilderSettings:
    """How a plan is built.

    Fields:
        workspace_mib: scratch memory that a layer may use.
        optimization_level: 0 to 5; from 8.6 on. Lower builds faster, higher may run faster.
    """

    workspace_mib: int = 2048
    optimization_level: int = 3


def load_tensorrt() -> ModuleType:
    """The TensorRT module.

    Raises:
        ModelError: it is not installed, or older than 8.5.
    """
    try:
        import tensorrt
    except ImportError as error:
        raise ModelError(
            f"tensorrt: not installed for this Python ({error}); JetPack brings it, on x86 install the tensorrt wheel "
            "of your CUDA version"
        ) from error
    if version_of(tensorrt) < (8, 5):
        raise ModelError(f"tensorrt: {tensorrt.__version__} is installed; 8.5 or later is needed")
    return tensorrt


def version_of(trt: Any) -> tuple[int, int]:
    """(major, minor)."""
    major, minor = trt.__version__.split(".")[:2]
    return int(major), int(minor)


def optional(owner: Any, name: str) -> Any:
    """A member that a version may lack; None where it does."""
    return getattr(owner, name, None)


def default_opset(trt: Any) -> int:
    """The opset whose ReduceMean this version reads: before 10 the axes must be attributes."""
    return 18 if version_of(trt) >= (10, 0) else 17


def is_strongly_typed(trt: Any) -> bool:
    """Types are taken from the graph. Before 10 they are set layer by layer."""
    return optional(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") is not None


def create_network(trt: Any, builder: Any) -> Any:
    """A network with explicit batch, strongly typed where the version can."""
    flags = 0
    for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED"):
        member = optional(trt.NetworkDefinitionCreationFlag, name)
        if member is not None:
            flags |= 1 << int(member)
    return builder.create_network(flags)


def parse_onnx(trt: Any, network: Any, logger: Any, path: str) -> None:
    """Read an ONNX file, with its external data, into a network.

    Raises:
        ModelError: the parser refuses it; the text has the parser's reasons.
    """
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(path):
        parser_errors = [parser.get_error(index) for index in range(parser.num_errors)]
        reasons = [str(parser_error.desc()) for parser_error in parser_errors]
        raise ModelError(f"{path}: TensorRT's parser refuses it: {'; '.join(reasons)[:400] or 'no reason given'}")


def configure(trt: Any, builder: Any, network: Any, precision: str, settings: BuilderSettings) -> tuple[Any, dict]:
    """A builder configuration, and the flags that it stands for, for the manifest.

    Full float32 products are asked for where the graph is float32; beside half types TF32 may serve the islands, whose
    range is what counts.
    """
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib << 20)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that the layers can be listed
    flags: dict[str, bool | int | str] = {
        "strongly_typed": is_strongly_typed(trt),
        "tf32": precision != "fp32",
        "workspace_mib": settings.workspace_mib,
    }
    if precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)
    if optional(trt.IBuilderConfig, "builder_optimization_level") is not None:
        config.builder_optimization_level = settings.optimization_level
        flags["optimization_level"] = settings.optimization_level
    if not flags["strongly_typed"]:
        config.set_tactic_sources(0)  # of cuDNN and cuBLAS, which need not be installed
        if precision == "fp16":
            config.set_flag(optional(trt.BuilderFlag, "FP16"))
            config.set_flag(optional(trt.BuilderFlag, "OBEY_PRECISION_CONSTRAINTS"))
            flags["constrained_layers"] = constrain_layers(trt, network)
    return config, flags


def constrain_layers(trt: Any, network: Any) -> int:
    """Before 10: fix each computing layer to the type of its parsed output. Returns how many."""
    kinds = {optional(trt.LayerType, name) for name in _COMPUTING} - {None}
    floats = (trt.DataType.FLOAT, trt.DataType.HALF)
    count = 0
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type not in kinds:
            continue
        dtype = layer.get_output(0).dtype
        if dtype in floats:
            layer.precision = dtype
            layer.set_output_type(0, dtype)
            count += 1
    return count


def load_timing_cache(config: Any, content: bytes) -> None:
    """Use the timing cache of an earlier build; an empty one where TensorRT does not take it."""
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)


def timing_cache_bytes(config: Any) -> bytes:
    """The timing cache after a build."""
    cache = config.get_timing_cache()
    return bytes(cache.serialize())


def make_logger(trt: Any) -> Any:
    """TensorRT's messages as log records; ``errors`` holds the texts of the errors."""
    levels = {
        trt.ILogger.Severity.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.Severity.ERROR: logging.ERROR,
        trt.ILogger.Severity.WARNING: logging.WARNING,
        trt.ILogger.Severity.INFO: logging.DEBUG,
    }

    class Logger(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity, text):
            level = levels.get(severity)
            if level is None:
                return
            if level == logging.ERROR:
                self.errors.append(" ".join(str(text).split()))
            _log.log(level, "%s", text)

    return Logger()


@contextmanager
def progress(trt: Any, config: Any) -> Iterator[None]:
    """Shows that a build goes on: a bar for each phase where the version tells them, a line now and then elsewhere."""
    if optional(trt, "IProgressMonitor") is None:
        with _heartbeat():
            yield
        return
    monitor = _make_monitor(trt)
    config.progress_monitor = monitor
    try:
        yield
    finally:
        monitor.close()


def _make_monitor(trt: Any) -> Any:
    class Monitor(trt.IProgressMonitor):
        def __init__(self):
            trt.IProgressMonitor.__init__(self)
            self._bars: dict[str, tqdm] = {}

        def phase_start(self, phase_name, parent_phase, num_steps):
            indent = "  " if parent_phase else ""
            bar = tqdm(total=num_steps, desc=indent + phase_name, leave=not parent_phase, file=sys.stderr, disable=None)
            self._bars[phase_name] = bar

        def step_complete(self, phase_name, step):
            bar = self._bars.get(phase_name)
            if bar is not None:
                bar.update(step + 1 - bar.n)
            return True

        def phase_finish(self, phase_name):
            bar = self._bars.pop(phase_name, None)
            if bar is not None:
                bar.close()

        def close(self):
            for name in list(self._bars):
                self.phase_finish(name)

    return Monitor()


@contextmanager
def _heartbeat() -> Iterator[None]:
    done, start = threading.Event(), time.monotonic()

    def beat() -> None:
        while not done.wait(HEARTBEAT_S):
            print(f"building the engine for {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def io_table(trt: Any, engine: Any) -> tuple[dict[str, TensorFacts], dict[str, TensorFacts]]:
    """Inputs and outputs of an engine."""
    inputs, outputs = {}, {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        kind = engine.get_tensor_dtype(name).name
        facts = TensorFacts(_NAMES.get(kind, kind), tuple(engine.get_tensor_shape(name)))
        (inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs)[name] = facts
    return inputs, outputs


def device_memory_bytes(engine: Any) -> int:
    """Memory that an execution context allocates."""
    newer = optional(engine, "device_memory_size_v2")
    return int(optional(engine, "device_memory_size") if newer is None else newer)
