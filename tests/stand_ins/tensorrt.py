"""Stands for TensorRT: modules with the members of one version, which record what is asked of them.

As a module it is TensorRT 8.5 for an interpreter without the real one: a plan is the graph's path, and onnxruntime runs
it. It is as strict as the real one where that bites: the opset, the flags of the network, the libraries that are not
installed, types that nobody set. ``$STAND_IN_TENSORRT`` makes it fail: ``no_gpu``, ``no_plan`` or ``crash``.
"""

import ctypes
import json
import os
from types import SimpleNamespace

import numpy as np

VERSIONS = ("8.5.3.1", "8.6.1.6", "10.3.0.26", "10.13.3.9", "11.4.0.106")
_TYPES = {
    "tensor(uint8)": ("UINT8", "uint8"),
    "tensor(int32)": ("INT32", "int32"),
    "tensor(float)": ("FLOAT", "float32"),
}


class _Member(str):
    @property
    def name(self):
        return str(self)


def _enum(*names):
    return SimpleNamespace(**{name: _Member(name) for name in names})


def stand_in(version: str):
    """A module with the members that this version of TensorRT has, as far as versions differ."""
    major, minor = (int(part) for part in version.split(".")[:2])
    creation = {} if major >= 11 else {"EXPLICIT_BATCH": 0}
    if major >= 10:
        creation["STRONGLY_TYPED"] = 1
    levels = {"builder_optimization_level": 0} if (major, minor) >= (8, 6) else {}
    preview = "DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805" if major < 10 else "PROFILE_SHARING_0806"
    module = SimpleNamespace(
        __version__=version,
        PreviewFeature=_enum(preview),
        NetworkDefinitionCreationFlag=SimpleNamespace(**creation),
        BuilderFlag=_enum("TF32", *([] if major >= 11 else ["FP16", "OBEY_PRECISION_CONSTRAINTS"])),
        IBuilderConfig=type("IBuilderConfig", (), levels),
        MemoryPoolType=_enum("WORKSPACE"),
        ProfilingVerbosity=_enum("DETAILED"),
        LayerInformationFormat=_enum("JSON"),
        DataType=_enum("FLOAT", "HALF", "INT32", "UINT8"),
        TensorIOMode=_enum("INPUT", "OUTPUT"),
        ILogger=ILogger,
        Builder=Builder,
        OnnxParser=OnnxParser,
        Runtime=Runtime,
    )
    if major >= 10:
        module.IProgressMonitor = type("IProgressMonitor", (), {})
    return module


class ILogger:
    Severity = _enum("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")

    def __init__(self):
        pass


class Config:
    """Records what is set."""

    def __init__(self):
        self.set_flags, self.cleared, self.limits = [], [], {}
        self.tactic_sources, self.preview = None, {}
        self.caches = []

    def set_flag(self, flag):
        assert flag is not None
        self.set_flags.append(flag)

    def clear_flag(self, flag):
        self.cleared.append(flag)

    def set_memory_pool_limit(self, pool, size):
        assert size > 1 << 20  # bytes
        self.limits[pool] = size

    def set_tactic_sources(self, sources):
        self.tactic_sources = sources

    def set_preview_feature(self, feature, enable):
        self.preview[feature] = enable

    def create_timing_cache(self, content):
        return SimpleNamespace(content=content)

    def set_timing_cache(self, cache, ignore_mismatch):
        assert ignore_mismatch is False
        self.caches.append(cache.content)
        return cache.content != b"of another GPU"

    def get_timing_cache(self):
        return SimpleNamespace(serialize=lambda: b"timings")


class _Layer:
    """A product in fp16, or a cast to it that nobody may touch."""

    num_inputs, num_outputs = 1, 1

    def __init__(self, source):
        self.source, self.precision, self.output = source, None, None

    def get_input(self, index):
        return SimpleNamespace(dtype=self.source)

    def get_output(self, index):
        return SimpleNamespace(dtype="HALF")

    def set_output_type(self, index, dtype):
        self.output = dtype


class _Network:
    def __init__(self, flags):
        self.flags = flags
        self.layers, self.num_layers = [_Layer("HALF"), _Layer("FLOAT")], 2

    def get_layer(self, index):
        return self.layers[index]


class Builder:
    def __init__(self, logger=None, config=None):
        self.logger, self.config = logger, config or Config()
        if os.environ.get("STAND_IN_TENSORRT") == "no_gpu":
            logger.log(ILogger.Severity.WARNING, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(self, flags):
        return _Network(flags)

    def create_builder_config(self):
        return self.config

    def build_serialized_network(self, network, config):
        failure = os.environ.get("STAND_IN_TENSORRT")
        if failure == "crash":
            os._exit(11)
        constrained = [layer.precision for layer in network.layers] == ["HALF", None]
        if "FP16" in config.set_flags and not (constrained and "OBEY_PRECISION_CONSTRAINTS" in config.set_flags):
            failure = "types"
        if config.tactic_sources != 0 or not all(config.preview.values()) or not config.preview:
            failure = "libcudnn.so.8 is not installed"
        if network.flags != 1 << 0:
            failure = "the batch is implicit"
        if failure:
            self.logger.log(ILogger.Severity.ERROR, failure)
            return None
        return json.dumps({"onnx": network.path}).encode()


class OnnxParser:
    num_errors = 0

    def __init__(self, network, logger):
        self.network = network

    def parse_from_file(self, path):
        import onnx

        self.network.path = path
        return onnx.load(path, load_external_data=False).opset_import[0].version == 17


class Runtime:
    def __init__(self, logger):
        pass

    def deserialize_cuda_engine(self, plan):
        return _Engine(json.loads(bytes(plan))["onnx"])


class _Engine:
    device_memory_size = 1 << 20

    def __init__(self, path):
        import onnxruntime

        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.inputs, self.outputs = self.session.get_inputs(), self.session.get_outputs()
        self.tensors = {each.name: each for each in [*self.inputs, *self.outputs]}
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index):
        return list(self.tensors)[index]

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name=_TYPES[self.tensors[name].type][0])

    def get_tensor_shape(self, name):
        return self.tensors[name].shape

    def get_tensor_mode(self, name):
        return "INPUT" if name in {each.name for each in self.inputs} else "OUTPUT"

    def create_execution_context(self):
        return _Context(self)

    def create_engine_inspector(self):
        layers = [{"Name": "all", "LayerType": "gemm", "Outputs": [{"Format/Datatype": "Half"}]}]
        return SimpleNamespace(get_engine_information=lambda form: json.dumps({"Layers": layers}))


class _Context:
    def __init__(self, engine):
        self.engine, self.addresses = engine, {}

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return name in self.engine.tensors

    def execute_async_v3(self, stream):
        names = [each.name for each in self.engine.outputs]
        inputs = {each.name: self._array(each).copy() for each in self.engine.inputs}
        for each, value in zip(self.engine.outputs, self.engine.session.run(names, inputs), strict=True):
            self._array(each)[...] = value
        return True

    def _array(self, tensor):
        dtype = np.dtype(_TYPES[tensor.type][1])
        size = int(np.prod(tensor.shape)) * dtype.itemsize
        memory = (ctypes.c_char * size).from_address(self.addresses[tensor.name])
        return np.frombuffer(memory, dtype).reshape(tensor.shape)


globals().update(vars(stand_in(VERSIONS[0])))
