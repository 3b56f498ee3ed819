"""The step ``engines`` of the GPU suite on the CPU: a stand-in for TensorRT 8.5 computes with onnxruntime."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import runpy
import sys
import sysconfig
from dataclasses import replace
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from pathlib import Path

import pytest
import torch

pytest.importorskip("onnx", reason="onnx is not installed: pip install -e .[export]")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e .[export]")

from benchmarks.perf import gpu_suite
from benchmarks.perf.vision_path import compare
from fastdrive_node.engines.tensorrt_plan import PlanExecutor
from tests.engines.engine_fixtures import orin_target

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "perf" / "gpu_suite.py"
STAND_INS = ROOT / "tests" / "stand_ins"
SCENE = "six_cameras_224x112"
QUICK = ("--device", "cpu", "--sizes", "tiny", "--quick", "--steps", "engines", "--compile-backend", "eager")
PROJECT = ("fastdrive_node", "fastdrive_training", "fastdrive_export", "benchmarks")
ABSENT = ("torch", "transformers", "tqdm", "jsonschema", "pydantic")  # from an interpreter that has TensorRT only


@pytest.fixture(scope="module", autouse=True)
def smaller():
    """The tiny size with less to compile, and one scene."""
    size = gpu_suite.SIZES["tiny"]
    vision = {**size.vision, "depth": 2, "fullatt_block_indexes": [1]}
    scenes = tuple(scene for scene in size.scenes if scene.name == SCENE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(gpu_suite.SIZES, "tiny", replace(size, vision=vision, scenes=scenes))
        yield


@pytest.fixture(scope="module")
def python310(tmp_path_factory) -> Path:
    """An interpreter with the stand-ins, in which torch and others cannot be imported."""
    folder = tmp_path_factory.mktemp("prefix")
    for name in ABSENT:
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError('{name} is not in this interpreter')\n")
    launcher = folder / "python310"
    launcher.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}:{STAND_INS}" exec "{sys.executable}" "$@"\n')
    launcher.chmod(0o755)
    return launcher


def run(out: Path, *arguments: str) -> dict:
    gpu_suite.main([*QUICK, "--out", str(out), *arguments])
    report = json.loads(out.read_text())
    assert report["finished"]
    return report["sizes"]["tiny"]["engines"][SCENE]


@pytest.fixture(scope="module")
def entry(python310, tmp_path_factory) -> dict:
    return run(tmp_path_factory.mktemp("suite") / "suite.json", "--tensorrt-python", str(python310))


def test_plans_are_built_and_run_in_the_other_interpreter_and_agree_with_torch(entry):
    assert entry["tensorrt"]["version"] == "8.5.3.1" and entry["tensorrt"]["opset"] == 17
    for precision, least in (("fp32", 0.999999), ("fp16", 0.9999)):
        trt = entry["rows"][precision]["tensorrt"]
        assert "error" not in trt and trt["plan_bytes"] > 0 and trt["layer_outputs"] == {"Half": 1}
        assert trt["against_torch"]["cosine_min"] > least
        assert set(trt["against_torch"]["kept_overlap"]) == {"0.25", "0.5", "0.75"}
        assert min(trt["against_torch"]["kept_overlap"].values()) > 0.95
    assert entry["rows"]["fp16"]["tensorrt"]["flags"]["constrained_layers"] == 1
    assert entry["rows"]["fp32"]["tensorrt"]["flags"]["tf32"] is False


def test_each_row_has_the_times_of_every_side(entry):
    for precision in ("fp32", "fp16"):
        row = entry["rows"][precision]
        assert set(row["latency"]) == {"torch_eager", "torch_compiled"}
        for key in ("latency", "latency_cuda_graph"):
            times = row["tensorrt"][key]
            assert times["gpu"]["median_ms"] == 1.5 and times["wall"]["min_ms"] > 0 and times["wall"]["runs"] == 2
        ratios = row["ratios"]["torch_eager_over"]
        assert set(ratios) == {"torch_compiled", "tensorrt", "tensorrt_cuda_graph"}
        eager, trt = row["latency"]["torch_eager"]["median_ms"], row["tensorrt"]["latency"]["wall"]["median_ms"]
        assert ratios["tensorrt"] == pytest.approx(eager / trt, rel=1e-2)
        assert row["compiled"]["ours_compiled"]["cosine_min"] > 0.9999


def test_bf16_is_left_to_torch_before_tensorrt_10(entry):
    row = entry["rows"]["bf16"]
    assert row["tensorrt"] == {"skipped": "TensorRT 8.5.3.1 has no bf16"}
    assert row["torch"]["against_torch"]["cosine"] > 0.99 and row["latency"]["torch_eager"]["median_ms"] > 0


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        ("no_gpu", "does not start on this GPU and its driver: CUDA initialization failure with error: 35"),
        ("no_plan", "TensorRT built no plan: no_plan"),
        ("crash", "exit code 11"),
    ],
)
def test_a_build_that_fails_is_recorded_and_torch_is_measured(python310, monkeypatch, tmp_path, failure, reason):
    monkeypatch.setenv("STAND_IN_TENSORRT", failure)
    out = tmp_path / "suite.json"
    arguments = ("--tensorrt-python", str(python310), "--precisions", "fp16", "--compile-backend", "none")
    row = run(out, *arguments)["rows"]["fp16"]
    assert reason in row["tensorrt"]["error"] and "against_torch" not in row["tensorrt"]
    assert row["latency"]["torch_eager"]["median_ms"] > 0


def test_without_tensorrt_it_says_so_and_measures_torch(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    entry = run(tmp_path / "suite.json", "--precisions", "fp32", "--compile-backend", "none")
    assert "not installed" in entry["tensorrt"]["error"] and "--tensorrt-python" in entry["tensorrt"]["error"]
    row = entry["rows"]["fp32"]
    assert row["tensorrt"] == {"skipped": "no TensorRT"} and set(row["latency"]) == {"torch_eager"}
    assert row["torch"]["against_torch"]["cosine_min"] > 0.999999


def test_a_missing_interpreter_is_recorded(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    absent = str(tmp_path / "absent")
    arguments = ("--tensorrt-python", absent, "--precisions", "fp32", "--compile-backend", "none")
    assert absent in run(tmp_path / "suite.json", *arguments)["tensorrt"]["error"]


class Runner:
    """The node's runner without a GPU."""

    def __init__(self, file, manifest, device):
        import tensorrt

        self.name, self.executor = "stand-in", PlanExecutor(tensorrt, file.read_bytes())

    def execute(self, pointers):
        self.executor.bind(pointers)
        self.executor.enqueue(0)


