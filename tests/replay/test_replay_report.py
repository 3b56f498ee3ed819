"""Every complete set ends as a plan, a refusal, or dropped."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fastdrive_node.commands.replay import ReplayOptions, open_recording
from fastdrive_node.errors import InputError
from fastdrive_node.replay.bag import SetCounter
from fastdrive_node.replay.report import (
    draw_pictures,
    latencies,
    plan_of,
    print_table,
    reason_of,
    summary,
    tally,
    write_plans,
)
from fastdrive_node.ros.topics import simulator_topics
from fastdrive_node.sync.frames import FrameLimits
from fastdrive_node.types import CAMERAS
from tests.replay.bags import START_NS, BagPlan, write_bag


def plan_record(t0_ns: int, ms: float = 10.0) -> dict:
    return {
        "kind": "plan",
        "t0_ns": t0_ns,
        "waypoints": [[2.0 * k, 0.1 * k] for k in range(1, 7)],
        "dt_s": 0.5,
        "mode": "nominal",
        "text": "...",
        "command": "left",
        "waited_ms": 1.0,
        "planning_ms": ms,
        "end_to_end_ms": 2 * ms,
        "speed_mps": 4.0,
        "stage_ms": {"encode": ms / 2, "total": ms},
        "tokens": {"grid": [6, 4, 8], "kept": list(range(48))},
    }


def counter_of(complete: list[int]) -> SetCounter:
    counter = SetCounter(simulator_topics(), CAMERAS, compressed=False)
    counter.complete = complete
    return counter


def refused(t0_ns: int) -> dict:
    reason = "CAM_BACK: data: cut"
    times = {"waited_ms": 1.0, "planning_ms": 4.0, "end_to_end_ms": 9.0}
    return {"kind": "refused", "t0_ns": t0_ns, "stage": "image", "reason": reason, **times}


def test_sets_are_plans_refusals_or_dropped_and_lost_ones_are_dropped():
    records = [plan_record(1), refused(2), {"kind": "dropped", "t0_ns": 3}, refused(9)]
    result = tally(
        [(counter_of([1, 2, 3, 4]), records), (counter_of([1, 2, 3, 4]), [plan_record(k) for k in (1, 2, 3, 4)])]
    )
    assert (result.sets, len(result.plans), len(result.refused)) == (8, 5, 2)
    assert (result.dropped, result.lost, result.incomplete) == (2, 1, 1)
    assert result.sets == len(result.plans) + len(result.refused) - result.incomplete + result.dropped
    assert result.unplanned == [
        {"t0_ns": 2, "kind": "refused", "stage": "image", "reason": "CAM_BACK: data: cut"},
        {"t0_ns": 3, "kind": "dropped"},
        {"t0_ns": 4, "kind": "lost"},
        {"t0_ns": 9, "kind": "refused", "stage": "image", "reason": "CAM_BACK: data: cut"},
    ]


def test_latencies_are_percentiles_of_each_stage():
    plans = [plan_record(k, ms) for k, ms in enumerate((10.0, 20.0, 30.0))]
    found = latencies(tally([(counter_of([0, 1, 2]), plans)]))
    assert list(found) == ["waited", "encode", "total", "planning", "end_to_end"]
    assert found["total"] == {"p50": 20.0, "p99": pytest.approx(29.8)}
    assert found["end_to_end"]["p50"] == 40.0


def test_the_summary_has_the_fields_that_scripts_read(tmp_path):
    figures = summary(
        tally([(counter_of([1, 2]), [plan_record(1), refused(2)])]), tmp_path / "p", tmp_path / "u", {"bag": "b"}
    )
    expected = {"sets": 2, "plans": 1, "refused": 1, "dropped": 0, "total_tokens": 192, "kept_tokens": 48}
    assert {name: figures[name] for name in expected} == expected
    assert (figures["plans_file"], figures["unplanned_file"]) == (str(tmp_path / "p"), str(tmp_path / "u"))
    assert figures["refusals"] == {"image: CAM_BACK: data: cut": 1}
    json.dumps(figures)
    stream = io.StringIO()
    print_table(figures, Console(file=stream, width=100))
    assert "48 of 192" in stream.getvalue() and "end_to_end" in stream.getvalue()


def test_a_replay_without_a_plan_has_figures_too(tmp_path):
    figures = summary(tally([(counter_of([1]), [refused(1)])]), tmp_path / "p", tmp_path / "u", {})
    assert figures["plans"] == figures["total_tokens"] == 0
    assert set(figures["latency_ms"]) == {"waited", "planning"}
    print_table(figures, Console(file=io.StringIO()))


def test_a_reason_names_its_stage_once():
    assert reason_of({"stage": "answer", "reason": "answer: no tag"}) == "answer: no tag"
    assert reason_of({"stage": "image", "reason": "CAM_BACK: cut"}) == "image: CAM_BACK: cut"


def test_plans_are_written_one_a_line(tmp_path):
    write_plans(tmp_path / "new" / "plans.jsonl", [plan_record(1), plan_record(2)])
    lines = [json.loads(line) for line in (tmp_path / "new" / "plans.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"t0_ns", "waypoints", "dt_s", "mode", "text"}] * 2
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_plans(tmp_path / "file" / "plans.jsonl", [])


def test_a_recorded_plan_is_whole_again():
    plan = plan_of(plan_record(7))
    assert plan.t0_ns == 7 and plan.waypoints_m.shape == (6, 2)
    assert plan.kept.kept == 48 and plan.kept.mask()[0].all() and not plan.kept.mask()[5].any()


def test_pictures_are_drawn_from_the_bags_images(tmp_path):
    bag = write_bag(tmp_path / "bag", BagPlan(transport="compressed"))
    recording = open_recording(ReplayOptions(bag), CAMERAS)
    plans = [plan_record(START_NS), plan_record(START_NS + 10**9)]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "plan_0009.jpg").write_text("of an earlier replay")
    assert draw_pictures(tmp_path / "out", plans, recording, FrameLimits()) == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["plan_0001.jpg", "plan_0002.jpg"]
    with Image.open(tmp_path / "out" / "plan_0002.jpg") as picture:
        assert np.asarray(picture).std() > 0
