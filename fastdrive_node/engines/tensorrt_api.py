"""What differs between TensorRT 8.5 and 11, in one place.

Members that a version may lack are reached through ``optional`` only; the numbers of enums move between versions, so
they are never used. Everything takes the module ``trt`` as an argument, so that it can be tested without one, and no
torch is needed: a build may run in a Python that has TensorRT and no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from fastdrive_node.errors import ModelError, UsageError

MAX_TOP_K = 3840  # TopK's largest K in every version
_NAMES = {"UINT8": "uint8", "INT32": "int32", "FLOAT": "float32"}


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
        import tensorrt  # pyright: ignore[reportMissingImports]  # on few machines
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


def check_opset(trt: Any, opset: int) -> None:
    """The graph is of the opset that this version reads.

    Raises:
        UsageError: it is not. No parser says so: those of 8.x average over all axes where opset 18 names one.
    """
    wanted = default_opset(trt)
    if opset != wanted:
        raise UsageError(f"opset: {opset}, but TensorRT {trt.__version__} is given {wanted}; leave --opset out")


def is_strongly_typed(trt: Any) -> bool:
    """Types are taken from the graph. Before 10 they are set layer by layer."""
    return optional(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") is not None


def start(make: Callable[[Any], Any], logger: Any) -> Any:
    """A builder or runtime: ``make`` is ``trt.Builder`` or ``trt.Runtime``.

    Raises:
        ModelError: TensorRT cannot use this machine's GPU. The bindings raise a TypeError without a reason.
    """
    try:
        return make(logger)
    except TypeError as error:
        raise ModelError(
            f"TensorRT does not start on this GPU and its driver: {logger.last or 'no reason given'}"
        ) from error


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

    Where the graph is float32 the products are full float32. In half-precision graphs TF32 may run the float32 parts:
    they need its range, not its precision.
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
        _leave_out_libraries(trt, config)
        if precision == "fp16":
            config.set_flag(optional(trt.BuilderFlag, "FP16"))
            config.set_flag(optional(trt.BuilderFlag, "OBEY_PRECISION_CONSTRAINTS"))
            flags["constrained_layers"] = constrain_layers(trt, network)
    return config, flags


def _leave_out_libraries(trt: Any, config: Any) -> None:
    """Before 10: no kernels of cuDNN and cuBLAS, which may be missing. 8.5 needs two settings for that."""
    config.set_tactic_sources(0)
    feature = optional(trt.PreviewFeature, "DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805")
    if feature is not None:
        config.set_preview_feature(feature, True)


def constrain_layers(trt: Any, network: Any) -> int:
    """Before 10: fix every layer to the float type that the parsed graph gives it. Returns how many.

    Also layers that only move data: the builder may run a free one in fp16 between two of float32, and the residual
    stream leaves fp16's range. Casts are left alone: the parser has set their types.
    """
    floats = {trt.DataType.FLOAT, trt.DataType.HALF}
    count = 0
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        outputs = [layer.get_output(index) for index in range(layer.num_outputs)]
        inputs = [layer.get_input(index) for index in range(layer.num_inputs)]
        types = floats.intersection(tensor.dtype for tensor in (*inputs, *outputs) if tensor is not None)
        from_others = bool(inputs) and inputs[0].dtype not in floats  # the pixels' uint8
        if outputs[0].dtype not in floats or len(types) != 1 or from_others:
            continue
        dtype = types.pop()
        layer.precision = dtype
        for output, tensor in enumerate(outputs):  # the indices of a TopK stay integers
            if tensor.dtype in floats:
                layer.set_output_type(output, dtype)
        count += 1
    return count


def load_timing_cache(config: Any, content: bytes) -> None:
    """Use the timing cache of an earlier build; an empty one where TensorRT refuses it."""
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)


def timing_cache_bytes(config: Any) -> bytes:
    """The timing cache after a build."""
    cache = config.get_timing_cache()
    return bytes(cache.serialize())


@dataclass(frozen=True)
class IoTensor:
    """An input or output of an engine."""

    name: str
    dtype: str  # uint8, int32, float32; another type under TensorRT's own name
    shape: tuple[int, ...]
    is_input: bool


def io_tensors(trt: Any, engine: Any) -> list[IoTensor]:
    """Inputs and outputs of an engine, in its order."""
    tensors = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        kind: str = engine.get_tensor_dtype(name).name
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        tensors.append(IoTensor(name, _NAMES.get(kind, kind), tuple(engine.get_tensor_shape(name)), is_input))
    return tensors


def device_memory_bytes(engine: Any) -> int:
    """Memory that an execution context allocates."""
    newer = optional(engine, "device_memory_size_v2")
    return int(optional(engine, "device_memory_size") if newer is None else newer)
