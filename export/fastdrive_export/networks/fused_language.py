"""The graph of a language engine with onnxruntime's operators, for prompts and for single tokens.

It has the layers of ``networks.language``. The difference is the cache: GroupQueryAttention rotates queries and keys,
writes new keys and values into the cache, which is input and output at the same address, and hides what lies behind,
so there is neither a mask nor anything to copy.

Inputs and outputs, with G key/value heads; S new positions follow those that the cache holds:
    ids, source, visual, wanted    as in ``networks.language``
    cos, sin       [capacity, head dim / 2], rotary angles of each position of the cache, the new ones included
    last_position  [1], the position of the last new token
    total_length   a number: ``last_position`` + 1
    keys_0, ...    [1, G, capacity, head dim], of each layer, rotated
    values_0, ...  [1, G, capacity, head dim]
    logits         [A, vocabulary]
    written_keys_0, written_values_0, ...    the cache
"""

from __future__ import annotations

from typing import Any

from fastdrive_export.graph_writer import GraphWriter, Value
from fastdrive_export.networks.fused import FusedBlocks
from fastdrive_export.networks.language import INPUT_TYPES
from fastdrive_node.engines.graph_info import (
    COS,
    IDS,
    LAST,
    LOGITS,
    SIN,
    SOURCE,
    TOTAL,
    VISUAL,
    WANTED,
    LanguageGraphInfo,
    cache_names,
    written_name,
)


class FusedLanguageNetwork(FusedBlocks):
    """Emits the language model into a graph.

    Args:
        graph: to write to.
        text: transformers' module: ``embed_tokens``, ``layers``, ``norm``.
        head: the output layer; its weight may be that of the embeddings.
        info: sizes of both.
    """

    def __init__(self, graph: GraphWriter, text: Any, head: Any, info: LanguageGraphInfo):
        super().__init__(graph)
        self.text, self.head, self.info = text, head, info

    def build(self) -> list[Value]:
        """The whole graph. Returns the outputs: logits, and the cache of each layer."""
        graph, layers = self.graph, self.text.layers
        inputs = {n: graph.input(n, each.shape, INPUT_TYPES[each.dtype]) for n, each in self.info.inputs().items()}
        with graph.scope("embed"):
            table, hidden = self._embed(inputs)
            normed = self.norm(layers[0].input_layernorm, hidden, "language.layers.0.input_layernorm")
        caches: list[Value] = []
        for index, layer in enumerate(layers):
            last = index == len(layers) - 1
            following = self.text.norm if last else layers[index + 1].input_layernorm
            name = "language.norm" if last else f"language.layers.{index + 1}.input_layernorm"
            with graph.scope("layers"), graph.scope(f"layer_{index}"):
                mixed, *cache = self._attend(layer.self_attn, normed, inputs, index)
                if last:
                    mixed, hidden = (graph.gather(part, inputs[WANTED], 0) for part in (mixed, hidden))
                hidden, normed = self._rest(layer, hidden, mixed, (following, name), index)
            caches += cache
        with graph.scope("head"):
            logits = graph.matmul_transposed(normed, self._head_table(table))
        return [graph.output(logits, LOGITS), *caches]

    def _embed(self, inputs: dict[str, Value]) -> tuple[Value, Value]:
        """The table of embeddings, and what enters the first layer [S, D]."""
        graph, weight = self.graph, self.text.embed_tokens.weight
        table = graph.weight("language.embed_tokens", weight.shape, lambda: weight)
        embedded = graph.gather(table, inputs[IDS], 0)
        rows = graph.concat([embedded, inputs[VISUAL]], 0, "new_and_visual_tokens")
        return table, graph.gather(rows, inputs[SOURCE], 0)

    def _head_table(self, table: Value) -> Value:
        weight = self.head.weight
        if weight is self.text.embed_tokens.weight:
            return table
        return self.graph.weight("language.lm_head", weight.shape, lambda: weight)

    def _attend(self, attention: Any, normed: Value, inputs: dict[str, Value], index: int) -> list[Value]:
        """[S, D] to the mixed values [S, heads x head dim], and the layer's cache."""
        graph, info = self.graph, self.info
        name, count, names = f"language.layers.{index}.self_attn", normed.shape[0], cache_names(index)
        qkv = self.linear([attention.q_proj, attention.k_proj, attention.v_proj], normed, f"{name}.qkv")
        past = [inputs[each] for each in names]
        width = info.heads * info.head_dim
        mixed, *cache = graph.contributed(
            "GroupQueryAttention",
            [graph.reshape(qkv, (1, *qkv.shape)), None, None, *past, *(inputs[n] for n in (LAST, TOTAL, COS, SIN))],
            [(1, count, width), *(each.shape for each in past)],
            [written_name(each) for each in names],
            num_heads=info.heads,
            kv_num_heads=info.kv_heads,
            do_rotary=1,
        )
        return [graph.reshape(mixed, (count, width)), *cache]

    def _rest(
        self, layer: Any, hidden: Value, mixed: Value, following: tuple[Any, str], index: int
    ) -> tuple[Value, Value]:
        """What is behind the attention. Returns the layer's output, and what the ``following`` norm makes of it."""
        name = f"language.layers.{index}"
        out = self.linear([layer.self_attn.o_proj], mixed, f"{name}.self_attn.o_proj")
        norm = layer.post_attention_layernorm
        hidden, normed = self.add_norm(hidden, out, norm, f"{name}.post_attention_layernorm")
        return self.add_norm(hidden, self.gated(layer.mlp, normed, f"{name}.mlp"), *following)
