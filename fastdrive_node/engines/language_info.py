"""What the manifest of a language engine says: the graph's sizes and tensors, and how right it is."""

from __future__ import annotations

from dataclasses import dataclass

from fastdrive_node.engines.graph_info import TensorFacts

# the engine's tensors
IDS, SOURCE, VISUAL, COS, SIN, MASK, LAST = "ids", "source", "visual", "cos", "sin", "mask", "last"
LOGITS, NEW_KEYS, NEW_VALUES = "logits", "new_keys", "new_values"
# lengths that differ from run to run
NEW, PAST, SEEN, SHOWN = "new", "past", "past_and_new", "visual_tokens"
STORED_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}  # of keys and values, by precision


def cache_names(layer: int) -> tuple[str, str]:
    """The inputs that hold a layer's earlier keys and values."""
    return f"keys_{layer}", f"values_{layer}"


@dataclass(frozen=True)
class LanguageFacts:
    """The network of a language engine, one graph for prefill and decode; see ``fastdrive_export.language_network``."""

    opset: int
    precision: str  # fp32, fp16, bf16
    fp32_mlp: tuple[int, ...]  # layers whose gated product and down projection are float32
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    width: int  # D
    vocabulary: int
    language: str  # fingerprint of the language half
    part: str = "language"

    def faults(self) -> dict[str, tuple[bool, str]]:
        """What the schema cannot say: by field, whether it is wrong, and why."""
        deepest = max(self.fp32_mlp, default=-1)
        return {
            "graph.kv_heads": (self.heads % self.kv_heads != 0, f"{self.heads} heads cannot share {self.kv_heads}"),
            "graph.fp32_mlp": (deepest >= self.layers, f"layer {deepest} of {self.layers}"),
        }

    def inputs(self) -> dict[str, TensorFacts]:
        stored = STORED_TYPES[self.precision]
        facts = {
            IDS: TensorFacts("int32", (NEW,)),
            SOURCE: TensorFacts("int32", (NEW,)),
            VISUAL: TensorFacts("float32", (SHOWN, self.width)),
            COS: TensorFacts("float32", (NEW, self.head_dim)),
            SIN: TensorFacts("float32", (NEW, self.head_dim)),
            MASK: TensorFacts("float32", (NEW, SEEN)),
            LAST: TensorFacts("int32", (1,)),
        }
        for layer in range(self.layers):
            keys, values = cache_names(layer)
            facts[keys] = TensorFacts(stored, (self.kv_heads, self.head_dim, PAST))
            facts[values] = TensorFacts(stored, (self.kv_heads, PAST, self.head_dim))
        return facts

    def outputs(self) -> dict[str, TensorFacts]:
        stored = STORED_TYPES[self.precision]
        return {
            LOGITS: TensorFacts("float32", (1, self.vocabulary)),
            NEW_KEYS: TensorFacts(stored, (self.layers, self.kv_heads, self.head_dim, NEW)),
            NEW_VALUES: TensorFacts(stored, (self.layers, self.kv_heads, NEW, self.head_dim)),
        }


@dataclass(frozen=True)
class LanguageParity:
    """The engine against torch in float32 on the same prompts, each with the answer that torch gives forced on both."""

    passed: bool
    images: str  # which
    sets: int
    steps: int  # compared logits, the prefills' included
    cosine: float  # of the logits, mean over steps
    cosine_min: float
    max_abs_error: float  # of the logits
    prefill_max_abs_error: float  # of those at the end of the prompts
    same_tokens: float  # share of steps with the same likeliest token
    answers_equal: bool  # each side decoding for itself
    answers_compared: int
    answers_same: int
    runtime: str  # what ran the engine
    latency_ms: dict[str, float]  # reference, engine: medians of prefill and whole answer
