"""Levels and texts of /diagnostics, from statuses of a worker."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

pytest.importorskip("diagnostic_msgs.msg", reason="ROS 2 messages are not installed: pip install -e .[ros]")

from builtin_interfaces.msg import Time

from fastdrive_node.ros.diagnostics import ERROR, OK, WARN, NodeStatus, diagnostic_array
from fastdrive_node.ros.parameters import Settings
from fastdrive_node.sync.frames import CameraStatus, FrameCounters
from fastdrive_node.sync.modes import Mode, ModeReason, ModeStatus
from fastdrive_node.sync.outcomes import WorkerStatus
from fastdrive_node.sync.statistics import Percentiles, Statistics
from fastdrive_node.types import Command, DeadlineChoice, PlannerState

ROOT = Path(__file__).resolve().parents[2]
TIMES = Statistics(
    plans=20,
    window_s=30.0,
    rate_hz=10.0,
    times_ms={"latency": Percentiles(80.0, 95.5), "encode": Percentiles(4.0, 9.0)},
    kept_tokens={"CAM_FRONT": 12},
    tokens={"CAM_FRONT": 48},
)

PLANNING = WorkerStatus(
    cameras={"CAM_FRONT": CameraStatus(0.1, 10.0, 5, 0)},
    frames=FrameCounters(sets=20),
    odometry_age_s=0.05,
    command=Command.NONE,
    command_age_s=None,
    plans=20,
    refused=0,
    busy=False,
    last_refusal="",
    plan_age_s=0.1,
    recent=20,
    recent_refusals={},
)


def parts_of(worker: WorkerStatus, **changes) -> dict:
    status = NodeStatus(name="fastdrive", lifecycle="active", worker=worker, **changes)
    return {part.name.removeprefix("fastdrive: "): part for part in diagnostic_array(status, Time()).status}


def planner(**changes):
    return parts_of(replace(PLANNING, **changes))["planner"]


def refusing(count: int, of: int = 20, **changes):
    return planner(
        recent=of,
        recent_refusals={"odometry": count},
        last_refusal="odometry: the newest is 0.25 s before t0",
        **changes,
    )


def test_a_planner_that_plans_is_ok():
    assert (planner().level, planner().message) == (OK, "active")
    assert planner(plans=0, recent=0, plan_age_s=None).level == WARN


def test_a_stamp_of_the_future_and_a_second_publisher_are_told():
    ahead = replace(PLANNING, cameras={"CAM_FRONT": CameraStatus(-3600.0, 10.0, 5, 0)}, odometry_age_s=-1.0)
    parts = parts_of(ahead, publishers={"CAM_FRONT": 1, "odometry": 1})
    assert parts["CAM_FRONT"].level == parts["odometry"].level == ERROR
    assert "3600.00 s ahead" in parts["CAM_FRONT"].message
    parts = parts_of(PLANNING, publishers={"CAM_FRONT": 2, "odometry": 1})
    assert (parts["CAM_FRONT"].level, parts["odometry"].level) == (WARN, OK)
    assert parts["CAM_FRONT"].message == "2 nodes publish its topic"


def test_warnings_of_the_last_plan_are_warnings():
    status = planner(warnings=("plan.speed: 37 m/s", "plan.jerk: 12 m/s3"))
    assert (status.level, status.message) == (WARN, "plan.speed: 37 m/s; plan.jerk: 12 m/s3")


def test_the_choice_of_a_deadline_is_told_with_what_the_plan_took():
    def values(**changes) -> dict[str, str]:
        return {pair.key: pair.value for pair in planner(**changes).values if pair.key.startswith("deadline")}

    assert not values()
    choice = DeadlineChoice(100.0, 42.5, 51.25, 64, 96, 1.5)
    late = {"warnings": ("deadline: the plan took 104 ms of 100",), "plan_ms": 104.3, "late_plans": 2}
    assert values(deadline=choice, **late) == {
        "deadline_ms": "100",
        "deadline_predicted_ms": "93.8",
        "deadline_plan_ms": "104.3",
        "deadline_keep": "64",
        "deadline_wanted": "96",
        "deadline_load": "1.50",
        "deadline_reason": "deadline",
        "deadline_late_plans": "2",
    }
    status = planner(deadline=choice, **late)
    assert (status.level, status.message) == (WARN, "deadline: the plan took 104 ms of 100")
    assert values(deadline=replace(choice, keep=96))["deadline_reason"] == "drop"


def test_an_hour_of_refusals_after_one_plan_is_an_error_with_stage_and_reason():
    status = refusing(20, plans=1, refused=36_000, plan_age_s=3600.0)
    assert status.level == ERROR
    assert status.message == "20 of the last 20 sets were refused; the last: odometry: the newest is 0.25 s before t0"
    values = {pair.key: pair.value for pair in status.values}
    assert (values["plan_age_s"], values["recent_refusals"]) == ("3600.000", "odometry 20")


@pytest.mark.parametrize(("refused", "level"), [(2, OK), (3, WARN), (10, WARN), (11, ERROR)])
def test_the_fraction_refused_decides(refused, level):
    assert refusing(refused).level == level


def test_one_refusal_after_the_first_plan_is_no_error():
    assert refusing(1, of=2, plans=1).level == WARN
    assert refusing(1, of=1, plans=0, plan_age_s=None).level == ERROR


@pytest.mark.parametrize(("age_s", "level"), [(1.9, OK), (2.1, WARN), (5.1, ERROR)])
def test_the_age_of_the_last_plan_decides(age_s, level):
    status = planner(plan_age_s=age_s)
    assert status.level == level
    assert level == OK or status.message.startswith(f"no plan for {age_s:.1f} s")


def test_the_thresholds_are_parameters():
    settings = Settings(plan_age_error_s=20.0, refused_error_fraction=0.9)
    worker = replace(PLANNING, plan_age_s=10.0, recent_refusals={"image": 15}, last_refusal="image: x")
    assert parts_of(worker, settings=settings)["planner"].level == WARN
    assert parts_of(worker)["planner"].level == ERROR


@pytest.mark.parametrize(("age_s", "level"), [(0.15, OK), (0.25, ERROR), (None, ERROR)])
def test_odometry_is_judged_by_the_age_at_which_sets_are_refused(age_s, level):
    assert parts_of(replace(PLANNING, odometry_age_s=age_s))["odometry"].level == level


def test_odometry_follows_its_own_limit_and_cameras_that_of_sets():
    settings = Settings(max_odometry_age_s=0.5, max_set_age_s=0.05)
    parts = parts_of(replace(PLANNING, odometry_age_s=0.4), settings=settings)
    assert (parts["odometry"].level, parts["CAM_FRONT"].level) == (OK, ERROR)
    assert "0.05 s (max_set_age_s)" in parts["CAM_FRONT"].message


def test_a_parameter_that_was_not_applied_is_an_error():
    status = parts_of(PLANNING, problem="drop: accepted but not applied: x")["planner"]
    assert (status.level, status.message) == (ERROR, "drop: accepted but not applied: x")


def test_keys_are_snake_case_with_units():
    mode = ModeStatus(Mode.NOMINAL, refusals={"plan.speed": 3})
    parts = parts_of(PLANNING, statistics=TIMES, mode=mode, identity={"gpu_memory_free_mb": "1"})
    keys = [pair.key for name in parts if name != "topics" for pair in parts[name].values]
    assert all(key.isidentifier() and key == key.lower() for key in keys)
    assert {"plan_age_s", "rate_hz", "age_s", "superseded_sets", "latency_p99_ms", "refused_plan_speed"} <= set(keys)


def values_of(part) -> dict[str, str]:
    return {pair.key: pair.value for pair in part.values}


def test_timing_has_percentiles_and_the_cameras_their_kept_tokens():
    parts = parts_of(PLANNING, statistics=TIMES)
    timing = values_of(parts["timing"])
    assert (timing["latency_p50_ms"], timing["latency_p99_ms"], timing["encode_p99_ms"]) == ("80.0", "95.5", "9.0")
    assert (timing["plan_rate_hz"], timing["window_s"], timing["window_plans"]) == ("10.00", "30", "20")
    camera = values_of(parts["CAM_FRONT"])
    assert (camera["kept_tokens"], camera["tokens"]) == ("12", "48")


@pytest.mark.parametrize(("rate_hz", "level"), [(None, OK), (5.0, OK), (4.9, WARN), (1.0, WARN), (0.9, ERROR)])
def test_the_plan_rate_has_two_limits(rate_hz, level):
    timing = parts_of(PLANNING, statistics=Statistics(rate_hz=rate_hz))["timing"]
    assert timing.level == level
    off = Settings(plan_rate_warn_hz=0.0, plan_rate_error_hz=0.0)
    assert parts_of(PLANNING, statistics=Statistics(rate_hz=rate_hz), settings=off)["timing"].level == OK
    if level == ERROR:
        assert timing.message == "0.9 plans a second, fewer than 1 (plan_rate_error_hz)"


def test_memory_is_that_of_both_processes_the_host_and_the_gpu():
    planner_state = PlannerState(pid=os.getpid())
    parts = parts_of(PLANNING, planner=planner_state, identity={"vla": "x", "gpu_memory_free_mb": "70000"})
    memory = values_of(parts["memory"])
    assert float(memory["node_memory_mb"]) > 10 and memory["planner_memory_mb"] == memory["node_memory_mb"]
    assert float(memory["host_memory_available_mb"]) > 10 and memory["gpu_memory_free_mb"] == "70000"
    assert values_of(parts["model"]) == {"vla": "x"}
    gone = parts_of(PLANNING, planner=PlannerState(pid=1 << 30))["memory"]
    assert values_of(gone)["planner_memory_mb"] == "none"


def test_expected_loss_is_a_warning_and_lost_messages_are_counted():
    publishers = {"CAM_FRONT": 1, "odometry": 1}
    parts = parts_of(PLANNING, publishers=publishers, lost={"CAM_FRONT": 5, "odometry": 2}, loss_expected="expect loss")
    assert (parts["topics"].level, parts["topics"].message) == (WARN, "expect loss")
    assert [values_of(parts[name])["lost_messages"] for name in ("topics", "CAM_FRONT", "odometry")] == ["7", "5", "2"]
    assert parts_of(PLANNING, loss_expected="x", problems=["bad"])["topics"].level == ERROR


def test_every_part_has_a_group_of_the_aggregator():
    content = yaml.safe_load((ROOT / "config" / "diagnostics_aggregator.yaml").read_text())
    groups = content["/**"]["ros__parameters"]["fastdrive"]["analyzers"].values()
    assert {group["type"] for group in groups} == {"diagnostic_aggregator/GenericAnalyzer"}
    names = [part.name for part in diagnostic_array(NodeStatus("fastdrive", "active", worker=PLANNING), Time()).status]
    for name in [*names, *(f"car/{name}" for name in names)]:
        found = [group["path"] for group in groups if any(re.fullmatch(regex, name) for regex in group["regex"])]
        assert len(found) == 1, (name, found)
    unconfigured = NodeStatus("fastdrive", "unconfigured")
    always = {part.name for part in diagnostic_array(unconfigured, Time()).status}
    assert {name for group in groups for name in group.get("expected", ())} == always


@pytest.mark.parametrize(
    ("mode", "level"),
    [(Mode.NOMINAL, OK), (Mode.DEGRADED, WARN), (Mode.STARTING, WARN), (Mode.REFUSING, ERROR), (Mode.FAULT, ERROR)],
)
def test_the_planner_is_at_least_as_bad_as_the_mode(mode, level):
    status = parts_of(PLANNING, mode=ModeStatus(mode, ModeReason("no_images", "no image of any camera")))["planner"]
    assert status.level == level
    assert level == OK or status.message == f"{mode.value}: no_images: no image of any camera"
    pairs = {pair.key: pair.value for pair in status.values}
    assert (pairs["mode"], pairs["code"]) == (mode.value, "no_images")
