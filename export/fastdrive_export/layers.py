"""What is inside of an engine: a table of its parts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from onnx import TensorProto

from fastdrive_export.onnx_file import load_graph


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
        row["parameters"] += sum(_size(shapes[name]) for name in node.input if "." in name and name in weights)
        if node.op_type in ("MatMul", "Gemm"):
            row["types"][TensorProto.DataType.Name(types[node.output[0]]).lower()] += 1
            row["macs"] += _size(shapes[node.output[0]]) * shapes[node.input[0]][-1]
    return [{**row, "types": dict(row["types"])} for row in rows.values()]


def _part(name: str) -> str:
    """``tower/block_3/mlp/MatMul_1`` -> ``tower/block_3``."""
    scopes = name.split("/")[:-1]
    return "/".join(scopes[:2]) if scopes[:1] in (["tower"], ["layers"]) else scopes[0] if scopes else name


def _shape(info) -> tuple[int, ...]:
    return tuple(dimension.dim_value or 1 for dimension in info.type.tensor_type.shape.dim)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size
