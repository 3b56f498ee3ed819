"""The graph of a language engine: Qwen2.5-VL's text model, for prompts and for single tokens.

One graph serves both, so that the weights are held once: S new positions look at P earlier ones and at themselves. A
prefill has P = 1, an earlier position that the mask hides, for runtimes take no empty tensors; a decode step has S = 1
and the whole cache, of which the mask hides what is not filled. The graph gives the new keys and values, and the caller
puts them into its cache, so nothing of the cache is copied from step to step but by the attention itself.

The layers are those of ``planning.language``: explicit RMSNorm, one product for query, key and value and one for gate
and up, rotary angles from outside, key/value heads shared by broadcasting, and of the last layer only the position that
the logits are wanted of.

Inputs and outputs, H heads of which G are of keys and values; see ``LanguageGraphInfo`` for the types:
    ids            [S], token ids, any where a visual token stands
    source         [S], of each position: s is the embedding of ids[s], S + k the visual token k
    visual         [V, D], at least one row; which rows are read says ``source``
    cos, sin       [S, head dim], rotary angles with rotate-half's sign folded into sin
    mask           [S, P + S], added to the attention's logits: 0 or ``HIDDEN``
    last           [1], the position that the logits are of
    keys_0, ...    [G, head dim, P], of each layer, rotated; finite everywhere
    values_0, ...  [G, P, head dim]
    logits         [1, vocabulary]
    new_keys       [layers, G, head dim, S]
    new_values     [layers, G, S, head dim]
"""

from __future__ import annotations

import torch
from torch import nn

from fastdrive_export.blocks import Blocks
from fastdrive_export.graph_writer import FLOAT, TORCH_TYPES, GraphWriter, Value
from fastdrive_export.precision import Precision
from fastdrive_node.engines.graph_info import (
    COS,
    IDS,
    LAST,
    LOGITS,
    MASK,
    NEW_KEYS,
    NEW_VALUES,
    SEEN,
    SIN,
    SOURCE,
    VISUAL,
    LanguageGraphInfo,
    cache_names,
)

_TYPES = {str(kind).removeprefix("torch."): number for number, kind in TORCH_TYPES.items()} | {"int32": 6}


