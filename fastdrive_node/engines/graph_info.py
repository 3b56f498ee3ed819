"""What a manifest says about the graph of an engine: its sizes, its inputs and its outputs.

The same description stands in the metadata of the ONNX file, so the order of the fields is part of the format.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from fastdrive_node.types import ENGINE_OPERATORS
from fastdrive_node.validation import STRICT

METADATA_KEY = "fastdrive.graph"  # of the graph's description in an ONNX file
# tensors of a vision engine
IMAGES, TOKENS, INDICES, SCORES = "images", "tokens", "indices", "scores"
# tensors of a language engine
IDS, SOURCE, VISUAL, COS, SIN, MASK, WANTED = "ids", "source", "visual", "cos", "sin", "mask", "wanted"
LOGITS, NEW_KEYS, NEW_VALUES = "logits", "new_keys", "new_values"
LAST, TOTAL = "last_position", "total_length"  # where onnxruntime's operators write the cache themselves
# lengths that differ from run to run
NEW, PAST, SEEN, SHOWN, ASKED = "new", "past", "past_and_new", "visual_tokens", "wanted_positions"
CAPACITY = "capacity"  # positions of such a cache
STANDARD, FUSED = ENGINE_OPERATORS  # operators of a graph
FUSED_HEAD_DIM = 16  # the size of a head must be a multiple of it: so onnxruntime's GroupQueryAttention has it
STORED_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}  # of keys and values, by precision

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=1, le=1 << 24)]
_Index = Annotated[int, Field(ge=0, le=1000)]
_Pixels = Annotated[int, Field(ge=1, le=8192)]
_Small = Annotated[int, Field(ge=1, le=1024)]
_Camera = Annotated[str, Field(pattern="^[A-Za-z0-9_]{1,64}$")]


class Record(BaseModel):
    """Part of a manifest. A model validator's text starts with the field's name; see ``validation.first_fault``."""

    model_config = {**STRICT, "frozen": True}


@dataclass(frozen=True)
class TensorInfo:
    """An input or output. A name in the shape stands for a length that differs from run to run."""

    dtype: str  # uint8, int32, float32, ...
    shape: tuple[int | str, ...]


class _GraphInfo(Record):
    opset: Literal[17, 18]
    precision: Literal["fp32", "fp16", "bf16"]
    fp32_mlp: Annotated[tuple[_Index, ...], Field(max_length=1000)]  # layers whose MLP ends in float32
    operators: Literal["standard", "onnxruntime"] = STANDARD  # of ONNX alone, or onnxruntime's own too

    @model_serializer(mode="wrap")
    def _without_the_default(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A standard graph's description is that of before there were others."""
        content = write(self)
        if content.get("operators") == STANDARD:
            del content["operators"]
        return content

    @property
    def fused(self) -> bool:
        """Whether it has onnxruntime's own operators."""
        return self.operators == FUSED

    @model_validator(mode="after")
    def _check_operators(self) -> _GraphInfo:
        if self.fused and (self.opset, self.precision) != (18, "fp32"):
            raise ValueError(f"operators: {FUSED} in opset {self.opset} and {self.precision}, not 18 and fp32")
        return self


class VisionGraphInfo(_GraphInfo):
    """The graph of a vision engine. It is the same for an ONNX file and the plan that was built from it."""

    part: ClassVar[str] = "vision"  # a field of LanguageGraphInfo, and none here: manifests without it exist

    cameras: Annotated[tuple[_Camera, ...], Field(min_length=1, max_length=32)]
    image_size: tuple[_Pixels, _Pixels]  # height, width in px
    grid: tuple[_Small, _Small]  # token rows, columns of an image
    width: Count  # D
    max_keep: Count  # K_max
    encoder: Sha256  # fingerprint of the vision tower
    pruner: Sha256  # fingerprint of the pruner

    @property
    def total(self) -> int:
        """N, tokens of all cameras."""
        return len(self.cameras) * self.grid[0] * self.grid[1]

    @model_validator(mode="after")
    def _check(self) -> VisionGraphInfo:
        if self.max_keep > self.total:
            raise ValueError(f"max_keep: {self.max_keep} of {self.total} tokens")
        if len(set(self.cameras)) != len(self.cameras):
            raise ValueError("cameras: a name is there twice")
        return self

    def inputs(self) -> dict[str, TensorInfo]:
        return {IMAGES: TensorInfo("uint8", (len(self.cameras), 3, *self.image_size))}

    def outputs(self) -> dict[str, TensorInfo]:
        return {
            TOKENS: TensorInfo("float32", (self.max_keep, self.width)),
            INDICES: TensorInfo("int32", (self.max_keep,)),
            SCORES: TensorInfo("float32", (len(self.cameras), self.grid[0] * self.grid[1])),
        }


