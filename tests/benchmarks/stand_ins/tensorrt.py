"""Stands for TensorRT 8.5, as far as the worker uses it: a plan is the graph's path, and onnxruntime runs it.

It is as strict as the real one where that bites: the opset, the flags of the network, the libraries that are not
installed, types that nobody set. ``$STAND_IN_TENSORRT`` makes it fail: ``no_gpu``, ``no_plan`` or ``crash``.
"""

import ctypes
import json
import os
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime

__version__ = "8.5.3.1"


class _Member:
    def __init__(self, name):
        self.name = name


def _enum(*names):
    return SimpleNamespace(**{name: _Member(name) for name in names})


NetworkDefinitionCreationFlag = SimpleNamespace(EXPLICIT_BATCH=0)
BuilderFlag = _enum("FP16", "OBEY_PRECISION_CONSTRAINTS", "TF32")
MemoryPoolType = _enum("WORKSPACE")
ProfilingVerbosity = _enum("DETAILED")
PreviewFeature = _enum("DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805")
LayerInformationFormat = _enum("JSON")
TensorIOMode = _enum("INPUT", "OUTPUT")
DataType = SimpleNamespace(FLOAT="FLOAT", HALF="HALF")
_TYPES = {
    "tensor(uint8)": ("UINT8", "uint8"),
    "tensor(int32)": ("INT32", "int32"),
    "tensor(float)": ("FLOAT", "float32"),
}


class ILogger:
    Severity = _enum("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")

    def __init__(self):
        pass


class IBuilderConfig:
    def __init__(self):
        self.flags, self.sources, self.preview = set(), None, False

    def set_flag(self, flag):
        self.flags.add(flag.name)

    def clear_flag(self, flag):
        self.flags.discard(flag.name)

    def set_memory_pool_limit(self, pool, size):
        assert size > 1 << 20

    def set_tactic_sources(self, sources):
        self.sources = sources

    def set_preview_feature(self, feature, enable):
        self.preview = enable

    def create_timing_cache(self, content):
        return SimpleNamespace(serialize=lambda: b"timings")

    def set_timing_cache(self, cache, ignore_mismatch):
        self.cache = cache
        return True

    def get_timing_cache(self):
        return self.cache


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
    def __init__(self):
        self.layers, self.num_layers = [_Layer("HALF"), _Layer("FLOAT")], 2

    def get_layer(self, index):
        return self.layers[index]


class Builder:
    def __init__(self, logger):
        self.logger = logger
        if os.environ.get("STAND_IN_TENSORRT") == "no_gpu":
            logger.log(ILogger.Severity.WARNING, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(self, flags):
        assert flags == 1 << NetworkDefinitionCreationFlag.EXPLICIT_BATCH
        return _Network()

    def create_builder_config(self):
        return IBuilderConfig()

    def build_serialized_network(self, network, config):
        failure = os.environ.get("STAND_IN_TENSORRT")
        if failure == "crash":
            os._exit(11)
        constrained = [layer.precision for layer in network.layers] == ["HALF", None]
        if "FP16" in config.flags and not (constrained and "OBEY_PRECISION_CONSTRAINTS" in config.flags):
            failure = "types"
        if config.sources != 0 or not config.preview:
            failure = "libcudnn.so.8 is not installed"
        if failure:
            self.logger.log(ILogger.Severity.ERROR, failure)
            return None
        return json.dumps({"onnx": network.path}).encode()


class OnnxParser:
    num_errors = 0

    def __init__(self, network, logger):
        self.network = network

    def parse_from_file(self, path):
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
        return TensorIOMode.INPUT if name in {each.name for each in self.inputs} else TensorIOMode.OUTPUT

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
