"""ONNX files: weights inline or beside, and what must hold of a file that was written."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
from onnx import TensorProto, helper
from tqdm import tqdm

from fastdrive_export.graph_writer import GraphWriter, Value, Weight
from fastdrive_node.engines.graph_info import METADATA_KEY, LanguageGraphInfo, VisionGraphInfo
from fastdrive_node.engines.manifest import DATA_SUFFIX
from fastdrive_node.errors import ModelError

INLINE_BYTES = 1 << 30  # a protobuf ends at 2 GiB
INLINE_WEIGHT_BYTES = 1 << 10  # smaller ones stay in the file, where the parsers want shapes and scalars
_ALIGNMENT = 4096  # so that a runtime can map a weight
# Newer opsets have operators that the parsers of older TensorRT versions lack or misread.
ALLOWED_OPERATORS = frozenset(
    ("Add", "Cast", "Concat", "Div", "Erf", "Expand", "Gather", "Gemm", "Identity", "MatMul", "Mul", "ReduceMean",
     "Reshape", "Sigmoid", "Slice", "Softmax", "Sqrt", "Sub", "TopK", "Transpose")
)  # fmt: skip


def write_onnx(
    graph: GraphWriter,
    outputs: list[Value],
    facts: VisionGraphInfo | LanguageGraphInfo,
    path: Path,
    external: bool | None = None,
) -> list[Path]:
    """Write a graph. Returns the files: ``path``, and ``path`` + ``.data`` where the weights lie beside.

    Args:
        external: weights in a file of their own; None: where they pass ``INLINE_BYTES``.
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
    metadata = {METADATA_KEY: json.dumps(facts.model_dump(mode="json"))}
    model = graph.model(f"fastdrive_{facts.part}", outputs, tensors, metadata)
    path.write_bytes(model.SerializeToString())
    check_onnx(path, facts.opset)
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
            place = {"location": path.name, "offset": str(stream.tell()), "length": str(weight.nbytes)}
            for key, text in place.items():
                tensor.external_data.add(key=key, value=text)
            stream.write(weight.raw())
            tensors.append(tensor)
    return tensors


def check_onnx(path: Path, opset: int) -> None:
    """The file is valid ONNX with inferred shapes as declared, of exactly this opset and of known operators.

    TensorRT 8 reads the axes of opset 18's ReduceMean as "all axes", without an error: hence the exactness.

    Raises:
        ModelError: it is not.
    """
    model = load_graph(path)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # onnx raises many kinds
        raise ModelError(f"{path}: not a valid ONNX file ({' '.join(str(error).split())[:200]})") from error
    found = [(each.domain, each.version) for each in model.opset_import]
    if found != [("", opset)]:
        raise ModelError(f"{path}: opset: the file has {found}, expected {opset}")
    strange = {node.op_type for node in model.graph.node} - ALLOWED_OPERATORS
    if strange:
        raise ModelError(f"{path}: operators: {', '.join(sorted(strange))} are not in every TensorRT version")
    axes_inside = {len(node.input) == 1 for node in model.graph.node if node.op_type == "ReduceMean"}
    if axes_inside not in (set(), {opset < 18}):
        raise ModelError(f"{path}: ReduceMean: its axes are not where opset {opset} has them")


def load_graph(path: Path) -> onnx.ModelProto:
    """An ONNX file without its external weights. Raises ModelError where it is none."""
    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf and onnx raise many kinds
        raise ModelError(f"{path}: not a readable ONNX file ({' '.join(str(error).split())[:160]})") from error