class LanguageGraphInfo(_GraphInfo):
    """The graph of a language engine, one for prefill and decode; see ``fastdrive_export.networks.language``, and
    ``fused_language`` for that with onnxruntime's operators.
    """

    layers: Annotated[int, Field(ge=1, le=512)]
    heads: _Small
    kv_heads: _Small
    head_dim: Annotated[int, Field(ge=2, le=1024)]
    width: Count  # D
    vocabulary: Count
    language: Sha256  # fingerprint of the language model
    part: Literal["language"]

    @model_validator(mode="after")
    def _check(self) -> LanguageGraphInfo:
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads: {self.kv_heads} do not divide {self.heads} heads")
        if self.fused and self.head_dim % FUSED_HEAD_DIM:
            raise ValueError(f"operators: {FUSED} with head_dim {self.head_dim}, not a multiple of {FUSED_HEAD_DIM}")
        if max(self.fp32_mlp, default=0) >= self.layers:
            raise ValueError(f"fp32_mlp: layer {max(self.fp32_mlp)} of {self.layers}")
        return self

    def inputs(self) -> dict[str, TensorInfo]:
        rotated = (CAPACITY, self.head_dim // 2) if self.fused else (NEW, self.head_dim)
        tensors = {
            IDS: TensorInfo("int32", (NEW,)),
            SOURCE: TensorInfo("int32", (NEW,)),
            VISUAL: TensorInfo("float32", (SHOWN, self.width)),
            COS: TensorInfo("float32", rotated),
            SIN: TensorInfo("float32", rotated),
        }
        wanted = {WANTED: TensorInfo("int32", (ASKED,))}
        if self.fused:
            tensors |= {**wanted, LAST: TensorInfo("int32", (1,)), TOTAL: TensorInfo("int32", ())}
            return tensors | {name: self._cache for pair in self._cache_names() for name in pair}
        stored = STORED_TYPES[self.precision]
        tensors |= {MASK: TensorInfo("float32", (NEW, SEEN)), **wanted}
        for keys, values in self._cache_names():
            tensors[keys] = TensorInfo(stored, (self.kv_heads, self.head_dim, PAST))
            tensors[values] = TensorInfo(stored, (self.kv_heads, PAST, self.head_dim))
        return tensors

    def outputs(self) -> dict[str, TensorInfo]:
        logits = {LOGITS: TensorInfo("float32", (ASKED, self.vocabulary))}
        if self.fused:
            return logits | {written_name(name): self._cache for pair in self._cache_names() for name in pair}
        stored = STORED_TYPES[self.precision]
        return logits | {
            NEW_KEYS: TensorInfo(stored, (self.layers, self.kv_heads, self.head_dim, NEW)),
            NEW_VALUES: TensorInfo(stored, (self.layers, self.kv_heads, NEW, self.head_dim)),
        }

    @property
    def _cache(self) -> TensorInfo:
        return TensorInfo(STORED_TYPES[self.precision], (1, self.kv_heads, CAPACITY, self.head_dim))

    def _cache_names(self) -> list[tuple[str, str]]:
        return [cache_names(layer) for layer in range(self.layers)]


def cache_names(layer: int) -> tuple[str, str]:
    """The inputs that hold a layer's earlier keys and values."""
    return f"keys_{layer}", f"values_{layer}"


def written_name(name: str) -> str:
    """The output at the same address as this part of the cache."""
    return f"written_{name}"
