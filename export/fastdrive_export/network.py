"""The graph of one engine: images -> normalise, patchify, tower, pruner, top-K sorted by score.

The image size, and with it the token grid, is baked; the cameras are the batch. Windows of equal size are neighbours
and run as one batch without masks (see ``vision.tower``). The weights are those of the torch modules, the two equal
temporal slices of the patch embedding folded into one.

Inputs and outputs, C cameras of n tokens each, N = C n:
    images   uint8 [C, 3, height, width], RGB
    tokens   float32 [K_max, D], by descending score: the first K are those that K keeps
    indices  int32 [K_max], of those tokens, into N (camera after camera, raster order)
    scores   float32 [C, n], of all tokens in raster order
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from onnx import TensorProto
from torch import nn

from fastdrive_export.blocks import Blocks
from fastdrive_export.graph_writer import FLOAT, GraphWriter, Value
from fastdrive_export.precision import Precision
from fastdrive_node.engines.graph_info import IMAGES, INDICES, SCORES, TOKENS
from fastdrive_node.families.qwen2_5_vl.preprocess import MEAN, STD
from fastdrive_node.families.qwen2_5_vl.tower import TorchVision
from fastdrive_node.pruning.recon_pruner import ReconPruner, query_and_grid_positions

_PIXELS = 3  # values of a pixel


@dataclass(frozen=True)
class Rotation:
    """Rotary angles, float32 [1, L, 1, head dim]; the sign of rotate-half is folded into sin."""

    cos: np.ndarray
    sin: np.ndarray

    def scaled(self, factor: float) -> Rotation:
        return Rotation(self.cos * np.float32(factor), self.sin * np.float32(factor))


class Network(Blocks):
    """Emits the tower and the pruner into a graph.

    Args:
        graph: to write to.
        vision: the tower for its image size.
        pruner: for the tower's tokens.
        precision: types of the parts.
    """

    def __init__(self, graph: GraphWriter, vision: TorchVision, pruner: ReconPruner, precision: Precision):
        super().__init__(graph, precision)
        self.vision = vision
        self.pruner = pruner
        self.cameras = vision.cameras
        rows, columns = vision.grid
        self.count = rows * columns

    def build(self, max_keep: int) -> list[Value]:
        """The whole graph. Returns the outputs: tokens, indices, scores."""
        graph = self.graph
        images = graph.input(IMAGES, (self.cameras, _PIXELS, *self.vision.image_size), TensorProto.UINT8)
        with graph.scope("preprocess"):
            cells = self._cells(images)
        with graph.scope("tower"):
            tokens = self._tower(cells)
        with graph.scope("pruner"):
            scores = self._scores(tokens)
        with graph.scope("select"):
            order = graph.top(graph.reshape(scores, (self.cameras * self.count,)), max_keep)[1]
            flat = graph.reshape(tokens, (self.cameras * self.count, tokens.shape[-1]))
            best = graph.gather(flat, order, 0)
            indices = graph.cast(order, TensorProto.INT32)
        return [graph.output(best, TOKENS), graph.output(indices, INDICES), graph.output(scores, SCORES)]

    def _cells(self, images: Value) -> Value:
        """uint8 [C, 3, H, W] -> float32 [C, cells, patches of a cell x patch values], cells in window order."""
        graph, config = self.graph, self.vision.config
        patch, merge = config.patch_size, config.spatial_merge_size
        rows, columns = self.vision.grid
        pixels = graph.div(graph.cast(images, FLOAT), 255.0)
        pixels = graph.sub(pixels, graph.constant(np.float32(MEAN).reshape(1, 3, 1, 1)))
        pixels = graph.div(pixels, graph.constant(np.float32(STD).reshape(1, 3, 1, 1)))
        parts = graph.reshape(pixels, (self.cameras, _PIXELS, rows, merge, patch, columns, merge, patch))
        parts = graph.transpose(parts, (0, 2, 5, 3, 6, 1, 4, 7))
        cells = graph.reshape(parts, (self.cameras, self.count, merge * merge * _PIXELS * patch * patch))
        return graph.gather(cells, graph.constant(self.vision._cells.cpu().numpy()), 1)

    def _tower(self, cells: Value) -> Value:
        """Cells -> float32 tokens [C, n, D] in raster order."""
        graph, visual, config = self.graph, self.vision.visual, self.vision.config
        unit = config.spatial_merge_size**2
        patches = graph.reshape(cells, (self.cameras, self.count * unit, cells.shape[-1] // unit))
        projection = visual.patch_embed.proj.weight
        values = _PIXELS * config.patch_size**2
        weight = graph.weight(
            "tower.patch_embed",
            (values, config.hidden_size),
            lambda: projection.float().sum(dim=2).flatten(1).T,
            self.precision.compute,
        )
        hidden = self._wide(graph.matmul(graph.cast(patches, self.precision.compute), weight))
        rotation = Rotation(*(angle.cpu().numpy()[None] for angle in (self.vision._cos, self.vision._sin)))
        for index, block in enumerate(visual.blocks):
            whole = index in config.fullatt_block_indexes
            with graph.scope(f"block_{index}"):
                runs = ((1, hidden.shape[1]),) if whole else self.vision.runs
                hidden = self._block(block, hidden, rotation, runs, index, f"tower.blocks.{index}")
        with graph.scope("merger"):
            merged = self._merge(visual.merger, hidden)
        return graph.gather(merged, graph.constant(self.vision._inverse.cpu().numpy()), 1)

    def _block(
        self,
        block: nn.Module,
        hidden: Value,
        rotation: Rotation,
        runs: tuple[tuple[int, int], ...],
        index: int,
        name: str,
    ) -> Value:
        graph, attention = self.graph, block.attn
        with graph.scope("attention"):
            normed = self._norm(block.norm1, hidden, f"{name}.norm1")
            qkv = self._linear(attention.qkv, normed, f"{name}.attn.qkv")
            width = hidden.shape[-1]
            query, key, value = (graph.slice(qkv, -1, part * width, (part + 1) * width) for part in range(3))
            heads = (attention.num_heads, attention.num_heads)
            mixed = self._attend(query, key, value, heads, rotation, runs)
            hidden = graph.add(hidden, self._wide(self._linear(attention.proj, mixed, f"{name}.attn.proj")))
        with graph.scope("mlp"):
            normed = self._norm(block.norm2, hidden, f"{name}.norm2")
            narrow = index not in self.precision.fp32_mlp
            return graph.add(hidden, self._gated(block.mlp, normed, f"{name}.mlp", narrow))

    def _merge(self, merger: nn.Module, hidden: Value) -> Value:
        graph = self.graph
        normed = self._norm(merger.ln_q, hidden, "tower.merger.ln_q")
        first, _, last = merger.mlp
        cells = graph.reshape(normed, (self.cameras, self.count, first.in_features))
        inner = self._gelu(self._wide(self._linear(first, cells, "tower.merger.mlp.0")))
        return self._wide(self._linear(last, inner, "tower.merger.mlp.2"))

    def _scores(self, tokens: Value) -> Value:
        """float32 [C, n, D] -> float32 [C, n]; the module is ``ReconPruner``."""
        graph, pruner = self.graph, self.pruner
        layer, attention = pruner.layer, pruner.layer.self_attn
        width = pruner.width
        query = graph.weight("pruner.query", (1, 1, width), lambda: pruner.query[None])
        hidden = graph.concat([graph.expand(query, (self.cameras, 1, width)), tokens], 1)
        with graph.scope("attention"):
            normed = self._norm(layer.input_layernorm, hidden, "pruner.input_layernorm")
            parts = (
                self._linear(getattr(attention, part), normed, f"pruner.{part}")
                for part in ("q_proj", "k_proj", "v_proj")
            )
            heads = (pruner.config.num_attention_heads, pruner.config.num_key_value_heads)
            mixed = self._attend(*parts, heads, self._pruner_rotation(), ((1, hidden.shape[1]),))
            hidden = graph.add(hidden, self._wide(self._linear(attention.o_proj, mixed, "pruner.o_proj")))
        with graph.scope("mlp"):
            normed = self._norm(layer.post_attention_layernorm, hidden, "pruner.post_attention_layernorm")
            # One layer costs little, and the first layers of language models have the largest activations.
            narrow = self.precision.name != "fp16"
            hidden = graph.add(hidden, self._gated(layer.mlp, normed, "pruner.mlp", narrow))
        with graph.scope("scorer"):
            if pruner.normalise:
                hidden = self._rms(hidden, pruner.config.rms_norm_eps)
            query = graph.slice(hidden, 1, 0, 1)
            product = graph.mul(graph.slice(hidden, 1, 1, 1 + self.count), query)
            weight = graph.weight("pruner.scorer.weight", (width, 1), lambda: pruner.scorer.weight.T)
            bias = graph.weight("pruner.scorer.bias", (1,), lambda: pruner.scorer.bias)
            return graph.reshape(graph.add(graph.matmul(product, weight), bias), (self.cameras, self.count))

    def _pruner_rotation(self) -> Rotation:
        """The angles of the pruner's layer: M-RoPE over the token grid, the query at the origin."""
        with torch.no_grad():
            cos, sin = self.pruner.rotary(torch.zeros(1), query_and_grid_positions(self.vision.grid))
        half = sin.shape[-1] // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        return Rotation(*(angle.float().unsqueeze(2).numpy() for angle in (cos, sin)))

    def _attend(
        self,
        query: Value,
        key: Value,
        value: Value,
        heads: tuple[int, int],
        rotation: Rotation,
        runs: tuple[tuple[int, int], ...],
    ) -> Value:
        """Attention inside each window; [C, L, heads x head dim] -> the query's shape.

        Args:
            heads: of the query, and of key and value, which are repeated to match.
            runs: (windows, length of each) in order.
        """
        graph = self.graph
        count, length, width = query.shape
        size = width // heads[0]
        query, key, value = (
            graph.reshape(part, (count, length, number, size))
            for part, number in ((query, heads[0]), (key, heads[1]), (value, heads[1]))
        )
        query = graph.cast(self._turn(query, rotation.scaled(size**-0.5)), self.precision.compute)
        key = graph.cast(self._turn(key, rotation), self.precision.compute)
        outputs, start = [], 0
        for windows, each in runs:
            span = (start, start + windows * each)
            shape = (count * windows, each)
            q, k, v = (
                graph.reshape(graph.slice(part, 1, *span), (*shape, *part.shape[2:])) for part in (query, key, value)
            )
            q = graph.transpose(q, (0, 2, 1, 3))
            k = self._repeat(graph.transpose(k, (0, 2, 3, 1)), heads[0])
            v = self._repeat(graph.transpose(v, (0, 2, 1, 3)), heads[0])
            mixed = graph.matmul(graph.softmax(graph.matmul(q, k)), v)
            mixed = graph.reshape(graph.transpose(mixed, (0, 2, 1, 3)), (count, windows * each, width))
            outputs.append(mixed)
            start = span[1]
        return graph.concat(outputs, 1)

    def _repeat(self, states: Value, heads: int) -> Value:
        """[B, key/value heads, a, b] -> [B, heads, a, b], each head repeated for its group of queries."""
        graph, (batch, groups, *rest) = self.graph, states.shape
        if groups == heads:
            return states
        wide = graph.reshape(states, (batch, groups, 1, *rest))
        return graph.reshape(graph.expand(wide, (batch, groups, heads // groups, *rest)), (batch, heads, *rest))

    def _turn(self, states: Value, rotation: Rotation) -> Value:
        """Rotary embedding; states [C, L, heads, head dim]."""
        return self._rotate(states, self.graph.constant(rotation.cos), self.graph.constant(rotation.sin))

    def _gelu(self, x: Value) -> Value:
        """x (1 + erf(x / sqrt 2)) / 2; opset 20 has Gelu, which TensorRT reads from version 10 on."""
        graph = self.graph
        return graph.mul(graph.mul(x, graph.add(graph.unary("Erf", graph.div(x, 2**0.5)), 1.0)), 0.5)
