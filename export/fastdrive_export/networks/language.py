"""The graph of a language engine, for prompts and for single tokens: a decoder with RMSNorm, rotary positions, grouped
key/value heads and a gated MLP, with the module names of transformers' Llama and its relatives.

One graph serves both, so that the weights are held once: S new positions look at P earlier ones and at themselves. A
prefill has the P positions of a head that is kept, or P = 1, an earlier position that the mask hides, for runtimes
take no empty tensors; a decode step has S = 1 and the whole cache, of which the mask hides what is not filled. The
graph gives the new keys and values, and the caller puts them into its cache, so nothing of the cache is copied from
step to step but by the attention itself.

RMSNorm is explicit; query, key and value are one product, gate and up are another; the rotary angles come from outside;
key/value heads are broadcast; the last layer runs only for the positions whose logits are needed.

Inputs and outputs, with G key/value heads; see ``LanguageGraphInfo`` for the types:
    ids            [S], token ids; at the position of a visual token any id
    source         [S], of each position: s for the embedding of ids[s], S + k for the visual token k
    visual         [V, D], at least one row; ``source`` says which rows are read
    cos, sin       [S, head dim], rotary angles with rotate-half's sign folded into sin
    mask           [S, P + S], added to the attention's logits: 0 or ``HIDDEN``
    wanted         [A], the positions whose logits are given
    keys_0, ...    [G, head dim, P], of each layer, rotated; finite everywhere
    values_0, ...  [G, P, head dim]
    logits         [A, vocabulary]
    new_keys       [layers, G, head dim, S]
    new_values     [layers, G, S, head dim]
"""

from __future__ import annotations

from typing import Any

from fastdrive_export.graph_writer import TORCH_TYPES, GraphWriter, Value
from fastdrive_export.networks.blocks import Blocks
from fastdrive_export.precision import Precision
from fastdrive_node.engines.graph_info import (
    COS,
    IDS,
    LOGITS,
    MASK,
    NEW_KEYS,
    NEW_VALUES,
    SEEN,
    SIN,
    SOURCE,
    VISUAL,
    WANTED,
    LanguageGraphInfo,
    cache_names,
)

INPUT_TYPES = {str(kind).removeprefix("torch."): number for number, kind in TORCH_TYPES.items()} | {"int32": 6}


