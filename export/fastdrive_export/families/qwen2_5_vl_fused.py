"""Qwen2.5-VL's vision graph with onnxruntime's operators; ``networks.fused`` says why, ``qwen2_5_vl`` has the parts.

The normalisation of the pixels is folded into the patch embedding, so bytes are transposed and not floats.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastdrive_export.families.qwen2_5_vl import COLORS, Qwen25VlVisionNetwork, Rotation
from fastdrive_export.graph_writer import FLOAT, GraphWriter, Value
from fastdrive_export.networks.fused import FusedBlocks
from fastdrive_export.precision import Precision
from fastdrive_export.source import Source
from fastdrive_node.families.qwen2_5_vl.preprocess import MEAN, STD

_Named = tuple[Any, str]  # a module, and the beginning of its weights' names


class FusedQwen25VlVisionNetwork(Qwen25VlVisionNetwork):
    """See ``VisionNetwork``. Hidden states are [images x patches, width]."""

    def __init__(self, graph: GraphWriter, source: Source, precision: Precision):
        super().__init__(graph, source, precision)
        self.fused = FusedBlocks(graph)

    def _cells(self, images: Value) -> Value:
        """uint8 [C, 3, H, W] -> float32 [C x patches, patch values] of 0 to 255, in window order."""
        graph, values = self.graph, COLORS * self.vision.config.patch_size**2
        cells = self._in_windows(images)
        patches = graph.reshape(cells, (self.cameras * self.count * cells.shape[-1] // values, values))
        return graph.cast(patches, FLOAT)

    def _tower(self, cells: Value) -> Value:
        """Patches -> float32 tokens [C, n, D] in raster order."""
        graph, visual, config = self.graph, self.vision.visual, self.vision.config
        embed = (lambda: self._embedding()[0], lambda: self._embedding()[1])
        hidden = self.fused.product(cells, config.hidden_size, *embed, "tower.patch_embed")
        rotation = Rotation(*(angle.cpu().numpy()[None] for angle in (self.vision._cos, self.vision._sin)))
        norms: list[_Named] = [(b.norm1, f"tower.blocks.{index}.norm1") for index, b in enumerate(visual.blocks)]
        norms.append((visual.merger.ln_q, "tower.merger.ln_q"))
        normed = self.fused.norm(norms[0][0], hidden, norms[0][1])
        for index, block in enumerate(visual.blocks):
            whole = index in config.fullatt_block_indexes
            runs = ((1, cells.shape[0] // self.cameras),) if whole else self.vision.runs
            name = f"tower.blocks.{index}"
            with graph.scope(f"block_{index}"):
                hidden, normed = self._fused_block((block, name), hidden, normed, rotation, runs, norms[index + 1])
        with graph.scope("merger"):
            merged = self._merged(visual.merger, normed)
        return graph.gather(merged, graph.constant(self.vision._inverse.cpu().numpy()), 1)

    def _embedding(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight [patch values, width] and bias [width] that take pixels of 0 to 255."""
        weight = self.vision.visual.patch_embed.proj.weight.double().sum(dim=2)  # [width, 3, patch, patch]
        mean, std = (torch.tensor(each, dtype=torch.float64).view(1, 3, 1, 1) for each in (MEAN, STD))
        bias = -(weight * mean / std).flatten(1).sum(dim=1)
        return (weight / (255 * std)).flatten(1).T.float(), bias.float()

    def _fused_block(
        self,
        block: _Named,
        hidden: Value,
        normed: Value,
        rotation: Rotation,
        runs: tuple[tuple[int, int], ...],
        following: _Named,
    ) -> tuple[Value, Value]:
        """Returns the block's output, and what the ``following`` norm makes of it."""
        fused, (module, name) = self.fused, block
        attention, width = module.attn, hidden.shape[1]
        parts = [self._third(attention.qkv, normed, part, f"{name}.attn.{'qkv'[part]}") for part in range(3)]
        mixed = self._mixed(parts, attention.num_heads, rotation, runs)
        out = fused.linear([attention.proj], self.graph.reshape(mixed, (hidden.shape[0], width)), f"{name}.attn.proj")
        hidden, normed = fused.add_norm(hidden, out, module.norm2, f"{name}.norm2")
        return fused.add_norm(hidden, fused.gated(module.mlp, normed, f"{name}.mlp"), *following)

    def _third(self, qkv: Any, x: Value, part: int, name: str) -> Value:
        """One of query, key and value, which is less work than to split one product."""
        width = qkv.out_features // 3
        rows = slice(part * width, (part + 1) * width)
        bias = None if qkv.bias is None else lambda: qkv.bias[rows]
        return self.fused.product(x, width, lambda: qkv.weight[rows].T, bias, name)

    def _merged(self, merger: Any, normed: Value) -> Value:
        graph, fused = self.graph, self.fused
        first, _, last = merger.mlp
        cells = graph.reshape(normed, (self.cameras * self.count, first.in_features))
        inner = self._gelu(fused.linear([first], cells, "tower.merger.mlp.0"))
        merged = fused.linear([last], inner, "tower.merger.mlp.2")
        return graph.reshape(merged, (self.cameras, self.count, last.out_features))

    def pruner_layer(self, hidden: Value) -> Value:
        graph, fused, layer = self.graph, self.fused, self.pruner.layer
        attention, shape = layer.self_attn, hidden.shape
        flat = graph.reshape(hidden, (shape[0] * shape[1], shape[2]))
        normed = fused.norm(layer.input_layernorm, flat, "pruner.input_layernorm")
        heads, groups = layer.config.num_attention_heads, layer.config.num_key_value_heads
        parts = [
            self._repeated(getattr(attention, part), normed, heads // number, number, f"pruner.{part}")
            for part, number in (("q_proj", heads), ("k_proj", groups), ("v_proj", groups))
        ]
        mixed = self._mixed(parts, heads, self._pruner_rotation(), ((1, shape[1]),))
        mixed = graph.reshape(mixed, (flat.shape[0], parts[0].shape[1]))
        out = fused.linear([attention.o_proj], mixed, "pruner.o_proj")
        norm = layer.post_attention_layernorm
        flat, normed = fused.add_norm(flat, out, norm, "pruner.post_attention_layernorm")
        return graph.reshape(graph.add(flat, fused.gated(layer.mlp, normed, "pruner.mlp")), shape)

    def _repeated(self, linear: Any, x: Value, times: int, groups: int, name: str) -> Value:
        """A projection whose heads are repeated for the queries of their group."""

        def repeat(values: torch.Tensor) -> torch.Tensor:
            heads = values.unflatten(0, (groups, -1))
            return heads.repeat_interleave(times, dim=0).flatten(0, 1)

        bias = None if linear.bias is None else lambda: repeat(linear.bias)
        return self.fused.product(x, linear.out_features * times, lambda: repeat(linear.weight).T, bias, name)

    def _mixed(self, parts: list[Value], heads: int, rotation: Rotation, runs: tuple[tuple[int, int], ...]) -> Value:
        """Attention inside each window.

        Args:
            parts: query, key and value, each [C x L, width].
            runs: (windows, length of each) in order.

        Returns:
            [C, L, width].
        """
        graph, (rows, width) = self.graph, parts[0].shape
        shape = (self.cameras, rows // self.cameras, width)
        query, key, value = (graph.reshape(part, shape) for part in parts)
        query, key = (self._rotated(part, heads, rotation) for part in (query, key))
        outputs, start = [], 0
        for windows, each in runs:
            span, batch = (start, start + windows * each), (self.cameras * windows, each, width)
            inputs = [graph.reshape(graph.slice(part, 1, *span), batch) for part in (query, key, value)]
            mixed = graph.contributed("MultiHeadAttention", inputs, [batch], num_heads=heads)[0]
            outputs.append(graph.reshape(mixed, (self.cameras, windows * each, width)))
            start = span[1]
        return graph.concat(outputs, 1)

    def _rotated(self, x: Value, heads: int, rotation: Rotation) -> Value:
        """Rotary embedding of [C, L, width]."""
        graph, half = self.graph, rotation.cos.shape[-1] // 2
        cos, sin = rotation.cos[0, :, 0, :half], rotation.sin[0, :, 0, half:]  # in this half the sign is not folded
        positions = np.broadcast_to(np.arange(x.shape[1]), x.shape[:2])
        constants = [graph.constant(each) for each in (positions, cos, sin)]
        return graph.contributed("RotaryEmbedding", [x, *constants], [x.shape], num_heads=heads)[0]
