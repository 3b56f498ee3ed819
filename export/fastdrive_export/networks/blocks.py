"""Parts that the graphs of encoder, pruner and language model have in common."""

from __future__ import annotations

from typing import Any

import torch

from fastdrive_export.graph_writer import FLOAT, GraphWriter, Value
from fastdrive_export.precision import Precision


class Blocks:
    """Emits parts of a network into a graph; see ``precision`` for the types.

    Args:
        graph: to write to.
        precision: types of the parts.
    """

    def __init__(self, graph: GraphWriter, precision: Precision):
        self.graph = graph
        self.precision = precision

    def _rotate(self, states: Value, cos: Value, sin: Value) -> Value:
        """Rotary embedding in float32; the sign of rotate-half is folded into ``sin``.

        Args:
            states: [..., heads, head dim].
            cos, sin: float32 that broadcast with it.
        """
        graph, states = self.graph, self._wide(states)
        size = states.shape[-1]
        swapped = graph.concat([graph.slice(states, -1, size // 2, size), graph.slice(states, -1, 0, size // 2)], -1)
        swapped = graph.mul(swapped, sin)
        return graph.add(graph.mul(states, cos), swapped)

    def _gate_up(self, mlp: Any, normed: Value, name: str) -> list[Value]:
        return [self._linear(getattr(mlp, part), normed, f"{name}.{part}") for part in ("gate_proj", "up_proj")]

    def _gated(self, mlp: Any, normed: Value, name: str, narrow: bool) -> Value:
        """The gated MLP; ``narrow``: its product and down projection compute in the half type. float32 out."""
        graph, dtype = self.graph, self.precision.compute if narrow else FLOAT
        gate, up = (graph.cast(part, dtype) for part in self._gate_up(mlp, normed, name))
        product = graph.mul(graph.mul(gate, graph.unary("Sigmoid", gate)), up)
        return self._wide(self._linear(mlp.down_proj, product, f"{name}.down_proj", dtype))

    def _linear(self, linear: Any, x: Value, name: str, dtype: int | None = None) -> Value:
        """``x`` in ``dtype`` (None: the compute type) through a linear layer."""
        return self._joined([linear], x, name, dtype)

    def _joined(self, parts: list[Any], x: Value, name: str, dtype: int | None = None) -> Value:
        """Linear layers of one input as one product; their outputs are concatenated."""
        graph, dtype = self.graph, self.precision.compute if dtype is None else dtype
        shape = (parts[0].in_features, sum(part.out_features for part in parts))
        weight = graph.weight(f"{name}.weight", shape, lambda: torch.cat([part.weight for part in parts]).T, dtype)
        product = graph.matmul(graph.cast(x, dtype), weight)
        if parts[0].bias is None:
            return product
        bias = graph.weight(f"{name}.bias", shape[1:], lambda: torch.cat([part.bias for part in parts]), dtype)
        return graph.add(product, bias)

    def _norm(self, norm: Any, x: Value, name: str) -> Value:
        graph = self.graph
        weight = graph.weight(f"{name}.weight", norm.weight.shape, lambda: norm.weight)
        return graph.mul(self._rms(x, norm.variance_epsilon), weight)

    def _rms(self, x: Value, epsilon: float) -> Value:
        """x / RMS(x) over the last axis, float32. In these operators onnxruntime finds its own normalisation."""
        graph = self.graph
        squares = graph.op("Pow", [x, graph.constant(2.0)], x.shape, x.dtype)
        deviation = graph.unary("Sqrt", graph.add(graph.mean(squares), epsilon))
        return graph.div(x, deviation)

    def _wide(self, x: Value) -> Value:
        return self.graph.cast(x, FLOAT)
