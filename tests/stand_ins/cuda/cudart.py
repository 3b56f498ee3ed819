"""The CUDA runtime in host memory, with cuda-python's way of giving (error, value)."""

import ctypes
from enum import IntEnum


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


_OK = cudaError_t.cudaSuccess
_memory = {}


def cudaMalloc(size):
    buffer = ctypes.create_string_buffer(size)
    _memory[ctypes.addressof(buffer)] = buffer
    return _OK, ctypes.addressof(buffer)


def cudaMemcpy(dst, src, count, kind):
    device = dst if kind is cudaMemcpyKind.cudaMemcpyHostToDevice else src
    if count > len(_memory.get(device, b"")):
        return (cudaError_t.cudaErrorInvalidValue,)
    ctypes.memmove(dst, src, count)
    return (_OK,)


def cudaStreamCreate():
    return _OK, 7


def cudaStreamSynchronize(stream):
    return (_OK,)


def cudaEventCreate():
    return _OK, object()


def cudaEventRecord(event, stream):
    return (_OK,)


def cudaEventElapsedTime(start, end):
    return _OK, 1.5


def cudaStreamBeginCapture(stream, mode):
    return (_OK,)


def cudaStreamEndCapture(stream):
    return _OK, "graph"


def cudaGraphInstantiateWithFlags(graph, flags):
    return _OK, "executable"


def cudaGraphLaunch(graph, stream):
    return (_OK,) if graph == "executable" else (cudaError_t.cudaErrorInvalidValue,)
