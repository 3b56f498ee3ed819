"""``fastdrive export --part language`` as people call it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="onnx is not installed: pip install -e .[export]")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e .[export]")

from fastdrive_node.cli import main
from fastdrive_node.engines.manifest import read_manifest
from fastdrive_node.errors import InputError


def export(*words) -> int:
    return main(["export", *map(str, words)])


@pytest.fixture
def engine(toy, tmp_path) -> Path:
    words = ["--part", "language", "--vla", toy.vla.path, "--backend", "onnxruntime", "--out", tmp_path / "engines"]
    assert export("build", *words) == 0
    return tmp_path / "engines" / "language.onnx"


def test_build_writes_an_engine_and_its_manifest(engine, toy):
    manifest = read_manifest(engine)
    assert (manifest.part, manifest.graph.precision, manifest.graph.opset) == ("language", "fp32", 18)
    assert manifest.source.vla == str(toy.vla.path) and manifest.versions["onnx"] and manifest.parity is None
    names = {path.name for path in engine.parent.iterdir() if path.suffix != ".lock"}
    assert names == {"language.onnx", "language.onnx.json"}


def test_both_parts_lie_in_one_folder(engine, toy):
    words = ["--vla", toy.vla.path, "--pruner", toy.pruner_file, "--out", engine.parent]
    assert export("build", *words) == 0
    assert read_manifest(engine).part == "language" and read_manifest(engine.with_name("vision.onnx")).part == "vision"


def test_inspect_prints_the_manifest_and_the_parts(engine, capsys):
    assert export("inspect", engine) == 0
    text = capsys.readouterr().out
    assert "graph.kv_heads" in text and "never compared with torch" in text
    assert "layers/layer_2" in text and "GMAC" in text


def test_verify_writes_what_it_finds_into_the_manifest(engine, toy, capsys):
    words = ["--sets", 2, "--device", "cpu", "--pruner", toy.pruner_file, "--json", "-"]
    assert export("verify", engine, *words) == 0
    figures = json.loads(capsys.readouterr().out.partition("{\n")[2].join(["{\n", ""]))
    assert figures["passed"] and figures["cosine"] > 0.99999 and figures["max_abs_error"] < 1e-4
    assert figures["answers_equal"] and figures["answers_compared"] == figures["answers_same"] == 6
    assert figures["steps"] > 6 and figures["same_tokens"] == 1
    assert set(figures["latency_ms"]) == {"reference_prefill", "engine_prefill", "reference_answer", "engine_answer"}
    assert read_manifest(engine).parity.cosine == figures["cosine"]


def test_without_a_pruner_unpruned_prompts_are_compared(engine, capsys):
    assert export("verify", engine, "--sets", 1, "--device", "cpu", "--no-plans") == 0
    parity = read_manifest(engine).parity
    assert parity.answers_compared == 0 and parity.answers_equal is None and parity.passed
    assert export("verify", engine, "--sets", 1, "--device", "cpu", "--drop", 0.5) == 2
    assert "--drop 0.5: needs a pruner; give --pruner FILE" in capsys.readouterr().err


def test_an_engine_that_is_too_far_off_fails_and_is_refused_from_then_on(engine, toy, monkeypatch, capsys):
    monkeypatch.setattr("fastdrive_export.parity.REQUIRED", {"fp32": (1.1, 1.1)})
    assert export("verify", engine, "--sets", 1, "--no-plans", "--device", "cpu") == 1
    assert "same_tokens 1.0000: too far from torch; build it with --precision" in capsys.readouterr().err
    pictures = ["x.jpg"] * 6
    assert main(["plan", *pictures, "--vla", str(toy.vla.path), "--language-engine", str(engine)]) == 1
    assert "parity: `fastdrive export verify` found" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (["--backend", "tensorrt"], 2, "--part language: only onnxruntime runs it"),
        (["--pruner", "a.safetensors"], 2, "--part language: it has no pruner"),
        (["--max-keep", "9"], 2, "--part language: --max-keep is for vision engines"),
        (["--vla", "absent"], 1, "absent: no such VLA directory"),
    ],
)
def test_options_that_do_not_fit_are_one_line(tmp_path, capsys, words, code, reason):
    assert export("build", "--part", "language", "--out", tmp_path, *words) == code
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("fastdrive export: ") and reason in error[-1]


def test_replay_hands_the_engine_to_the_node_by_its_whole_path(engine, monkeypatch):
    from fastdrive_node.commands.replay import ReplayOptions, node_options

    monkeypatch.chdir(engine.parent)
    given = node_options(ReplayOptions(Path("bag"), language_engine=Path(engine.name)), None).parameters
    assert given == {"vla": "tiny", "language_engine": str(engine.resolve())}
    for values, reason in (
        ({"language_engine": Path("absent.onnx")}, r"absent\.onnx: no such engine file; correct --language-engine"),
        ({"language_engine": engine, "node": "external"}, "--language-engine and --params are for"),
    ):
        with pytest.raises(InputError, match=reason):
            ReplayOptions(Path("bag"), **values)
