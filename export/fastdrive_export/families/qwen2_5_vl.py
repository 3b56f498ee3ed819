"""Qwen2.5-VL's graphs: preprocessing, the windowed vision tower, the pruner's layer, the language model.

Windows of equal size are neighbours and run as one batch without masks (see the family's ``TorchVision``). The weights
are those of the torch modules; the two equal temporal slices of the patch embedding are folded into one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from fastdrive_export.graph_writer import FLOAT, GraphWriter, Value
from fastdrive_export.networks.fused_language import FusedLanguageNetwork
from fastdrive_export.networks.language import LanguageNetwork
from fastdrive_export.networks.vision import VisionNetwork
from fastdrive_export.precision import Precision
from fastdrive_export.source import Source
from fastdrive_node.engines.graph_info import LanguageGraphInfo
from fastdrive_node.errors import ModelError
from fastdrive_node.families.qwen2_5_vl.language import fold_rotation_sign
from fastdrive_node.families.qwen2_5_vl.preprocess import MEAN, STD
from fastdrive_node.families.qwen2_5_vl.pruner_layer import query_and_grid_positions
from fastdrive_node.families.vla import Vla

COLORS = 3


class Rotation(NamedTuple):
    """Rotary angles, float32 [1, L, 1, head dim]; the sign of rotate-half is folded into sin."""

    cos: np.ndarray
    sin: np.ndarray

    def scaled(self, factor: float) -> Rotation:
        return Rotation(self.cos * np.float32(factor), self.sin * np.float32(factor))


def tower_blocks(source: Source) -> int:
    """See ``FamilyNetworks``."""
    return len(source.vision.visual.blocks)


def write_vision(graph: GraphWriter, source: Source, precision: Precision, max_keep: int) -> list[Value]:
    """See ``FamilyNetworks``."""
    activation = source.vision.config.hidden_act
    if activation != "silu":
        raise ModelError(
            f"{source.vla.path}: config.json: vision_config.hidden_act: {activation!r}; only 'silu' is supported"
        )
    if graph.fused:
        from fastdrive_export.families.qwen2_5_vl_fused import FusedQwen25VlVisionNetwork

        return FusedQwen25VlVisionNetwork(graph, source, precision).build(max_keep)
    return Qwen25VlVisionNetwork(graph, source, precision).build(max_keep)


def write_language(graph: GraphWriter, vla: Vla, info: LanguageGraphInfo, precision: Precision) -> list[Value]:
    """See ``FamilyNetworks``."""
    text, head = vla.model.model.language_model, vla.model.lm_head
    if info.fused:
        return FusedLanguageNetwork(graph, text, head, info).build()
    return LanguageNetwork(graph, text, head, info, precision).build()


class Qwen25VlVisionNetwork(VisionNetwork):
    """See ``VisionNetwork``."""

    def tokens(self, images: Value) -> Value:
        with self.graph.scope("preprocess"):
            cells = self._cells(images)
        with self.graph.scope("tower"):
            return self._tower(cells)

    def _cells(self, images: Value) -> Value:
        """uint8 [C, 3, H, W] -> float32 [C, cells, patches of a cell x patch values], cells in window order."""
        graph = self.graph
        pixels = graph.div(graph.cast(images, FLOAT), 255.0)
        pixels = graph.sub(pixels, graph.constant(np.asarray(MEAN, np.float32).reshape(1, 3, 1, 1)))
        pixels = graph.div(pixels, graph.constant(np.asarray(STD, np.float32).reshape(1, 3, 1, 1)))
        return self._in_windows(pixels)

    def _in_windows(self, pixels: Value) -> Value:
        """[C, 3, H, W] -> [C, cells, patches of a cell x patch values], of the same type."""
        graph, config = self.graph, self.vision.config
        patch, merge = config.patch_size, config.spatial_merge_size
        rows, columns = self.vision.grid
        parts = graph.reshape(pixels, (self.cameras, COLORS, rows, merge, patch, columns, merge, patch))
        parts = graph.transpose(parts, (0, 2, 5, 3, 6, 1, 4, 7))
        cells = graph.reshape(parts, (self.cameras, self.count, merge * merge * COLORS * patch * patch))
        return graph.gather(cells, graph.constant(self.vision._cells.cpu().numpy()), 1)

    def _tower(self, cells: Value) -> Value:
        """Cells -> float32 tokens [C, n, D] in raster order."""
        graph, visual, config = self.graph, self.vision.visual, self.vision.config
        unit = config.spatial_merge_size**2
        patches = graph.reshape(cells, (self.cameras, self.count * unit, cells.shape[-1] // unit))
        projection = visual.patch_embed.proj.weight
        values = COLORS * config.patch_size**2
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
        self, block: Any, hidden: Value, rotation: Rotation, runs: tuple[tuple[int, int], ...], index: int, name: str
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

    def _merge(self, merger: Any, hidden: Value) -> Value:
        graph = self.graph
        normed = self._norm(merger.ln_q, hidden, "tower.merger.ln_q")
        first, _, last = merger.mlp
        cells = graph.reshape(normed, (self.cameras, self.count, first.in_features))
        inner = self._gelu(self._wide(self._linear(first, cells, "tower.merger.mlp.0")))
        return self._wide(self._linear(last, inner, "tower.merger.mlp.2"))

    def pruner_layer(self, hidden: Value) -> Value:
        graph, layer = self.graph, self.pruner.layer
        attention = layer.self_attn
        with graph.scope("attention"):
            normed = self._norm(layer.input_layernorm, hidden, "pruner.input_layernorm")
            query, key, value = (
                self._linear(getattr(attention, part), normed, f"pruner.{part}")
                for part in ("q_proj", "k_proj", "v_proj")
            )
            heads = (layer.config.num_attention_heads, layer.config.num_key_value_heads)
            mixed = self._attend(query, key, value, heads, self._pruner_rotation(), ((1, hidden.shape[1]),))
            hidden = graph.add(hidden, self._wide(self._linear(attention.o_proj, mixed, "pruner.o_proj")))
        with graph.scope("mlp"):
            normed = self._norm(layer.post_attention_layernorm, hidden, "pruner.post_attention_layernorm")
            # One layer costs little, and the first layers of language models have the largest activations.
            narrow = self.precision.name != "fp16"
            return graph.add(hidden, self._gated(layer.mlp, normed, "pruner.mlp", narrow))

    def _pruner_rotation(self) -> Rotation:
        """The angles of the pruner's layer: M-RoPE over the token grid, the query at the origin."""
        with torch.no_grad():
            angles = self.pruner.layer.rotary(torch.zeros(1), query_and_grid_positions(self.vision.grid))
        return Rotation(*(angle.float().unsqueeze(2).numpy() for angle in fold_rotation_sign(*angles)))

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
        query, key = (
            graph.cast(self._rotate(part, *map(graph.constant, angles)), self.precision.compute)
            for part, angles in ((query, rotation.scaled(size**-0.5)), (key, rotation))
        )
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

    def _gelu(self, x: Value) -> Value:
        """x (1 + erf(x / sqrt 2)) / 2; opset 20 has Gelu, which TensorRT reads from version 10 on."""
        graph = self.graph
        return graph.mul(graph.mul(x, graph.add(graph.unary("Erf", graph.div(x, 2**0.5)), 1.0)), 0.5)