class LanguageNetwork(Blocks):
    """Emits the language half into a graph.

    Args:
        graph: to write to.
        text: ``Qwen2_5_VLTextModel``.
        head: the output layer; its weight may be that of the embeddings.
        facts: sizes of both.
        precision: types of the parts.
    """

    def __init__(
        self, graph: GraphWriter, text: nn.Module, head: nn.Linear, facts: LanguageGraphInfo, precision: Precision
    ):
        super().__init__(graph, precision)
        self.text, self.head, self.facts = text, head, facts

    def build(self) -> list[Value]:
        """The whole graph. Returns the outputs: logits, new keys, new values."""
        graph = self.graph
        inputs = {name: graph.input(name, each.shape, _TYPES[each.dtype]) for name, each in self.facts.inputs().items()}
        with graph.scope("embed"):
            table, hidden = self._embed(inputs[IDS], inputs[SOURCE], inputs[VISUAL])
            # half of the attention's scale on each side: the angles turn queries and keys alike
            scale = self.facts.head_dim**-0.25
            rotation = [
                graph.mul(graph.reshape(inputs[name], (inputs[name].shape[0], 1, self.facts.head_dim)), scale)
                for name in (COS, SIN)
            ]
        new_keys, new_values = [], []
        mask, last = inputs[MASK], None
        for index, layer in enumerate(self.text.layers):
            if index == len(self.text.layers) - 1:
                last = inputs[LAST]
            with graph.scope("layers"), graph.scope(f"layer_{index}"):
                mask = mask if last is None else graph.gather(mask, last, 0)
                past = [inputs[name] for name in cache_names(index)]
                hidden, keys, values = self._layer(layer, hidden, rotation, mask, past, last, index)
            new_keys.append(keys)
            new_values.append(values)
        with graph.scope("head"):
            normed = graph.cast(self._norm(self.text.norm, hidden, "language.norm"), self.precision.compute)
            logits = self._wide(graph.matmul_transposed(normed, self._head_table(table)))
        with graph.scope("cache"):
            stacked = [graph.concat(parts, 0) for parts in (new_keys, new_values)]
        return [
            graph.output(value, name)
            for value, name in zip([logits, *stacked], (LOGITS, NEW_KEYS, NEW_VALUES), strict=True)
        ]

    def _embed(self, ids: Value, source: Value, visual: Value) -> tuple[Value, Value]:
        """The table of embeddings, and what enters the first layer, float32 [S, D]."""
        graph, weight = self.graph, self.text.embed_tokens.weight
        table = graph.weight("language.embed_tokens", weight.shape, lambda: weight, self.precision.compute)
        words = self._wide(graph.gather(table, ids, 0))
        rows = graph.concat([words, visual], 0, "new_and_visual_tokens")
        return table, graph.gather(rows, source, 0)

    def _head_table(self, table: Value) -> Value:
        weight = self.head.weight
        if weight is self.text.embed_tokens.weight:
            return table
        return self.graph.weight("language.lm_head", weight.shape, lambda: weight, self.precision.compute)

    def _layer(
        self,
        layer: nn.Module,
        hidden: Value,
        rotation: list[Value],
        mask: Value,
        past: list[Value],
        last: Value | None,
        index: int,
    ) -> tuple[Value, Value, Value]:
        """One layer. Returns its output, and its new keys and values, each with an axis of length 1 in front.

        Args:
            last: None, or the one position that the output is wanted of.
        """
        graph, name = self.graph, f"language.layers.{index}"
        with graph.scope("attention"):
            normed = self._norm(layer.input_layernorm, hidden, f"{name}.input_layernorm")
            query, key, value = self._turned(layer.self_attn, normed, rotation, f"{name}.self_attn")
            if last is not None:
                query, hidden = graph.gather(query, last, 0), graph.gather(hidden, last, 0)
            key, value = graph.transpose(key, (1, 2, 0)), graph.transpose(value, (1, 0, 2))
            mixed = self._attend(
                query, graph.concat([past[0], key], 2, SEEN), graph.concat([past[1], value], 1, SEEN), mask
            )
            out = self._linear(layer.self_attn.o_proj, mixed, f"{name}.self_attn.o_proj")
            hidden = graph.add(hidden, self._wide(out))
        with graph.scope("mlp"):
            normed = self._norm(layer.post_attention_layernorm, hidden, f"{name}.post_attention_layernorm")
            narrow = index not in self.precision.fp32_mlp
            hidden = graph.add(hidden, self._gated_in_one(layer.mlp, normed, f"{name}.mlp", narrow))
        return hidden, *(graph.reshape(part, (1, *part.shape)) for part in (key, value))

    def _turned(self, attention: nn.Module, normed: Value, rotation: list[Value], name: str) -> list[Value]:
        """Query [S, heads, head dim], key and value [S, key/value heads, head dim], rotated, in the compute type."""
        graph, facts = self.graph, self.facts
        count, size = normed.shape[0], facts.head_dim
        parts = [attention.q_proj, attention.k_proj, attention.v_proj]
        joined = self._joined(parts, normed, f"{name}.qkv")
        heads = graph.reshape(joined, (count, facts.heads + 2 * facts.kv_heads, size))
        turning = facts.heads + facts.kv_heads
        turned = graph.cast(self._rotate(graph.slice(heads, 1, 0, turning), *rotation), self.precision.compute)
        return [
            graph.slice(turned, 1, 0, facts.heads),
            graph.slice(turned, 1, facts.heads, turning),
            graph.slice(heads, 1, turning, turning + facts.kv_heads),
        ]

    def _attend(self, query: Value, keys: Value, values: Value, mask: Value) -> Value:
        """[Q, heads, head dim] to [Q, heads x head dim]; each key/value head serves its group of query heads."""
        graph, facts = self.graph, self.facts
        count, groups, size = query.shape[0], facts.kv_heads, facts.head_dim
        query = graph.reshape(query, (count, groups, facts.heads // groups, size))
        query = graph.transpose(query, (1, 2, 0, 3))
        keys, values = (graph.reshape(part, (groups, 1, *part.shape[1:])) for part in (keys, values))
        weights = graph.softmax(graph.add(self._wide(graph.matmul(query, keys)), mask))
        mixed = graph.matmul(graph.cast(weights, self.precision.compute), values)
        mixed = graph.transpose(mixed, (2, 0, 1, 3))
        return graph.reshape(mixed, (count, facts.heads * size))

    def _gated_in_one(self, mlp: nn.Module, normed: Value, name: str, narrow: bool) -> Value:
        """As ``_gated``, with one product for gate and up."""
        graph, inner = self.graph, mlp.gate_proj.out_features
        joined = self._joined([mlp.gate_proj, mlp.up_proj], normed, f"{name}.gate_up")
        dtype = self.precision.compute if narrow else FLOAT
        gate, up = (graph.cast(graph.slice(joined, 1, start, start + inner), dtype) for start in (0, inner))
        product = graph.mul(graph.mul(gate, graph.unary("Sigmoid", gate)), up)
        return self._wide(self._linear(mlp.down_proj, product, f"{name}.down_proj", dtype))

    def _joined(self, parts: list[nn.Linear], x: Value, name: str) -> Value:
        """Linear layers of one input as one product; their outputs lie side by side."""
        graph, dtype = self.graph, self.precision.compute
        shape = (parts[0].in_features, sum(part.out_features for part in parts))
        weight = graph.weight(f"{name}.weight", shape, lambda: torch.cat([part.weight for part in parts]).T, dtype)
        product = graph.matmul(graph.cast(x, dtype), weight)
        if parts[0].bias is None:
            return product
        bias = graph.weight(f"{name}.bias", shape[1:], lambda: torch.cat([part.bias for part in parts]), dtype)
        return graph.add(product, bias)
