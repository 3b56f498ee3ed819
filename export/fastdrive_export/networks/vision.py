"""The part of a vision engine's graph that all families share: pruner and top-K around a family's tower and layer.

The image size, and with it the token grid, is a constant of the graph; the cameras are the batch.

Inputs and outputs, C cameras of n tokens each, N = C n:
    images   uint8 [C, 3, height, width], RGB
    tokens   float32 [K_max, D], by descending score: the first K are those that K keeps
    indices  int32 [K_max], of those tokens, into N (camera after camera, raster order)
    scores   float32 [C, n], of all tokens in raster order
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from onnx import TensorProto

from fastdrive_export.graph_writer import GraphWriter, Value
from fastdrive_export.networks.blocks import Blocks
from fastdrive_export.precision import Precision
from fastdrive_export.source import Source
from fastdrive_node.engines.graph_info import IMAGES, INDICES, SCORES, TOKENS


class VisionNetwork(Blocks, ABC):
    """Emits the tower and the pruner into a graph.

    Args:
        graph: to write to.
        source: the tower for its image size, and the pruner for its tokens.
        precision: types of the parts.
    """

    def __init__(self, graph: GraphWriter, source: Source, precision: Precision):
        super().__init__(graph, precision)
        self.vision: Any = source.vision
        self.pruner: Any = source.pruner
        self.cameras = source.vision.cameras
        rows, columns = source.vision.grid
        self.count = rows * columns

    @abstractmethod
    def tokens(self, images: Value) -> Value:
        """uint8 [C, 3, height, width] -> float32 [C, n, D] in raster order; in the scopes preprocess and tower."""

    @abstractmethod
    def pruner_layer(self, hidden: Value) -> Value:
        """The pruner's only layer: float32 [C, 1 + n, D], the query token first, to the same shape."""

    def build(self, max_keep: int) -> list[Value]:
        """The whole graph. Returns the outputs: tokens, indices, scores."""
        graph = self.graph
        images = graph.input(IMAGES, (self.cameras, 3, *self.vision.image_size), TensorProto.UINT8)
        tokens = self.tokens(images)
        with graph.scope("pruner"):
            scores = self._scores(tokens)
        with graph.scope("select"):
            order = graph.top(graph.reshape(scores, (self.cameras * self.count,)), max_keep)[1]
            flat = graph.reshape(tokens, (self.cameras * self.count, tokens.shape[-1]))
            best = graph.gather(flat, order, 0)
            indices = graph.cast(order, TensorProto.INT32)
        return [graph.output(best, TOKENS), graph.output(indices, INDICES), graph.output(scores, SCORES)]

    def _scores(self, tokens: Value) -> Value:
        """float32 [C, n, D] -> float32 [C, n], as ``ReconPruner.forward``."""
        graph, pruner = self.graph, self.pruner
        if pruner.narrow is not None:
            with graph.scope("narrow"):
                tokens = self._wide(self._linear(pruner.narrow, tokens, "pruner.narrow"))
        width = tokens.shape[-1]
        query = graph.weight("pruner.query", (1, 1, width), lambda: pruner.query[None])
        hidden = graph.concat([graph.expand(query, (self.cameras, 1, width)), tokens], 1)
        hidden = self.pruner_layer(hidden)
        with graph.scope("scorer"):
            if pruner.normalise:
                hidden = self._rms(hidden, pruner.layer.norm_eps)
            query = graph.slice(hidden, 1, 0, 1)
            product = graph.mul(graph.slice(hidden, 1, 1, 1 + self.count), query)
            weight = graph.weight("pruner.scorer.weight", (width, 1), lambda: pruner.scorer.weight.T)
            bias = graph.weight("pruner.scorer.bias", (1,), lambda: pruner.scorer.bias)
            scores = graph.reshape(graph.add(graph.matmul(product, weight), bias), (self.cameras, self.count))
            if pruner.camera_bias is None:
                return scores
            camera_bias = graph.weight("pruner.camera_bias", (self.cameras, 1), lambda: pruner.camera_bias[:, None])
            return graph.add(scores, camera_bias)
