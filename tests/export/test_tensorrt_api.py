"""What is asked of TensorRT in each version, against stand-ins that have that version's members."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from engine_fixtures import small_engine

pytest.importorskip("onnx", reason="onnx is not installed: pip install -e .[export]")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e .[export]")

from fastdrive_export.build import GraphOptions, build_onnx
from fastdrive_export.tensorrt_build import build_tensorrt, check_top_k, choose_options, layer_rows, plan_layers
from fastdrive_node.types import InputError, ModelError
from fastdrive_node.vision import tensorrt_api
from fastdrive_node.vision.manifest import TargetFacts
from fastdrive_node.vision.tensorrt_api import (
    BuilderSettings,
    configure,
    constrain_layers,
    create_network,
    device_memory_bytes,
    io_table,
    load_timing_cache,
    make_logger,
    parse_onnx,
    progress,
)
from fastdrive_node.vision.tensorrt_backend import PlanExecutor, TensorRtRunner, check_target, check_tensors

VERSIONS = ("8.5.3.1", "8.6.1.6", "10.3.0.26", "10.13.3.9", "11.4.0.106")


class Config:
    """Records what is set."""

    def __init__(self):
        self.set_flags, self.cleared, self.limits = [], [], {}
        self.tactic_sources = None
        self.caches = []

    def set_flag(self, flag):
        assert flag is not None
        self.set_flags.append(flag)

    def clear_flag(self, flag):
        self.cleared.append(flag)

    def set_memory_pool_limit(self, pool, size):
        self.limits[pool] = size

    def set_tactic_sources(self, sources):
        self.tactic_sources = sources

    def create_timing_cache(self, content):
        return SimpleNamespace(content=content)

    def set_timing_cache(self, cache, ignore_mismatch):
        assert ignore_mismatch is False
        self.caches.append(cache.content)
        return cache.content != b"of another GPU"


class Builder:
    def __init__(self, config):
        self.config = config

    def create_network(self, flags):
        return SimpleNamespace(flags=flags)

    def create_builder_config(self):
        return self.config


def enum(*names):
    return SimpleNamespace(**{name: name for name in names})


def stand_in(version: str):
    """A module with the members that this version of TensorRT has, as far as versions differ."""
    major, minor = (int(part) for part in version.split(".")[:2])
    creation = {} if major >= 11 else {"EXPLICIT_BATCH": 0}
    if major >= 10:
        creation["STRONGLY_TYPED"] = 1
    config_class = type("IBuilderConfig", (), {"builder_optimization_level": 0} if (major, minor) >= (8, 6) else {})
    module = SimpleNamespace(
        __version__=version,
        NetworkDefinitionCreationFlag=SimpleNamespace(**creation),
        BuilderFlag=enum("TF32", *([] if major >= 11 else ["FP16", "OBEY_PRECISION_CONSTRAINTS"])),
        IBuilderConfig=config_class,
        MemoryPoolType=enum("WORKSPACE"),
        ProfilingVerbosity=enum("DETAILED"),
        LayerType=enum("MATRIX_MULTIPLY", "ELEMENTWISE", "SOFTMAX", "REDUCE", "UNARY", "ACTIVATION", "TOPK", "SHUFFLE"),
        DataType=enum("FLOAT", "HALF", "INT32"),
        TensorIOMode=enum("INPUT", "OUTPUT"),
        ILogger=type("ILogger", (), {"Severity": enum("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")}),
    )
    if major >= 10:
        module.IProgressMonitor = type("IProgressMonitor", (), {})
    return module


@pytest.mark.parametrize(("version", "flags"), list(zip(VERSIONS, (1, 1, 3, 3, 2), strict=True)))
def test_networks_have_explicit_batch_and_their_own_types_where_there_are_flags_for_it(version, flags):
    assert create_network(stand_in(version), Builder(Config())).flags == flags


@pytest.mark.parametrize(("version", "opset"), list(zip(VERSIONS, (17, 17, 18, 18, 18), strict=True)))
def test_the_graph_is_of_the_opset_that_the_version_reads(version, opset):
    trt = stand_in(version)
    assert choose_options(trt, GraphOptions(opset=None)).opset == opset
    with pytest.raises(InputError, match=f"opset: {35 - opset}, but TensorRT {version} is given {opset}"):
        choose_options(trt, GraphOptions(opset=35 - opset))


def test_bf16_is_refused_where_the_version_lacks_it():
    with pytest.raises(InputError, match="bf16 is for opset 18"):
        choose_options(stand_in("8.6.1.6"), GraphOptions("bf16", opset=None))
    assert choose_options(stand_in("10.3.0.26"), GraphOptions("bf16", opset=None)).precision == "bf16"


@pytest.mark.parametrize("version", VERSIONS)
def test_precision_comes_from_the_graph_or_from_constraints(version):
    trt, config = stand_in(version), Config()
    network = SimpleNamespace(num_layers=0)
    _, flags = configure(trt, Builder(config), network, "fp16", BuilderSettings(100, 2))
    typed = version.startswith("1")
    assert flags["strongly_typed"] is typed and flags["tf32"] and not config.cleared
    assert config.set_flags == ([] if typed else ["FP16", "OBEY_PRECISION_CONSTRAINTS"])
    assert config.tactic_sources == (None if typed else 0)
    assert config.limits == {"WORKSPACE": 100 << 20} and config.profiling_verbosity == "DETAILED"
    assert getattr(config, "builder_optimization_level", None) == (None if version.startswith("8.5") else 2)
    assert flags.get("optimization_level") == getattr(config, "builder_optimization_level", None)


@pytest.mark.parametrize("version", VERSIONS)
def test_float32_graphs_have_float32_products(version):
    config = Config()
    _, flags = configure(stand_in(version), Builder(config), SimpleNamespace(num_layers=0), "fp32", BuilderSettings())
    assert config.cleared == ["TF32"] and flags["tf32"] is False and config.set_flags == []


class Layer:
    def __init__(self, kind, dtype):
        self.type, self.dtype, self.precision, self.output = kind, dtype, None, None

    def get_output(self, index):
        return SimpleNamespace(dtype=self.dtype)

    def set_output_type(self, index, dtype):
        self.output = dtype


def test_before_10_each_computing_layer_keeps_the_type_of_its_parsed_output():
    layers = [
        Layer("MATRIX_MULTIPLY", "HALF"),
        Layer("REDUCE", "FLOAT"),
        Layer("SHUFFLE", "HALF"),
        Layer("ELEMENTWISE", "INT32"),
    ]
    network = SimpleNamespace(num_layers=4, get_layer=layers.__getitem__)
    assert constrain_layers(stand_in("8.5.3.1"), network) == 2
    assert [layer.precision for layer in layers] == [layer.output for layer in layers] == ["HALF", "FLOAT", None, None]


def test_a_timing_cache_of_another_gpu_is_started_anew():
    config = Config()
    load_timing_cache(config, b"ours")
    load_timing_cache(config, b"of another GPU")
    assert config.caches == [b"ours", b"of another GPU", b""]


def test_the_parsers_reasons_are_told():
    errors = ["no kernel", "bad axis"]

    class Parser:
        num_errors = 2

        def __init__(self, network, logger):
            pass

        def parse_from_file(self, path):
            return False

        def get_error(self, index):
            return SimpleNamespace(desc=lambda: errors[index])

    with pytest.raises(ModelError, match=r"vision\.onnx: TensorRT's parser refuses it: no kernel; bad axis"):
        parse_onnx(SimpleNamespace(OnnxParser=Parser), None, None, "vision.onnx")


def test_progress_is_told_phase_by_phase():
    trt, config = stand_in("10.3.0.26"), SimpleNamespace()
    with progress(trt, config):
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 2)
        monitor.phase_start("Timing", "Building", 5)
        assert monitor.step_complete("Timing", 0) is True and monitor.step_complete("unknown", 0) is True
        monitor.phase_finish("Timing")
    assert not monitor._bars


def test_older_versions_give_a_sign_of_life(monkeypatch, capsys):
    monkeypatch.setattr(tensorrt_api, "HEARTBEAT_S", 0.01)
    with progress(stand_in("8.5.3.1"), None):
        end = time.monotonic() + 5
        text = ""
        while "building the engine for" not in text and time.monotonic() < end:
            text += capsys.readouterr().err
    assert "building the engine for" in text


def test_errors_are_kept_for_the_refusal(caplog):
    trt = stand_in("10.3.0.26")
    logger = make_logger(trt)
    logger.log("VERBOSE", "detail")
    logger.log("WARNING", "slow")
    logger.log("ERROR", "out of\nmemory")
    assert logger.errors == ["out of memory"] and "slow" in caplog.text and "detail" not in caplog.text

    trt.Runtime = lambda own: SimpleNamespace(deserialize_cuda_engine=lambda plan: own.log("ERROR", "wrong version"))
    with pytest.raises(ModelError, match="does not take the plan: wrong version"):
        PlanExecutor(trt, b"plan")


class Engine:
    num_io_tensors = 2
    device_memory_size = 5

    def get_tensor_name(self, index):
        return ("images", "scores")[index]

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name={"images": "UINT8", "scores": "HALF"}[name])

    def get_tensor_shape(self, name):
        return [6, 32]

    def get_tensor_mode(self, name):
        return "INPUT" if name == "images" else "OUTPUT"


def test_a_plan_with_other_tensors_than_the_manifests_is_refused(tmp_path):
    engine = small_engine(tmp_path, "tensorrt")
    graph = engine.manifest.graph
    check_tensors(engine.file, engine.manifest, graph.inputs(), graph.outputs())
    inputs, outputs = io_table(stand_in("10.3.0.26"), Engine())
    assert outputs["scores"].dtype == "HALF"
    with pytest.raises(ModelError, match=r"inputs\.images: the engine has .*\(6, 32\).*, its manifest .*\(6, 3, "):
        check_tensors(engine.file, engine.manifest, inputs, outputs)
    with pytest.raises(ModelError, match=r"outputs\.scores"):
        check_tensors(engine.file, engine.manifest, graph.inputs(), {**graph.outputs(), "scores": outputs["scores"]})


def test_the_newer_memory_size_wins_where_there_are_both():
    assert device_memory_bytes(Engine()) == 5
    assert device_memory_bytes(SimpleNamespace(device_memory_size=-1, device_memory_size_v2=1 << 33)) == 1 << 33


@pytest.mark.parametrize(
    ("name", "value"), [("tensorrt", "10.13.3.9"), ("compute_capability", "11.0"), ("device", "NVIDIA Thor")]
)
def test_a_plan_of_another_machine_is_refused_with_both_values(tmp_path, name, value):
    engine = small_engine(tmp_path, "tensorrt")
    here = dataclasses.replace(engine.manifest.target, **{name: value})
    theirs = getattr(engine.manifest.target, name)
    expected = f"target.{name}: built with '{theirs}', but here is '{value}'; .*export build .*--backend tensorrt"
    with pytest.raises(ModelError, match=expected):
        check_target(engine.file, engine.manifest, here)


def test_another_driver_is_warned_of(tmp_path, caplog):
    engine = small_engine(tmp_path, "tensorrt")
    check_target(engine.file, engine.manifest, dataclasses.replace(engine.manifest.target, driver="560.1"))
    assert "driver 540.4.0, here is 560.1" in caplog.text


def test_a_plan_needs_a_gpu(tmp_path):
    engine = small_engine(tmp_path, "tensorrt")
    with pytest.raises(ModelError, match="device: a TensorRT engine needs a GPU"):
        TensorRtRunner(engine.file, engine.manifest, torch.device("cpu"))


def test_too_many_tokens_to_sort_are_refused():
    check_top_k(3840)
    with pytest.raises(InputError, match="max_keep: 10944 tokens, but TensorRT sorts at most 3840; give --max-keep"):
        check_top_k(10944)


def test_without_tensorrt_a_build_says_what_to_install(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(ModelError, match="tensorrt: not installed"):
        build_tensorrt(toy.vla.path, toy.pruner_file, tmp_path)


def test_an_older_tensorrt_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="8.4.1.5"))
    with pytest.raises(ModelError, match=r"8\.4\.1\.5 is installed; 8\.5 or later"):
        tensorrt_api.load_tensorrt()


def test_layers_are_listed_whatever_the_version_tells_of_them(tmp_path):
    detailed = {"Name": "a", "LayerType": "gemm", "Outputs": [{"Format/Datatype": "Half"}]}
    rows = layer_rows(json.dumps({"Layers": [detailed, "b", {"Name": "c", "Outputs": []}]}))
    assert rows[0] == {"name": "a", "type": "gemm", "precision": "Half"}
    assert [row["name"] for row in rows] == ["a", "b", "c"]
    assert layer_rows("not JSON") == layer_rows("[1]") == []
    engine = small_engine(tmp_path, "tensorrt")
    with pytest.raises(ModelError, match=r"vision\.plan\.layers\.json: not among the manifest's files"):
        plan_layers(engine.file, engine.manifest)


def fake_tensorrt(graph_facts):
    """A module whose builder gives a plan at once, with the tensors that the graph has."""
    trt = stand_in("10.3.0.26")
    config = Config()
    config.get_timing_cache = lambda: SimpleNamespace(serialize=lambda: b"timings")
    tensors = {**graph_facts.inputs(), **graph_facts.outputs()}
    kinds = {"uint8": "UINT8", "int32": "INT32", "float32": "FLOAT"}
    engine = SimpleNamespace(
        num_io_tensors=len(tensors),
        get_tensor_name=list(tensors).__getitem__,
        get_tensor_dtype=lambda name: SimpleNamespace(name=kinds[tensors[name].dtype]),
        get_tensor_shape=lambda name: tensors[name].shape,
        get_tensor_mode=lambda name: "INPUT" if name in graph_facts.inputs() else "OUTPUT",
        create_execution_context=lambda: object(),
        create_engine_inspector=lambda: SimpleNamespace(
            get_engine_information=lambda form: json.dumps({"Layers": [{"Name": "myelin", "LayerType": "kgen"}]})
        ),
    )
    builder = Builder(config)
    builder.build_serialized_network = lambda network, config: b"plan"
    trt.Builder = lambda logger: builder
    trt.OnnxParser = lambda network, logger: SimpleNamespace(parse_from_file=lambda path: Path(path).is_file())
    trt.Runtime = lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda plan: engine)
    trt.LayerInformationFormat = enum("JSON")
    return trt


def test_a_build_writes_plan_layers_and_manifest(toy, tmp_path, monkeypatch):
    _, onnx = build_onnx(toy.vla.path, toy.pruner_file, tmp_path / "onnx", GraphOptions("fp16"))
    target = TargetFacts("10.3.0.26", "8.7", "Orin", "540.4.0", {})
    monkeypatch.setattr("fastdrive_export.tensorrt_build.load_tensorrt", lambda: fake_tensorrt(onnx.graph))
    monkeypatch.setattr("fastdrive_export.tensorrt_build.present_target", lambda trt, device: target)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    file, manifest = build_tensorrt(toy.vla.path, toy.pruner_file, tmp_path / "trt", GraphOptions("fp16", opset=None))
    assert manifest.kind == "tensorrt" and manifest.graph == onnx.graph and list(manifest.onnx) == ["vision.onnx"]
    assert manifest.target.flags["strongly_typed"] is True and manifest.versions["tensorrt"] == "10.3.0.26"
    from fastdrive_node.vision.engine import check_engine

    assert check_engine(file, toy.vla, toy.pruner_file) == manifest
    assert plan_layers(file, manifest) == [{"name": "myelin", "type": "kgen", "precision": ""}]
    names = {path.name for path in file.parent.iterdir()}
    assert names == {"vision.plan", "vision.plan.json", "vision.plan.layers.json", "tensorrt-10.3.0.26-sm87.timing",
                     ".fastdrive_export.lock"}  # fmt: skip
