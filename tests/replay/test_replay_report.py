"""Every complete set ends as a plan, a refusal, or superseded."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fastdrive_node.commands.replay import ReplayOptions, open_recording
from fastdrive_node.errors import InputError
from fastdrive_node.record import PlanRecord
from fastdrive_node.replay.frame_sets import LoopResult, Received, SetCounter
from fastdrive_node.replay.report import draw_plans, latencies, never_ready, print_table, summary, tally, write_lines
from fastdrive_node.ros.parameters import Settings
from fastdrive_node.ros.topics import simulator_topics
from fastdrive_node.types import CAMERAS, SUPERSEDED, Command, KeptTokens, Plan, Refusal
from tests.replay.bags import START_NS, BagPlan, write_bag


def plan_record(t0_ns: int, ms: float = 10.0) -> Received:
    waypoints = np.array([[2.0 * k, 0.1 * k] for k in range(1, 7)])
    kept = KeptTokens(np.arange(48), None, (6, 4, 8))
    plan = Plan(t0_ns, waypoints, 0.5, "...", "nominal", kept, {"encode": ms / 2, "total": ms})
    return Received(PlanRecord(plan, Command.LEFT, waited_ms=1.0, planning_ms=ms, speed_mps=4.0), 2 * ms)


def refused(t0_ns: int, stage: str = "image") -> Received:
    refusal = Refusal(t0_ns, "CAM_BACK: data: cut", stage)
    return Received(PlanRecord(refusal, waited_ms=1.0, planning_ms=0.0 if stage == SUPERSEDED else 4.0), 9.0)


def loop(complete: list[int], received: list[Received]) -> LoopResult:
    counter = SetCounter(simulator_topics(), compressed=False)
    counter.complete = complete
    return LoopResult(counter, received)


def loading(t0_ns: int) -> Received:
    refusal = Refusal(t0_ns, "the planner is loading", "planner", "planner_starting")
    return Received(PlanRecord(refusal, waited_ms=1.0, planning_ms=0.0), 9.0)


def test_a_node_that_never_became_ready_is_told_from_one_that_refuses():
    assert never_ready(tally([loop([1, 2], [loading(1), loading(2)])]))
    assert not never_ready(tally([loop([1, 2], [loading(1), plan_record(2)])]))
    assert not never_ready(tally([loop([1, 2], [loading(1), refused(2)])]))
    assert not never_ready(tally([loop([], [])]))


def test_sets_are_plans_refusals_or_superseded_and_lost_ones_are_superseded():
    received = [plan_record(1), refused(2), refused(3, SUPERSEDED), refused(9)]
    result = tally([loop([1, 2, 3, 4], received), loop([1, 2, 3, 4], [plan_record(k) for k in (1, 2, 3, 4)])])
    assert (result.sets, len(result.plans), len(result.refused)) == (8, 5, 2)
    assert (result.superseded, result.lost, result.incomplete) == (2, 1, 1)
    assert result.sets == len(result.plans) + len(result.refused) - result.incomplete + result.superseded
    reason = {"stage": "image", "reason": "CAM_BACK: data: cut"}
    assert result.unplanned == [
        {"t0_ns": 2, "kind": "refused", **reason},
        {"t0_ns": 3, "kind": SUPERSEDED, **reason, "stage": SUPERSEDED},
        {"t0_ns": 4, "kind": "lost"},
        {"t0_ns": 9, "kind": "refused", **reason},
    ]


def test_latencies_are_percentiles_of_each_stage():
    plans = [plan_record(k, ms) for k, ms in enumerate((10.0, 20.0, 30.0))]
    found = latencies(tally([loop([0, 1, 2], plans)]))
    assert list(found) == ["waited", "encode", "total", "planning", "end_to_end"]
    assert found["total"] == {"p50": 20.0, "p99": pytest.approx(29.8)}
    assert found["end_to_end"]["p50"] == 40.0


def test_the_summary_has_the_fields_that_scripts_read(tmp_path):
    figures = summary(tally([loop([1, 2], [plan_record(1), refused(2)])]), tmp_path / "p", tmp_path / "u", {"bag": "b"})
    expected = {"sets": 2, "plans": 1, "refused": 1, "dropped": 0, "total_tokens": 192, "kept_tokens": 48}
    assert {name: figures[name] for name in expected} == expected
    assert (figures["plans_file"], figures["unplanned_file"]) == (str(tmp_path / "p"), str(tmp_path / "u"))
    assert figures["refusals"] == {"image: CAM_BACK: data: cut": 1}
    json.dumps(figures)
    stream = io.StringIO()
    print_table(figures, Console(file=stream, width=100))
    for text in ("48 of 192", "superseded", "end_to_end", "Latency in ms"):
        assert text in stream.getvalue()


def test_a_replay_without_a_plan_has_figures_too(tmp_path):
    figures = summary(tally([loop([1], [refused(1)])]), tmp_path / "p", tmp_path / "u", {})
    assert figures["plans"] == figures["total_tokens"] == 0
    assert set(figures["latency_ms"]) == {"waited", "planning"}
    print_table(figures, Console(file=io.StringIO()))


def test_lines_are_written_whole_or_refused(tmp_path):
    write_lines(tmp_path / "new" / "plans.jsonl", [plan_record(t0).record.line() for t0 in (1, 2)])
    lines = [json.loads(line) for line in (tmp_path / "new" / "plans.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"t0_ns", "waypoints", "dt_s", "mode", "text"}] * 2
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_lines(tmp_path / "file" / "plans.jsonl", [])


def test_plans_are_drawn_from_the_bags_images(tmp_path):
    bag = write_bag(tmp_path / "bag", BagPlan(transport="compressed"))
    recording = open_recording(ReplayOptions(bag), CAMERAS)
    plans = [plan_record(t0_ns).record for t0_ns in (START_NS, START_NS + 10**9)]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "plan_0009.jpg").write_text("of an earlier replay")
    assert draw_plans(tmp_path / "out", plans, recording, Settings()) == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["plan_0001.jpg", "plan_0002.jpg"]
    with Image.open(tmp_path / "out" / "plan_0002.jpg") as picture:
        assert np.asarray(picture).std() > 0
