"""JSON schemas of the manifests of vision and language engines."""

from __future__ import annotations

FORMAT, VERSION = "fastdrive-engine", 1

_TEXT = {"type": "string", "maxLength": 4096}
_HASH = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_COUNT = {"type": "integer", "minimum": 1, "maximum": 1 << 24}
_SHARE = {"type": "number", "minimum": 0, "maximum": 1}
_SIZE = {"type": "number", "minimum": 0}
_FILE_NAME = "^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$"


def _record(**properties: dict) -> dict:
    """An object with exactly these fields."""
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(properties),
        "properties": properties,
    }


def _pair(item: dict) -> dict:
    return {"type": "array", "items": item, "minItems": 2, "maxItems": 2}


_FILES = {
    "type": "object",
    "maxProperties": 16,
    "additionalProperties": False,
    "patternProperties": {_FILE_NAME: _record(bytes={"type": "integer", "minimum": 0}, sha256=_HASH)},
}
_TENSORS = {
    "type": "object",
    "maxProperties": 16,
    "additionalProperties": _record(
        dtype={"enum": ["uint8", "int32", "float32"]},
        shape={"type": "array", "items": _COUNT, "minItems": 1, "maxItems": 4},
    ),
}
_GRAPH = _record(
    opset={"enum": [17, 18]},
    precision={"enum": ["fp32", "fp16", "bf16"]},
    fp32_mlp={"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 1000}, "maxItems": 1000},
    cameras={
        "type": "array",
        "items": {"type": "string", "pattern": "^[A-Za-z0-9_]{1,64}$"},
        "minItems": 1,
        "maxItems": 32,
        "uniqueItems": True,
    },
    image_size=_pair({"type": "integer", "minimum": 1, "maximum": 8192}),
    grid=_pair({"type": "integer", "minimum": 1, "maximum": 1024}),
    width=_COUNT,
    max_keep=_COUNT,
    encoder=_HASH,
    pruner=_HASH,
)
_TARGET = _record(
    tensorrt={"type": "string", "pattern": r"^[0-9]+(\.[0-9]+){1,4}[A-Za-z0-9.+-]{0,20}$"},
    compute_capability={"type": "string", "pattern": r"^[0-9]{1,2}\.[0-9]$"},
    device=_TEXT,
    driver=_TEXT,
    flags={"type": "object", "maxProperties": 64, "additionalProperties": {"type": ["boolean", "integer", "string"]}},
)
_PARITY = _record(
    passed={"type": "boolean"},
    images=_TEXT,
    sets=_COUNT,
    cosine={"type": "number", "minimum": -1, "maximum": 1},
    cosine_min={"type": "number", "minimum": -1, "maximum": 1},
    max_abs_error=_SIZE,
    score_max_abs_error=_SIZE,
    kept_overlap={"type": "object", "maxProperties": 32, "additionalProperties": _SHARE},
    plans_equal={"type": "boolean"},
    plans_compared={"type": "integer", "minimum": 0},
    plans_same={"type": "integer", "minimum": 0},
    runtime=_TEXT,
    latency_ms=_record(reference=_SIZE, engine=_SIZE),
)

_MAX_LAYERS = 512
_LANGUAGE_TENSORS = {
    "type": "object",
    "maxProperties": 2 * _MAX_LAYERS + 16,
    "additionalProperties": _record(
        dtype={"enum": ["int32", "float32", "float16", "bfloat16"]},
        shape={
            "type": "array",
            "items": {"anyOf": [_COUNT, {"type": "string", "pattern": "^[a-z_]{1,32}$"}]},
            "minItems": 1,
            "maxItems": 4,
        },
    ),
}
_LANGUAGE_GRAPH = _record(
    part={"const": "language"},
    opset={"enum": [17, 18]},
    precision={"enum": ["fp32", "fp16", "bf16"]},
    fp32_mlp={"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": _MAX_LAYERS},
    layers={"type": "integer", "minimum": 1, "maximum": _MAX_LAYERS},
    heads={"type": "integer", "minimum": 1, "maximum": 1024},
    kv_heads={"type": "integer", "minimum": 1, "maximum": 1024},
    head_dim={"type": "integer", "minimum": 2, "maximum": 1024},
    width=_COUNT,
    vocabulary=_COUNT,
    language=_HASH,
)
_COSINE = {"type": "number", "minimum": -1, "maximum": 1}
_LANGUAGE_PARITY = _record(
    passed={"type": "boolean"},
    images=_TEXT,
    sets=_COUNT,
    steps=_COUNT,
    cosine=_COSINE,
    cosine_min=_COSINE,
    max_abs_error=_SIZE,
    prefill_max_abs_error=_SIZE,
    same_tokens=_SHARE,
    answers_equal={"type": "boolean"},
    answers_compared={"type": "integer", "minimum": 0},
    answers_same={"type": "integer", "minimum": 0},
    runtime=_TEXT,
    latency_ms=_record(reference_prefill=_SIZE, engine_prefill=_SIZE, reference_answer=_SIZE, engine_answer=_SIZE),
)


def _manifest(graph: dict, tensors: dict, parity: dict) -> dict:
    return _record(
        format={"const": FORMAT},
        version={"const": VERSION},
        kind={"enum": ["onnx", "tensorrt"]},
        files={**_FILES, "minProperties": 1},
        onnx=_FILES,
        graph=graph,
        inputs=tensors,
        outputs=tensors,
        source=_record(vla=_TEXT, pruner=_TEXT),
        versions={"type": "object", "maxProperties": 32, "additionalProperties": _TEXT},
        target={"anyOf": [{"type": "null"}, _TARGET]},
        parity={"anyOf": [{"type": "null"}, parity]},
    )


SCHEMAS = {  # by part of the VLA
    "vision": _manifest(_GRAPH, _TENSORS, _PARITY),
    "language": _manifest(_LANGUAGE_GRAPH, _LANGUAGE_TENSORS, _LANGUAGE_PARITY),
}
