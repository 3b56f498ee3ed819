"""Writes ONNX graphs node by node, with explicit types and shapes. A length is a number or, where it varies, a name.

Why torch's exporters are not used (docs/decisions/0005): the one that can write opset 17, which TensorRT 8 needs, is
being removed from torch; the other one writes opset 18 and later. Both run the model once, while this writes the graph
of the 3B tower in a second. Every value has its shape and type, so a wrong cast or reshape is an error here and not on
the target.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partialmethod
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

FLOAT, FLOAT16, BFLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
TORCH_TYPES: dict[int, torch.dtype] = {FLOAT: torch.float32, FLOAT16: torch.float16, BFLOAT16: torch.bfloat16}
IR_VERSION = 8  # the newest that TensorRT 8.5's parser was made for
CONTRIBUTED = "com.microsoft"  # domain of onnxruntime's own operators

Length = int | str  # a name stands for a length that is known when the graph runs
Shape = tuple[Any, ...]  # of Length


@dataclass(frozen=True)
class Value:
    """A tensor in the graph."""

    name: str
    shape: Shape
    dtype: int  # TensorProto.DataType


@dataclass(frozen=True)
class Weight:
    """A parameter whose values are made when they are written: only one at a time is in memory twice."""

    value: Value
    make: Callable[[], torch.Tensor]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.value.shape)) * TORCH_TYPES[self.value.dtype].itemsize

    def raw(self) -> bytes:
        """Little-endian bytes in row-major order."""
        tensor = self.make().detach().to("cpu", TORCH_TYPES[self.value.dtype]).contiguous()
        if tuple(tensor.shape) != self.value.shape:
            raise ValueError(f"{self.value.name}: shape {tuple(tensor.shape)}, declared {self.value.shape}")
        return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


class GraphWriter:
    """A graph under construction.

    Args:
        opset: 17 or 18; of what is used here, only ReduceMean differs: where it takes its axes.
        fused: whether the graph may have onnxruntime's own operators.
    """

    def __init__(self, opset: int, fused: bool = False):
        self.opset, self.fused = opset, fused
        self.inputs: list[Value] = []
        self.weights: list[Weight] = []
        self._nodes: list[NodeProto] = []
        self._values: list[Value] = []
        self._constants: dict[tuple, Value] = {}
        self._initializers: list[TensorProto] = []
        self._scopes: list[str] = []
        self._counts: Counter[str] = Counter()

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Node names inside start with ``name/``."""
        self._scopes.append(name)
        yield
        self._scopes.pop()

    def input(self, name: str, shape: Sequence[Length], dtype: int) -> Value:
        self.inputs.append(Value(name, tuple(shape), dtype))
        return self.inputs[-1]

    def weight(self, name: str, shape: Sequence[int], make: Callable[[], torch.Tensor], dtype: int = FLOAT) -> Value:
        """A parameter of the model; ``make`` gives its tensor, of any float type."""
        value = Value(name, tuple(shape), dtype)
        self.weights.append(Weight(value, make))
        return value

    def constant(self, array: np.ndarray | float | Sequence[int]) -> Value:
        """float32 or int64 values that are not parameters; equal ones are stored once."""
        array = np.asarray(array)
        array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._initializers.append(numpy_helper.from_array(array, name))
            dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
            self._constants[key] = Value(name, array.shape, dtype)
        return self._constants[key]

    def op(self, kind: str, inputs: Sequence[Value], shape: Sequence[Length], dtype: int, **attributes) -> Value:
        """One node with one output."""
        return self._node(kind, inputs, [(shape, dtype)], **attributes)[0]

    def contributed(
        self,
        kind: str,
        inputs: Sequence[Value | None],
        shapes: Sequence[Sequence[Length] | None],
        names: Sequence[str] = (),
        **attributes,
    ) -> list[Value]:
        """One node of an operator of onnxruntime's own.

        Args:
            inputs: None for an optional one that is left out.
            shapes: of the outputs, which are float32; None for one that is left out.
            names: of the graph's outputs that the last of them are.
        """
        given = [Value("", (), FLOAT) if value is None else value for value in inputs]
        return self._node(kind, given, [(shape, FLOAT) for shape in shapes], names, domain=CONTRIBUTED, **attributes)

    def _node(
        self,
        kind: str,
        inputs: Sequence[Value],
        outputs: Sequence[tuple[Sequence[Length] | None, int]],
        last: Sequence[str] = (),
        **attributes,
    ) -> list[Value]:
        stem = "/".join([*self._scopes, kind])
        self._counts[stem] += 1
        name = f"{stem}_{self._counts[stem]}"
        stems = [*(f"{name}:{index}" for index in range(len(outputs) - len(last))), *last]
        values = [
            Value("" if shape is None else stem, _plain(shape or ()), dtype)
            for stem, (shape, dtype) in zip(stems, outputs, strict=True)
        ]
        names = [value.name for value in inputs]
        self._nodes.append(helper.make_node(kind, names, [value.name for value in values], name=name, **attributes))
        self._values += [value for value in values if value.name not in ("", *last)]
        return values

    def cast(self, x: Value, dtype: int) -> Value:
        return x if x.dtype == dtype else self.op("Cast", [x], x.shape, dtype, to=dtype)

    def _elementwise(self, kind: str, a: Value, b: Value | float) -> Value:
        b = b if isinstance(b, Value) else self.constant(float(b))
        if a.dtype != b.dtype:
            raise TypeError(f"{kind} of {a} and {b}: the types differ")
        return self.op(kind, [a, b], _broadcast(a.shape, b.shape), a.dtype)

    add = partialmethod(_elementwise, "Add")
    sub = partialmethod(_elementwise, "Sub")
    mul = partialmethod(_elementwise, "Mul")
    div = partialmethod(_elementwise, "Div")

    def unary(self, kind: str, x: Value) -> Value:
        """Sqrt, Sigmoid, Erf, ..."""
        return self.op(kind, [x], x.shape, x.dtype)

    def matmul(self, a: Value, b: Value) -> Value:
        if a.dtype != b.dtype or a.shape[-1] != b.shape[-2]:
            raise TypeError(f"MatMul of {a} and {b}")
        shape = (*_broadcast(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
        return self.op("MatMul", [a, b], shape, a.dtype)

    def matmul_transposed(self, a: Value, b: Value) -> Value:
        """a [m, k] times b [n, k] transposed; the weight has torch's layout."""
        if a.dtype != b.dtype or a.shape[1] != b.shape[1]:
            raise TypeError(f"Gemm of {a} and {b}")
        return self.op("Gemm", [a, b], (a.shape[0], b.shape[0]), a.dtype, transB=1)

    def softmax(self, x: Value) -> Value:
        """Over the last axis."""
        return self.op("Softmax", [x], x.shape, x.dtype, axis=-1)

    def mean(self, x: Value) -> Value:
        """Over the last axis, which stays with length 1."""
        shape = (*x.shape[:-1], 1)
        if self.opset >= 18:
            return self.op("ReduceMean", [x, self.constant([-1])], shape, x.dtype, keepdims=1)
        return self.op("ReduceMean", [x], shape, x.dtype, axes=[-1], keepdims=1)

    def reshape(self, x: Value, shape: Sequence[Length]) -> Value:
        """``shape`` has the same names as that of ``x``, one at most."""
        names = [length for length in shape if isinstance(length, str)]
        if _size(shape) != _size(x.shape) or len(names) > 1:
            raise ValueError(f"Reshape of {x} to {shape}")
        numbers = [-1 if isinstance(length, str) else length for length in shape]
        return self.op("Reshape", [x, self.constant(numbers)], shape, x.dtype)

    def transpose(self, x: Value, order: Sequence[int]) -> Value:
        return self.op("Transpose", [x], [x.shape[axis] for axis in order], x.dtype, perm=list(order))

    def expand(self, x: Value, shape: Sequence[int]) -> Value:
        return self.op("Expand", [x, self.constant(list(shape))], shape, x.dtype)

    def slice(self, x: Value, axis: int, start: int, stop: int) -> Value:
        """On an axis whose length is a number."""
        axis %= len(x.shape)
        if not 0 <= start < stop <= x.shape[axis]:
            raise ValueError(f"Slice {start}:{stop} on axis {axis} of {x}")
        if stop - start == x.shape[axis]:
            return x
        shape = (*x.shape[:axis], stop - start, *x.shape[axis + 1 :])
        limits = [self.constant([number]) for number in (start, stop, axis)]
        return self.op("Slice", [x, *limits], shape, x.dtype)

    def concat(self, parts: Sequence[Value], axis: int, name: str | None = None) -> Value:
        """``name``: of the joined length, where it varies."""
        if len(parts) == 1:
            return parts[0]
        axis %= len(parts[0].shape)
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts) if name is None else name
        return self.op("Concat", parts, shape, parts[0].dtype, axis=axis)

    def gather(self, x: Value, indices: Value, axis: int) -> Value:
        """``indices`` is one-dimensional."""
        shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
        return self.op("Gather", [x, indices], shape, x.dtype, axis=axis)

    def top(self, x: Value, count: int) -> tuple[Value, Value]:
        """The largest of a vector in descending order, equal ones in index order: values, int64 indices."""
        outputs = [((count,), x.dtype), ((count,), TensorProto.INT64)]
        values, indices = self._node("TopK", [x, self.constant([count])], outputs, axis=0, largest=1, sorted=1)
        return values, indices

    def output(self, x: Value, name: str) -> Value:
        """The value under an output's name."""
        value = Value(name, x.shape, x.dtype)
        self._nodes.append(helper.make_node("Identity", [x.name], [name], name=f"output/{name}"))
        return value

    def model(self, name: str, outputs: Sequence[Value], weights: Sequence[TensorProto], metadata: dict) -> ModelProto:
        """The finished graph.

        Args:
            weights: the initializers of ``self.weights``, inside or with their data in a second file.
            metadata: text by key.
        """
        graph = helper.make_graph(
            self._nodes,
            name,
            [_info(value) for value in self.inputs],
            [_info(value) for value in outputs],
            [*self._initializers, *weights],
            value_info=[_info(value) for value in self._values],
        )
        opsets = [helper.make_opsetid("", self.opset)]
        if self.fused:
            opsets.append(helper.make_opsetid(CONTRIBUTED, 1))
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="fastdrive_export")
        helper.set_model_props(model, metadata)
        return model


def _plain(shape: Sequence[Length]) -> Shape:
    """Protobuf does not take numpy's integers."""
    return tuple(length if isinstance(length, str) else int(length) for length in shape)


def _size(shape: Sequence[Length]) -> tuple[int, list[str]]:
    """Values of a tensor: the product of the numbers, and the names."""
    numbers = [length for length in shape if not isinstance(length, str)]
    return int(np.prod(numbers)), sorted(length for length in shape if isinstance(length, str))


def _broadcast(a: Shape, b: Shape) -> Shape:
    """The shape of an elementwise result. A name fits itself and 1. Raises ValueError where they do not fit."""
    rank = max(len(a), len(b))
    lengths = []
    for ours, theirs in zip((1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b, strict=True):
        if ours != theirs and 1 not in (ours, theirs):
            raise ValueError(f"shapes {a} and {b} do not fit")
        lengths.append(theirs if ours == 1 else ours)
    return tuple(lengths)


def _info(value: Value):
    return helper.make_tensor_value_info(value.name, value.dtype, value.shape)
