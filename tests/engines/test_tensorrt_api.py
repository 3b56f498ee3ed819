"""What is asked of TensorRT in each version, against stand-ins that have that version's members."""

from __future__ import annotations

import json
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from tests.engines.engine_fixtures import small_engine
from tests.stand_ins.tensorrt import VERSIONS, Builder, Config, stand_in

pytest.importorskip("onnx", reason="onnx is not installed: pip install -e .[export]")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e .[export]")

from fastdrive_export.build import GraphOptions
from fastdrive_export.tensorrt_build import check_top_k, choose_options, plan_layers
from fastdrive_node.engines import tensorrt_api, tensorrt_messages
from fastdrive_node.engines.manifest import check_tensors
from fastdrive_node.engines.tensorrt_api import (
    BuilderSettings,
    configure,
    constrain_layers,
    create_network,
    device_memory_bytes,
    load_timing_cache,
    parse_onnx,
    start,
)
from fastdrive_node.engines.tensorrt_messages import make_logger, progress
from fastdrive_node.engines.tensorrt_plan import PlanExecutor, layer_rows
from fastdrive_node.engines.tensorrt_runner import TensorRtRunner, check_target, io_table
from fastdrive_node.errors import InputError, ModelError


@pytest.mark.parametrize(("version", "flags"), list(zip(VERSIONS, (1, 1, 3, 3, 2), strict=True)))
def test_networks_have_explicit_batch_and_their_own_types_where_there_are_flags_for_it(version, flags):
    assert create_network(stand_in(version), Builder()).flags == flags


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
    _, flags = configure(trt, Builder(config=config), network, "fp16", BuilderSettings(100, 2))
    typed = version.startswith("1")
    assert flags["strongly_typed"] is typed and flags["tf32"] and not config.cleared
    assert config.set_flags == ([] if typed else ["FP16", "OBEY_PRECISION_CONSTRAINTS"])
    assert config.tactic_sources == (None if typed else 0)
    assert config.preview == ({} if typed else {"DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805": True})
    assert config.limits == {"WORKSPACE": 100 << 20} and config.profiling_verbosity == "DETAILED"
    assert getattr(config, "builder_optimization_level", None) == (None if version.startswith("8.5") else 2)
    assert flags.get("optimization_level") == getattr(config, "builder_optimization_level", None)


@pytest.mark.parametrize("version", VERSIONS)
def test_float32_graphs_have_float32_products(version):
    config = Config()
    _, flags = configure(
        stand_in(version), Builder(config=config), SimpleNamespace(num_layers=0), "fp32", BuilderSettings()
    )
    assert config.cleared == ["TF32"] and flags["tf32"] is False and config.set_flags == []


class Layer:
    def __init__(self, kind, inputs, outputs):
        self.type, self.inputs, self.outputs = kind, inputs, outputs
        self.num_inputs, self.num_outputs = len(inputs), len(outputs)
        self.precision, self.types = None, {}

    def get_input(self, index):
        return None if self.inputs[index] is None else SimpleNamespace(dtype=self.inputs[index])

    def get_output(self, index):
        return SimpleNamespace(dtype=self.outputs[index])

    def set_output_type(self, index, dtype):
        self.types[index] = dtype


@pytest.mark.parametrize(("version", "cast"), [("8.5.3.1", "IDENTITY"), ("8.6.1.6", "CAST")])
def test_before_10_each_layer_keeps_the_float_type_that_the_graph_gives_it(version, cast):
    kept = {
        "product": (Layer("MATRIX_MULTIPLY", ["HALF", "HALF"], ["HALF"]), "HALF", {0: "HALF"}),
        "mean": (Layer("REDUCE", ["FLOAT"], ["FLOAT"]), "FLOAT", {0: "FLOAT"}),
        "reshape": (Layer("SHUFFLE", ["FLOAT", None], ["FLOAT"]), "FLOAT", {0: "FLOAT"}),
        "gather": (Layer("GATHER", ["FLOAT", "INT32"], ["FLOAT"]), "FLOAT", {0: "FLOAT"}),
        "sort": (Layer("TOPK", ["FLOAT"], ["FLOAT", "INT32"]), "FLOAT", {0: "FLOAT"}),
        "weight": (Layer("CONSTANT", [], ["HALF"]), "HALF", {0: "HALF"}),
        "result": (Layer("IDENTITY", ["FLOAT"], ["FLOAT"]), "FLOAT", {0: "FLOAT"}),
        "cast": (Layer(cast, ["FLOAT"], ["HALF"]), None, {}),
        "pixels": (Layer(cast, ["UINT8"], ["FLOAT"]), None, {}),
        "order": (Layer("SHUFFLE", ["INT32"], ["INT32"]), None, {}),
    }
    layers = [layer for layer, _, _ in kept.values()]
    network = SimpleNamespace(num_layers=len(layers), get_layer=layers.__getitem__)
    assert constrain_layers(stand_in(version), network) == 7
    for name, (layer, precision, types) in kept.items():
        assert (layer.precision, layer.types) == (precision, types), name


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


def test_ctrl_c_ends_the_build_and_not_the_process(monkeypatch):
    """An exception must not pass through TensorRT's own frames."""
    trt, config = stand_in("10.3.0.26"), SimpleNamespace()

    def pressed(self, steps):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), progress(trt, config):
        config.progress_monitor.phase_start("Building", None, 2)
        monkeypatch.setattr("tqdm.tqdm.update", pressed)
        assert config.progress_monitor.step_complete("Building", 0) is False
        assert config.progress_monitor.step_complete("Timing", 0) is False


def test_older_versions_give_a_sign_of_life(monkeypatch, capsys):
    monkeypatch.setattr(tensorrt_messages, "HEARTBEAT_S", 0.01)
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
    with pytest.raises(ModelError, match="does not accept the plan: wrong version"):
        PlanExecutor(trt, b"plan")


def test_a_gpu_that_tensorrt_cannot_use_is_told_in_its_words():
    """The bindings' TypeError says only that a factory function returned nullptr."""
    logger = make_logger(stand_in("8.5.3.1"))

    def refuse(logger):
        logger.log("WARNING", "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    with pytest.raises(ModelError, match="does not start on this GPU and its driver: CUDA initialization failure"):
        start(refuse, logger)


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
    here = engine.manifest.target.model_copy(update={name: value})
    theirs = getattr(engine.manifest.target, name)
    expected = f"target.{name}: built with '{theirs}', but here is '{value}'; .*export build .*--backend tensorrt"
    with pytest.raises(ModelError, match=expected):
        check_target(engine.file, engine.manifest, here)


def test_another_driver_is_warned_of(tmp_path, caplog):
    engine = small_engine(tmp_path, "tensorrt")
    check_target(engine.file, engine.manifest, engine.manifest.target.model_copy(update={"driver": "560.1"}))
    assert "driver 540.4.0, here is 560.1" in caplog.text


def test_a_plan_needs_a_gpu(tmp_path):
    engine = small_engine(tmp_path, "tensorrt")
    with pytest.raises(ModelError, match="device: a TensorRT engine needs a GPU"):
        TensorRtRunner(engine.file, engine.manifest, torch.device("cpu"))


def test_too_many_tokens_to_sort_are_refused():
    check_top_k(3840)
    with pytest.raises(InputError, match="max_keep: 10944 tokens, but TensorRT sorts at most 3840; give --max-keep"):
        check_top_k(10944)


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
