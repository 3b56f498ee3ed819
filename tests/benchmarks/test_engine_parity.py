"""benchmarks/perf/engine_parity.py at its tiny size."""

import json

import pytest

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e .[export]")


@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.999999), ("fp16", 0.9999)])
def test_a_random_tower_and_pruner_agree_with_torch(tmp_path, precision, least):
    from benchmarks.perf import engine_parity

    engine_parity.main(["--precision", precision, "--cameras", "2", "--json", str(tmp_path / "parity.json")])
    figures = json.loads((tmp_path / "parity.json").read_text())
    assert figures["cosine_min"] > least and figures["kept_overlap"]["0.5"] > 0.9
    assert figures["tokens"] == 60 and figures["files"]["vision.onnx"] > 1e6
