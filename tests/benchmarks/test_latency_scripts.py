"""Scripts that measure latency: what they make of their figures, without measuring."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e .[export]")
pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e .[ros]")

import onnxruntime

from benchmarks.perf import engine_threads, node_and_bench


def test_the_node_is_compared_with_the_bench_of_its_round(tmp_path, monkeypatch):
    sums, paced = iter([66.0, 90.0, 55.0]), iter([60.0, 60.0, 50.0])
    monkeypatch.setattr(node_and_bench, "node_ms", lambda *_: {"encode": 20.0, "sum": next(sums)})
    monkeypatch.setattr(node_and_bench, "bench_ms", lambda *_: {"paced": next(paced), "loop": 40.0})
    file = tmp_path / "figures.json"
    node_and_bench.main(["--rounds", "3", "--json", str(file)])
    figures = json.loads(file.read_text())
    assert [each["ratio"] for each in figures["rounds"]] == [1.1, 1.5, 1.1]
    assert figures["median_ratio"] == 1.1 and figures["engines"] is False


def test_a_session_is_told_what_its_row_says_and_nothing_else():
    with engine_threads.sessions_told({"session.intra_op.allow_spinning": "0"}):
        told = onnxruntime.SessionOptions()
        told.add_session_config_entry(engine_threads.STOP, "1")
    assert told.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    with pytest.raises(Exception, match=engine_threads.STOP):
        told.get_session_config_entry(engine_threads.STOP)
    plain = onnxruntime.SessionOptions()
    plain.add_session_config_entry(engine_threads.STOP, "1")
    assert plain.get_session_config_entry(engine_threads.STOP) == "1"
