"""The simulated latency of plans: one value, or drawn from recorded ones."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fastdrive_node.errors import InputError, UsageError
from fastdrive_sim.drive.command import DriveOptions, drive_suite
from fastdrive_sim.drive.families import FAMILIES
from fastdrive_sim.drive.latency import Latency, describe, read_latencies
from fastdrive_sim.drive.loop import drive
from fastdrive_sim.drive.planners import expert_planner
from fastdrive_sim.drive.types import DriveRow


def draws(latency: Latency, family: str, seed: int, count: int = 50) -> list[float]:
    latency.begin(family, seed)
    return [latency() for _ in range(count)]


def test_draws_follow_from_the_scenario_whatever_was_driven_before():
    recorded = (0.04, 0.05, 0.30)
    latency = Latency(*recorded)
    first = draws(latency, "bend", 1)
    others = [draws(latency, "bend", 2), draws(latency, "merge", 1)]
    assert draws(latency, "bend", 1) == first == draws(Latency(*recorded), "bend", 1)
    assert first not in others and others[0] != others[1]
    assert set(first) == set(recorded)


def test_one_value_is_the_latency_of_each_plan():
    assert set(draws(Latency(0.2), "bend", 1)) == {0.2} and set(draws(Latency(), "bend", 1)) == {0.0}


def test_each_plan_of_a_run_comes_into_use_after_its_own_latency():
    scene = FAMILIES["bend"].scene(1)
    scene.timeout_s = 6.0
    run = drive(scene, expert_planner(0.0, 0.1, 0.3), DriveRow("expert"))
    delays = [round(plan.used_from_s - plan.time_s, 6) for plan in run.plans if plan.used_from_s is not None]
    expected = draws(Latency(0.0, 0.1, 0.3), "bend", 1, len(delays))
    assert delays == expected and len(set(delays)) == 3


def test_a_number_and_a_file_are_read_in_milliseconds(tmp_path):
    path = tmp_path / "latencies.json"
    path.write_text("[20, 35.5]")
    assert read_latencies("120") == (0.12,) and read_latencies(str(path)) == pytest.approx((0.02, 0.0355))


@pytest.mark.parametrize("text", ["-1", "10001", "nan", "inf", "soon"])
def test_a_latency_that_is_none_is_told(text):
    with pytest.raises(UsageError, match=rf"^--latency-ms {text}"):
        read_latencies(text)


@pytest.mark.parametrize(
    "content", ["[]", "5", '["5"]', "[true]", "[1, -2]", "[NaN]", "[1e9]", f"[1{'0' * 400}]", "[1"]
)
def test_a_file_without_a_list_of_latencies_is_named(tmp_path, content):
    path = tmp_path / "latencies.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"--latency-ms .*latencies\.json"):
        read_latencies(str(path))


def test_other_recorded_latencies_with_the_same_mean_are_another_drive(tmp_path):
    options = DriveOptions(tmp_path, families=("bend",), runs=1, pruners=(), latencies_s=(0.0, 0.3))
    figures = drive_suite(options)
    assert figures["rows"][0]["latency_ms"] == pytest.approx(150.0)
    assert figures["settings"]["latency_values"] == 2
    assert json.loads((tmp_path / "settings.json").read_text()) == {**figures["settings"], "pruners": {}}
    assert "mean 150 ms of 2 recorded" in (tmp_path / "report.html").read_text()
    assert describe((0.0, 0.3)) != describe((0.1, 0.2))
    with pytest.raises(InputError, match="other settings"):
        drive_suite(replace(options, latencies_s=(0.1, 0.2)))
