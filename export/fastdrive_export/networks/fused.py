"""Parts of a graph for onnxruntime alone: its own operators do in one step what takes ONNX's several.

On a CPU such a step is a small part of a millisecond, and a plan of a small VLA has hundreds of them. Hidden states
are [rows, width], so that a linear layer is one Gemm. float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fastdrive_export.graph_writer import FLOAT, GraphWriter, Value


class FusedBlocks:
    """Emits parts of a network into a graph.

    Args:
        graph: to write to.
    """

    def __init__(self, graph: GraphWriter):
        self.graph = graph

    def linear(self, parts: Sequence[Any], x: Value, name: str) -> Value:
        """Linear layers of one input as one product; their outputs are concatenated.

        Args:
            x: [rows, width].
        """
        outputs = sum(part.out_features for part in parts)
        bias = None if parts[0].bias is None else lambda: torch.cat([part.bias for part in parts])
        return self.product(x, outputs, lambda: torch.cat([part.weight for part in parts]).T, bias, name)

    def product(
        self,
        x: Value,
        outputs: int,
        weight: Callable[[], torch.Tensor],
        bias: Callable[[], torch.Tensor] | None,
        name: str,
    ) -> Value:
        """x [rows, inputs] by ``weight`` [inputs, outputs], plus ``bias``."""
        graph = self.graph
        inputs = [x, graph.weight(f"{name}.weight", (x.shape[1], outputs), weight)]
        if bias is not None:
            inputs.append(graph.weight(f"{name}.bias", (outputs,), bias))
        return graph.op("Gemm" if bias is not None else "MatMul", inputs, (x.shape[0], outputs), FLOAT)

    def norm(self, norm: Any, x: Value, name: str) -> Value:
        """RMSNorm; onnxruntime finds its own operator in these."""
        graph = self.graph
        squares = graph.op("Pow", [x, graph.constant(2.0)], x.shape, FLOAT)
        deviation = graph.unary("Sqrt", graph.add(graph.mean(squares), norm.variance_epsilon))
        return graph.mul(graph.div(x, deviation), self._scale(norm, name))

    def add_norm(self, x: Value, more: Value, norm: Any, name: str) -> tuple[Value, Value]:
        """x + more, and the RMSNorm of it."""
        outputs = self.graph.contributed(
            "SkipSimplifiedLayerNormalization",
            [x, more, self._scale(norm, name)],
            [x.shape, None, None, x.shape],  # two are for training
            epsilon=norm.variance_epsilon,
        )
        return outputs[3], outputs[0]

    def gated(self, mlp: Any, normed: Value, name: str) -> Value:
        """The gated MLP. Two products: splitting one takes longer."""
        graph = self.graph
        gate, up = (self.linear([getattr(mlp, part)], normed, f"{name}.{part}") for part in ("gate_proj", "up_proj"))
        inner = graph.contributed("QuickGelu", [gate], [gate.shape], alpha=1.0)[0]  # SiLU
        return self.linear([mlp.down_proj], graph.mul(inner, up), f"{name}.down_proj")

    def _scale(self, norm: Any, name: str) -> Value:
        return self.graph.weight(f"{name}.weight", norm.weight.shape, lambda: norm.weight)
