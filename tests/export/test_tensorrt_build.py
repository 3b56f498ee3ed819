"""Building a plan, against stand-ins for TensorRT."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from tests.engines.engine_fixtures import orin_target
from tests.stand_ins.tensorrt import Builder, stand_in

pytest.importorskip("onnx", reason="onnx is not installed: pip install -e .[export]")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e .[export]")

from fastdrive_export.build import GraphOptions, build_onnx
from fastdrive_export.tensorrt_build import build_plan, build_tensorrt, choose_options, plan_layers
from fastdrive_node.engines.tensorrt_api import BuilderSettings, check_opset
from fastdrive_node.engines.tensorrt_plan import serialize_plan
from fastdrive_node.engines.vision_engine import check_engine
from fastdrive_node.errors import InputError, ModelError


@pytest.mark.parametrize(("version", "opset"), [("8.5.3.1", 18), ("8.6.1.6", 18), ("10.3.0.26", 17)])
def test_no_graph_of_another_opset_reaches_a_parser(version, opset, tmp_path, toy, monkeypatch):
    """The parsers of 8.x read opset 18's ReduceMean as a mean over all axes, and say nothing."""
    with pytest.raises(InputError, match=f"opset: {opset}, but TensorRT {version} is given {35 - opset}"):
        check_opset(stand_in(version), opset)
    file, onnx = build_onnx(toy.vla.path, toy.pruner_file, tmp_path, GraphOptions("fp16", opset))
    target = orin_target("8.5.3.1")
    monkeypatch.setattr("fastdrive_export.tensorrt_build.present_target", lambda trt, device: target)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    with pytest.raises(InputError, match=f"opset: {opset}"):
        build_plan(stand_in(version), file, onnx, tmp_path, BuilderSettings(), tmp_path)


def test_without_tensorrt_a_build_says_what_to_install(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(ModelError, match="tensorrt: not installed"):
        build_tensorrt(toy.vla.path, toy.pruner_file, tmp_path)


def test_a_build_writes_plan_layers_and_manifest(toy, tmp_path, monkeypatch):
    _, onnx = build_onnx(toy.vla.path, toy.pruner_file, tmp_path / "onnx", GraphOptions("fp16", 17))
    monkeypatch.setattr("fastdrive_export.tensorrt_build.load_tensorrt", lambda: stand_in("8.5.3.1"))
    monkeypatch.setattr("fastdrive_export.tensorrt_build.present_target", lambda trt, device: orin_target("8.5.3.1"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    file, manifest = build_tensorrt(toy.vla.path, toy.pruner_file, tmp_path / "trt", GraphOptions("fp16"))
    assert manifest.kind == "tensorrt" and manifest.graph == onnx.graph and list(manifest.onnx) == ["vision.onnx"]
    assert manifest.target.flags["strongly_typed"] is False and manifest.versions["tensorrt"] == "8.5.3.1"
    assert check_engine(file, toy.vla, toy.pruner_file) == manifest
    assert plan_layers(file, manifest) == [{"name": "all", "type": "gemm", "precision": "Half"}]
    names = {path.name for path in file.parent.iterdir()}
    assert names == {"vision.plan", "vision.plan.json", "vision.plan.layers.json", "tensorrt-8.5.3.1-sm87.timing",
                     ".fastdrive_export.lock"}  # fmt: skip


def test_a_plan_is_built_from_onnx_s_operators_alone():
    trt = stand_in("10.3.0.26")
    assert choose_options(trt, GraphOptions("fp32")).graph_operators == "standard"
    with pytest.raises(InputError, match="operators: TensorRT has none of onnxruntime's; give standard"):
        choose_options(trt, GraphOptions("fp32", operators="onnxruntime"))


def test_a_build_without_a_plan_says_why_and_keeps_the_old_timings(tmp_path):
    trt, cache = stand_in("10.3.0.26"), tmp_path / "timings"
    builder = Builder()

    def build(network, config):
        builder.logger.log("ERROR", "no implementation")

    def make(logger):
        builder.logger = logger
        return builder

    builder.build_serialized_network, trt.Builder = build, make
    trt.OnnxParser = lambda network, logger: SimpleNamespace(parse_from_file=lambda path: True)
    cache.write_bytes(b"ours")
    with pytest.raises(ModelError, match="TensorRT built no plan: no implementation"):
        serialize_plan(trt, tmp_path / "vision.onnx", 18, "fp16", BuilderSettings(), cache)
    assert cache.read_bytes() == b"ours" and builder.config.caches == [b"ours"]