def test_a_tensorrt_of_this_python_takes_turns_with_torch(monkeypatch, tmp_path):
    target = orin_target("8.5.3.1", compute_capability="9.0")
    spec = importlib.util.spec_from_file_location("tensorrt", STAND_INS / "tensorrt.py")
    monkeypatch.setitem(sys.modules, "tensorrt", importlib.util.module_from_spec(spec))
    spec.loader.exec_module(sys.modules["tensorrt"])
    monkeypatch.setattr("fastdrive_export.tensorrt_build.present_target", lambda trt, device: target)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("fastdrive_node.engines.tensorrt_runner.TensorRtRunner", Runner)
    out, work = tmp_path / "suite.json", tmp_path / "work"
    row = run(out, "--precisions", "fp16", "--work", str(work))["rows"]["fp16"]
    assert row["tensorrt"]["runtime"] == "stand-in" and row["tensorrt"]["layers"] == 1
    assert row["tensorrt"]["against_torch"]["cosine_min"] > 0.9999
    assert set(row["latency"]) == {"tensorrt", "torch_eager", "torch_compiled"}
    assert (work / f"tiny_{SCENE}" / "fp16" / "vision.plan").is_file()


def run_alone(answer) -> None:
    """Sends the file of ``fastdrive_export.precision`` once the script has run where the project is not installed."""
    for name in [name for name in sys.modules if name.split(".")[0] in PROJECT]:
        del sys.modules[name]
    library = sysconfig.get_path("stdlib")
    packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    sys.path[:] = [library, str(Path(library) / "lib-dynload"), *packages]
    sys.meta_path[:] = [BuiltinImporter, FrozenImporter, PathFinder]  # without those of editable installations
    try:
        importlib.import_module("fastdrive_node")
    except ModuleNotFoundError:
        runpy.run_path(str(SCRIPT))
        answer.send(importlib.import_module("fastdrive_export.precision").__file__)


def test_a_checkout_that_is_not_installed_is_enough():
    """A fork of this process has torch, and forgets the project and every way to it."""
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=run_alone, args=(writer,))
    process.start()
    writer.close()
    try:
        assert reader.recv() == str(ROOT / "export" / "fastdrive_export" / "precision.py")
    finally:
        process.join()


def test_the_wrong_order_or_numbers_are_no_result():
    good = {
        "tokens": torch.eye(4),
        "indices": torch.tensor([2, 0, 1, 3]),
        "scores": torch.tensor([[3.0, 2.0, 4.0, 1.0]]),
    }
    assert compare(good, good)["cosine_min"] == 1.0
    with pytest.raises(ValueError, match="indices: not 4 different tokens"):
        compare({**good, "indices": torch.tensor([2, 0, 1, 1])}, good)
    with pytest.raises(ValueError, match="not finite"):
        compare({**good, "scores": good["scores"] / 0}, good)
    other = compare({**good, "indices": torch.tensor([3, 0, 1, 2]), "tokens": torch.eye(4)[[3, 1, 2, 0]]}, good)
    assert other["kept_overlap"] == {"0.25": pytest.approx(2 / 3, abs=1e-6), "0.5": 0.5, "0.75": 0.0}
