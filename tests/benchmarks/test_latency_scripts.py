"""Scripts that measure latency: what they make of their figures, without measuring."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e .[export]")
pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e .[ros]")

import onnxruntime

from benchmarks.perf import engine_threads, node_and_bench, prompt_head
from benchmarks.studies import paced, token_reuse


def test_the_node_is_compared_with_the_bench_of_its_round(tmp_path, monkeypatch):
    sums, paced = iter([66.0, 90.0, 55.0]), iter([60.0, 60.0, 50.0])
    monkeypatch.setattr(node_and_bench, "node_ms", lambda *_: {"encode": 20.0, "sum": next(sums)})
    monkeypatch.setattr(
        node_and_bench, "bench_ms", lambda *_: {"paced": next(paced), "transformers": 300.0, "loop": 40.0}
    )
    file = tmp_path / "figures.json"
    node_and_bench.main(["--rounds", "3", "--json", str(file)])
    figures = json.loads(file.read_text())
    assert [each["ratio"] for each in figures["rounds"]] == [1.1, 1.5, 1.1]
    assert figures["median_ratio"] == 1.1 and figures["engines"] is False
    assert figures["times_faster"] == {"node": 4.545, "bench": 5.0}


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


def test_what_comes_before_a_plan_is_not_timed_and_the_cases_take_turns(monkeypatch):
    done, clock = [], [0.0]
    monkeypatch.setattr(paced.time, "perf_counter", lambda: clock[0])

    def step(name, seconds):
        def run():
            done.append(name)
            clock[0] += seconds

        return run

    times = paced.measure(step("plan", 0.02), {"loop": step("a", 1.0), "pause": step("b", 2.0)}, 2)
    assert done == ["plan"] * paced.WARM_UP + ["a", "plan", "b", "plan"] * 2
    assert times == {name: pytest.approx([20.0, 20.0]) for name in ("loop", "pause")}


def test_plans_with_reused_cameras_are_compared_with_those_without(tmp_path):
    file = tmp_path / "figures.json"
    token_reuse.main(["--sets", "4", "--runs", "1", "--json", str(file)])
    figures = json.loads(file.read_text())
    assert [row["changed"] for row in figures["encode"]] == list(range(7))
    assert all(row["encoded"] in (row["changed"], 6) for row in figures["encode"])
    assert figures["plans"]["plans"] == figures["plans"]["equal"] == 3


def test_prefill_with_the_head_kept_and_run_anew_is_compared_in_turns(tmp_path):
    file = tmp_path / "figures.json"
    prompt_head.main(["--tokens", "10", "40", "--runs", "2", "--json", str(file)])
    short, long = json.loads(file.read_text())["rows"]["torch"].values()
    assert short["head_tokens"] == 23 and short["prompt_tokens"] < long["prompt_tokens"]
    assert long["head_tokens"] >= 40 and long["kept"]["runs"] == long["anew"]["runs"] == 2
    assert max(each["largest_difference_of_logits"] for each in (short, long)) < 1e-4


def test_a_text_that_the_head_does_not_grow_with_is_refused():
    with pytest.raises(SystemExit, match="--text: the constant head of the prompt does not grow"):
        prompt_head.main(["--tokens", "20", "--text", "", "--runs", "1"])