class LanguageNetwork(Blocks):
    """Emits the language model into a graph.

    Args:
        graph: to write to.
        text: transformers' module: ``embed_tokens``, ``layers``, ``norm``.
        head: the output layer; its weight may be that of the embeddings.
        info: sizes of both.
        precision: types of the parts.
    """

    def __init__(self, graph: GraphWriter, text: Any, head: Any, info: LanguageGraphInfo, precision: Precision):
        super().__init__(graph, precision)
        self.text, self.head, self.info = text, head, info

    def build(self) -> list[Value]:
        """The whole graph. Returns the outputs: logits, new keys, new values."""
        graph = self.graph
        inputs = {
            name: graph.input(name, each.shape, INPUT_TYPES[each.dtype]) for name, each in self.info.inputs().items()
        }
        with graph.scope("embed"):
            table, hidden = self._embed(inputs[IDS], inputs[SOURCE], inputs[VISUAL])
            # the square root of the attention's scale in both: the same angles rotate queries and keys
            scale = self.info.head_dim**-0.25
            rotation = [
                graph.mul(graph.reshape(inputs[name], (inputs[name].shape[0], 1, self.info.head_dim)), scale)
                for name in (COS, SIN)
            ]
        new_keys, new_values = [], []
        mask, wanted = inputs[MASK], None
        for index, layer in enumerate(self.text.layers):
            if index == len(self.text.layers) - 1:
                wanted = inputs[WANTED]
            with graph.scope("layers"), graph.scope(f"layer_{index}"):
                mask = mask if wanted is None else graph.gather(mask, wanted, 0)
                past = [inputs[name] for name in cache_names(index)]
                hidden, keys, values = self._layer(layer, hidden, rotation, mask, past, wanted, index)
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
        embedded = self._wide(graph.gather(table, ids, 0))
        rows = graph.concat([embedded, visual], 0, "new_and_visual_tokens")
        return table, graph.gather(rows, source, 0)

    def _head_table(self, table: Value) -> Value:
        weight = self.head.weight
        if weight is self.text.embed_tokens.weight:
            return table
        return self.graph.weight("language.lm_head", weight.shape, lambda: weight, self.precision.compute)

    def _layer(
        self,
        layer: Any,
        hidden: Value,
        rotation: list[Value],
        mask: Value,
        past: list[Value],
        wanted: Value | None,
        index: int,
    ) -> tuple[Value, Value, Value]:
        """One layer. Returns its output, and its new keys and values, each with an axis of length 1 in front.

        Args:
            wanted: None, or the positions whose output is needed.
        """
        graph, name = self.graph, f"language.layers.{index}"
        with graph.scope("attention"):
            normed = self._norm(layer.input_layernorm, hidden, f"{name}.input_layernorm")
            query, key, value = self._rotated(layer.self_attn, normed, rotation, f"{name}.self_attn")
            if wanted is not None:
                query, hidden = graph.gather(query, wanted, 0), graph.gather(hidden, wanted, 0)
            key, value = graph.transpose(key, (1, 2, 0)), graph.transpose(value, (1, 0, 2))
            mixed = self._attend(
                query, graph.concat([past[0], key], 2, SEEN), graph.concat([past[1], value], 1, SEEN), mask
            )
            out = self._linear(layer.self_attn.o_proj, mixed, f"{name}.self_attn.o_proj")
            hidden = graph.add(hidden, self._wide(out))
        with graph.scope("mlp"):
            normed = self._norm(layer.post_attention_layernorm, hidden, f"{name}.post_attention_layernorm")
            narrow = index not in self.precision.fp32_mlp
            hidden = graph.add(hidden, self._gated(layer.mlp, normed, f"{name}.mlp", narrow))
        key, value = (graph.reshape(part, (1, *part.shape)) for part in (key, value))
        return hidden, key, value

    def _rotated(self, attention: Any, normed: Value, rotation: list[Value], name: str) -> list[Value]:
        """Query [S, heads, head dim], key and value [S, key/value heads, head dim], rotated, in the compute type."""
        graph, info = self.graph, self.info
        count, size = normed.shape[0], info.head_dim
        parts = [attention.q_proj, attention.k_proj, attention.v_proj]
        joined = self._joined(parts, normed, f"{name}.qkv")
        heads = graph.reshape(joined, (count, info.heads + 2 * info.kv_heads, size))
        rotating = info.heads + info.kv_heads
        rotated = graph.cast(self._rotate(graph.slice(heads, 1, 0, rotating), *rotation), self.precision.compute)
        return [
            graph.slice(rotated, 1, 0, info.heads),
            graph.slice(rotated, 1, info.heads, rotating),
            graph.slice(heads, 1, rotating, rotating + info.kv_heads),
        ]

    def _attend(self, query: Value, keys: Value, values: Value, mask: Value) -> Value:
        """[Q, heads, head dim] to [Q, heads x head dim]; each key/value head serves its group of query heads."""
        graph, info = self.graph, self.info
        count, groups, size = query.shape[0], info.kv_heads, info.head_dim
        query = graph.reshape(query, (count, groups, info.heads // groups, size))
        query = graph.transpose(query, (1, 2, 0, 3))
        keys, values = (graph.reshape(part, (groups, 1, *part.shape[1:])) for part in (keys, values))
        weights = graph.softmax(graph.add(self._wide(graph.matmul(query, keys)), mask))
        mixed = graph.matmul(graph.cast(weights, self.precision.compute), values)
        mixed = graph.transpose(mixed, (2, 0, 1, 3))
        return graph.reshape(mixed, (count, info.heads * size))

    def _gate_up(self, mlp: Any, normed: Value, name: str) -> list[Value]:
        """One product for both."""
        inner = mlp.gate_proj.out_features
        joined = self._joined([mlp.gate_proj, mlp.up_proj], normed, f"{name}.gate_up")
        return [self.graph.slice(joined, 1, start, start + inner) for start in (0, inner)]
