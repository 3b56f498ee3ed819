"""ONNX files: written with weights inside or in a second file, checked, and listed part by part."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper
from tqdm import tqdm

from fastdrive_export.graph_writer import CONTRIBUTED, GraphWriter, Value, Weight
from fastdrive_node.engines.graph_info import METADATA_KEY, LanguageGraphInfo, VisionGraphInfo
from fastdrive_node.engines.manifest import DATA_SUFFIX
from fastdrive_node.errors import ModelError

INLINE_BYTES = 1 << 30  # a protobuf holds 2 GiB at most
INLINE_WEIGHT_BYTES = 1 << 10  # smaller ones stay in the file: the parsers expect shapes and scalars there
_ALIGNMENT = 4096  # so that a runtime can map a weight
# Newer opsets have operators that the parsers of older TensorRT versions lack or misread.
ALLOWED_OPERATORS = frozenset(
    ("Add", "Cast", "Concat", "Div", "Erf", "Expand", "Gather", "Gemm", "Identity", "MatMul", "Mul", "Pow",
     "ReduceMean", "Reshape", "Sigmoid", "Slice", "Softmax", "Sqrt", "Sub", "TopK", "Transpose")
)  # fmt: skip
CONTRIBUTED_OPERATORS = frozenset(
    ("GroupQueryAttention", "MultiHeadAttention", "QuickGelu", "RotaryEmbedding", "SkipSimplifiedLayerNormalization")
)


def write_onnx(
    graph: GraphWriter,
    outputs: Sequence[Value],
    info: VisionGraphInfo | LanguageGraphInfo,
    path: Path,
    external: bool | None = None,
) -> list[Path]:
    """Write a graph. Returns the files: ``path``, and ``path`` + ``.data`` where the weights are in a second file.

    Args:
        external: weights in a file of their own; None: where they are larger than ``INLINE_BYTES``.
    """
    if external is None:
        external = sum(weight.nbytes for weight in graph.weights) > INLINE_BYTES
    files = [path]
    weights = tqdm(graph.weights, desc="weights", unit="tensor", leave=False, disable=None)
    if external:
        files.append(path.with_name(path.name + DATA_SUFFIX))
        tensors = _write_external(weights, files[1])
    else:
        tensors = [_inline(weight) for weight in weights]
    metadata = {METADATA_KEY: json.dumps(info.model_dump(mode="json"))}
    model = graph.model(f"fastdrive_{info.part}", outputs, tensors, metadata)
    path.write_bytes(model.SerializeToString())
    check_onnx(path, info.opset, info.fused)
    return files


def _inline(weight: Weight) -> TensorProto:
    value = weight.value
    return helper.make_tensor(value.name, value.dtype, value.shape, weight.raw(), raw=True)


def _write_external(weights, path: Path) -> list[TensorProto]:
    tensors = []
    with path.open("wb") as stream:
        for weight in weights:
            if weight.nbytes < INLINE_WEIGHT_BYTES:
                tensors.append(_inline(weight))
                continue
            stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
            value = weight.value
            tensor = TensorProto(name=value.name, data_type=value.dtype, dims=value.shape)
            tensor.data_location = TensorProto.EXTERNAL
            entries = {"location": path.name, "offset": str(stream.tell()), "length": str(weight.nbytes)}
            for key, text in entries.items():
                tensor.external_data.add(key=key, value=text)
            stream.write(weight.raw())
            tensors.append(tensor)
    return tensors


def check_onnx(path: Path, opset: int, fused: bool = False) -> None:
    """The file is valid ONNX with inferred shapes as declared, of exactly this opset and of known operators.

    ``fused``: it has onnxruntime's own operators.

    TensorRT 8 reads the axes of opset 18's ReduceMean as "all axes", without an error: hence the exactness.

    Raises:
        ModelError: it is not.
    """
    model = load_graph(path)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # onnx raises many kinds
        raise ModelError(f"{path}: not a valid ONNX file ({' '.join(str(error).split())[:200]})") from error
    found = {each.domain or "ai.onnx": each.version for each in model.opset_import}
    expected = {"ai.onnx": opset, **({CONTRIBUTED: 1} if fused else {})}
    if found != expected:
        raise ModelError(f"{path}: opset: the file has {_versions(found)}, expected {_versions(expected)}")
    allowed = {("", name) for name in ALLOWED_OPERATORS}
    if fused:
        allowed |= {(CONTRIBUTED, name) for name in CONTRIBUTED_OPERATORS}
    unknown = {name for domain, name in {(node.domain, node.op_type) for node in model.graph.node} - allowed}
    if unknown:
        where = "onnxruntime's operators that are used here" if fused else "every TensorRT version"
        raise ModelError(f"{path}: operators: {', '.join(sorted(unknown))} are not in {where}")
    axes_inside = {len(node.input) == 1 for node in model.graph.node if node.op_type == "ReduceMean"}
    if axes_inside not in (set(), {opset < 18}):
        raise ModelError(f"{path}: ReduceMean: its axes are not where opset {opset} has them")


def _versions(opsets: dict[str, int]) -> str:
    return ", ".join(f"{domain} {version}" for domain, version in opsets.items())


def load_graph(path: Path) -> onnx.ModelProto:
    """An ONNX file without its external weights. Raises ModelError where it is none."""
    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf and onnx raise many kinds
        raise ModelError(f"{path}: not a readable ONNX file ({' '.join(str(error).split())[:160]})") from error


def layer_table(path: Path) -> list[dict]:
    """One row for each part of the network: nodes, parameters, types of the matrix products, multiply-adds.

    Lengths that differ from run to run count as 1: the row of a language engine is of one token.

    Raises:
        ModelError: no ONNX file.
    """
    graph = load_graph(path).graph
    shapes = {each.name: _shape(each) for each in [*graph.value_info, *graph.input, *graph.output]}
    types = {each.name: each.type.tensor_type.elem_type for each in graph.value_info}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    shapes |= {name: tuple(tensor.dims) for name, tensor in weights.items()}
    rows: dict[str, dict] = {}
    for node in graph.node:
        part = _part(node.name)
        row = rows.setdefault(part, {"part": part, "nodes": 0, "parameters": 0, "types": Counter(), "macs": 0})
        row["nodes"] += 1
        row["parameters"] += sum(math.prod(shapes[name]) for name in node.input if "." in name and name in weights)
        if node.op_type in ("MatMul", "Gemm"):
            row["types"][TensorProto.DataType.Name(types[node.output[0]]).lower()] += 1
            row["macs"] += math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
        elif node.op_type == "MultiHeadAttention":  # GroupQueryAttention's are those of its cache, as long as it is
            query, key = (shapes[name] for name in node.input[:2])
            row["macs"] += 2 * math.prod(query) * key[1]
    return [{**row, "types": dict(row["types"])} for row in rows.values()]


def _part(name: str) -> str:
    """``tower/block_3/mlp/MatMul_1`` -> ``tower/block_3``."""
    scopes = name.split("/")[:-1]
    return "/".join(scopes[:2]) if scopes[:1] in (["tower"], ["layers"]) else scopes[0] if scopes else name


def _shape(info) -> tuple[int, ...]:
    return tuple(dimension.dim_value or 1 for dimension in info.type.tensor_type.shape.dim)
