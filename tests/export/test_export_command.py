"""``fastdrive export`` as people call it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnx", reason="onnx is not installed: pip install -e .[export]")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e .[export]")

from fastdrive_node.cli import main
from fastdrive_node.engines.manifest import manifest_path, read_manifest
from fastdrive_node.errors import InputError


def export(*words) -> int:
    return main(["export", *map(str, words)])


@pytest.fixture
def engine(engine_file, tmp_path):
    """A copy that may be changed."""
    shutil.copy(manifest_path(engine_file), tmp_path)
    return Path(shutil.copy(engine_file, tmp_path))


def test_build_writes_an_engine_and_its_manifest(toy, tmp_path, capsys):
    words = ["--vla", toy.vla.path, "--pruner", toy.pruner_file, "--out", tmp_path / "engines"]
    assert export("build", *words, "--precision", "fp16", "--opset", 17, "--max-keep", 100, "--json", "-") == 0
    figures = json.loads(capsys.readouterr().out)
    manifest = read_manifest(figures["file"])
    assert (manifest.graph.precision, manifest.graph.opset, manifest.graph.max_keep) == ("fp16", 17, 100)
    assert manifest.source.vla == str(toy.vla.path) and manifest.versions["onnx"] and manifest.parity is None
    assert sorted(p.name for p in (tmp_path / "engines").iterdir() if p.suffix != ".lock") == [
        "vision.onnx",
        "vision.onnx.json",
    ]


def test_inspect_prints_the_manifest_and_the_parts(engine, capsys):
    assert export("inspect", engine) == 0
    text = capsys.readouterr().out
    assert "graph.precision" in text and "never compared with torch" in text
    assert "tower/block_1" in text and "GMAC" in text


def test_verify_writes_what_it_finds_into_the_manifest(engine, capsys):
    assert export("verify", engine, "--sets", 2, "--device", "cpu", "--json", "-") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["passed"] and figures["cosine"] > 0.99999 and figures["max_abs_error"] < 1e-4
    assert figures["kept_overlap"] == {"0.25": 1.0, "0.5": 1.0, "0.75": 1.0}
    assert figures["plans_equal"] and figures["plans_compared"] == figures["plans_same"] == 2
    assert set(figures["latency_ms"]) == {"reference", "engine"}
    assert read_manifest(engine).parity.cosine == figures["cosine"]


def test_verify_reads_a_folder_of_images(engine, toy, tmp_path, capsys):
    for camera in toy.vla.spec.cameras:
        (tmp_path / "images" / camera).mkdir(parents=True)
        for name in ("a", "b", "c"):
            image = np.random.default_rng(ord(name)).integers(0, 256, (60, 80, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / "images" / camera / f"{name}.png")
    words = ["--dataset", tmp_path / "images", "--sets", 2, "--device", "cpu", "--json", "-"]
    assert export("verify", engine, *words) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["images"], figures["sets"], figures["plans_compared"]) == ("images, split all", 2, 2)
    shutil.rmtree(tmp_path / "images" / toy.vla.spec.cameras[0])
    assert export("verify", engine, *words) == 1
    assert f"camera {toy.vla.spec.cameras[0]} is" in capsys.readouterr().err


def test_what_was_compared_is_kept_where_the_timing_ends_early(engine, tmp_path, monkeypatch):
    def end(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastdrive_export.parity.measure", end)
    figures = tmp_path / "figures.json"
    assert export("verify", engine, "--sets", 1, "--no-plans", "--device", "cpu", "--json", figures) == 1
    parity = read_manifest(engine).parity
    assert json.loads(figures.read_text())["cosine"] == parity.cosine
    assert parity.passed and parity.sets == 1 and parity.latency_ms == {}
    assert parity.plans_compared == 0 and parity.plans_equal is None


def test_an_engine_that_is_too_far_off_fails_and_is_refused_from_then_on(engine, monkeypatch, capsys, toy):
    monkeypatch.setattr("fastdrive_export.parity.REQUIRED", {"fp32": (1.1, 1.1)})
    assert export("verify", engine, "--sets", 1, "--no-plans", "--device", "cpu") == 1
    assert "too far from torch; build it with --precision" in capsys.readouterr().err
    assert not read_manifest(engine).parity.passed and read_manifest(engine).parity.plans_compared == 0
    from fastdrive_node.engines.vision_engine import EngineChoice
    from fastdrive_node.errors import ModelError
    from fastdrive_node.planning.loading import open_pipeline

    with pytest.raises(ModelError, match="parity"):
        open_pipeline(toy.vla.path, toy.pruner_file, engine=EngineChoice("onnxruntime", engine))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["inspect", "absent.onnx"], "absent.onnx: no such engine file; build it with: fastdrive export build"),
        (["build", "--vla", "absent", "--out", "OUT"], "absent: no such VLA directory"),
        (["build", "--vla", "VLA", "--out", "OUT"], "reconpruner.safetensors: no such pruner file"),
    ],
)
def test_a_failure_is_one_line(engine, toy, tmp_path, capsys, words, reason):
    places = {"ENGINE": engine, "OUT": tmp_path / "out", "VLA": toy.vla.path}
    assert export(*[places.get(word, word) for word in words]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in error if line.startswith("fastdrive export: ")]) == 1 and reason in error[-1]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["build", "--max-keep", 100_000], "max_keep: 100000 is not in 1..180"),
        (["build", "--max-keep", 0], "--max-keep: 0: give 1 or more"),
        (["build", "--opset", 17, "--precision", "bf16"], "precision: bf16 is for opset 18"),
        (["build", "--precision", "fp16", "--fp32-mlp", 99], "fp32_mlp: [99]: the tower has blocks 0 to 1"),
        (["build", "--part", "language", "--backend", "tensorrt"], "--part language: only onnxruntime runs it"),
        (["build", "--precision", "int8"], "--precision: invalid choice"),
        (["build", "--operators", "cuda"], "--operators: invalid choice"),
        (["build", "--operators", "onnxruntime", "--backend", "tensorrt"], "--operators onnxruntime: is for --backend"),
        (
            ["build", "--operators", "onnxruntime", "--precision", "fp16"],
            "operators: onnxruntime is for fp32 and opset",
        ),
        (["verify", "ENGINE", "--drop", 0.96], "--drop: 0.96 is not in [0, 0.95]"),
        (["verify", "ENGINE", "--provider", "openvino"], "--provider: invalid choice"),
    ],
)
def test_an_option_out_of_range_is_wrong_usage(engine, toy, tmp_path, capsys, words, reason):
    given = [engine if word == "ENGINE" else word for word in words] + ["--vla", toy.vla.path]
    given += ["--out", tmp_path / "out"] if "build" in words else []
    given += [] if "language" in words else ["--pruner", toy.pruner_file]
    try:
        assert export(*given) == 2
    except SystemExit as end:
        assert end.code == 2
    assert reason in capsys.readouterr().err and not (tmp_path / "out" / "vision.onnx").exists()


def test_help_has_examples(capsys):
    for words in (["--help"], ["build", "--help"], ["inspect", "--help"], ["verify", "--help"]):
        with pytest.raises(SystemExit) as end:
            export(*words)
        assert end.value.code == 0 and "fastdrive export" in capsys.readouterr().out.split("example")[-1]


def test_replay_hands_the_engine_to_the_node_by_its_whole_path(engine, monkeypatch):
    from fastdrive_node.commands.replay import ReplayOptions, node_options

    monkeypatch.chdir(engine.parent)
    options = ReplayOptions(Path("bag"), backend="onnxruntime", engine=Path(engine.name))
    given = node_options(options, None).parameters
    assert given == {"vla": "tiny", "vision_backend": "onnxruntime", "engine": str(engine.resolve())}
    assert node_options(ReplayOptions(Path("bag")), None).parameters == {"vla": "tiny"}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"engine": "vision.onnx"}, "--engine: give --backend"),
        ({"engine": "vision.onnx", "backend": "torch"}, "--engine: give --backend"),
        ({"engine": "absent.onnx", "backend": "onnxruntime"}, "absent.onnx: no such engine file"),
        ({"node": "external", "backend": "onnxruntime"}, "--node external: .*--backend"),
    ],
)
def test_replay_refuses_options_that_do_not_fit(values, reason):
    from fastdrive_node.commands.replay import ReplayOptions

    values = {name: Path(value) if name == "engine" else value for name, value in values.items()}
    with pytest.raises(InputError, match=reason):
        ReplayOptions(Path("bag"), **values)
