"""Percentiles, rate and kept tokens of the last plans."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fastdrive_node.sync.outcomes import Outcome
from fastdrive_node.sync.statistics import MAX_PLANS, PlanStatistics
from fastdrive_node.types import CameraFrame, FrameSet, KeptTokens, Plan, Refusal

SECOND = 1_000_000_000


def frames() -> FrameSet:
    names = ("CAM_FRONT", "CAM_BACK")
    return FrameSet(tuple(CameraFrame(name, 0, 0, lambda: np.zeros((1, 1, 3), np.uint8)) for name in names), 0)


def outcome(t0_ns: int, encode_ms: float = 4.0) -> Outcome:
    kept = KeptTokens(np.array([0, 1, 2, 7]), None, (2, 2, 3))
    plan = Plan(t0_ns, np.zeros((6, 2)), 0.5, "", kept=kept, stage_ms={"encode": encode_ms})
    return Outcome(plan, frames(), waited_ms=3.0, planning_ms=50.0)


def steady(count: int, period_s: float, latency_s: float = 0.1) -> PlanStatistics:
    """Plans at 0, ``period_s``, ..."""
    statistics = PlanStatistics(30.0)
    for index in range(count):
        now_ns = round(index * period_s * SECOND)
        statistics.note(outcome(now_ns - round(latency_s * SECOND), float(index)), now_ns)
    return statistics


def test_latency_and_every_stage_have_percentiles():
    found = steady(101, 0.1).snapshot(10 * SECOND)
    assert found.plans == 101 and found.window_s == 30.0
    assert set(found.times_ms) == {"latency", "planning", "wait", "encode"}
    assert found.times_ms["latency"].p99 == pytest.approx(100.0)
    assert (found.times_ms["encode"].p50, found.times_ms["encode"].p99) == (50.0, 99.0)


def test_only_plans_of_the_window_count():
    statistics = steady(101, 0.1)
    statistics.window_s = 2.0
    found = statistics.snapshot(11 * SECOND)
    assert found.plans == 11 and found.times_ms["encode"].p50 == 95.0
    assert statistics.snapshot(60 * SECOND).plans == 0


@pytest.mark.parametrize(("count", "p50", "p99"), [(1, 0, 0), (2, 0, 1), (3, 1, 2), (100, 49, 98)])
def test_a_percentile_is_a_measured_value(count, p50, p99):
    times = steady(count, 0.1).snapshot(10 * SECOND).times_ms["encode"]
    assert (times.p50, times.p99) == (p50, p99)


@pytest.mark.parametrize("period_s", [0.1, 0.5, 1.0, 4.0])
def test_a_steady_planner_has_its_exact_rate_at_any_moment(period_s):
    statistics = steady(21, period_s)
    last = 20 * period_s
    for after in (0.0, 0.3, 0.99):
        now_ns = round((last + after * period_s) * SECOND)
        assert statistics.snapshot(now_ns).rate_hz == pytest.approx(1 / period_s)


def test_silence_lowers_the_rate():
    statistics = steady(21, 0.1)
    rates = [statistics.snapshot(round((2 + silence) * SECOND)).rate_hz for silence in (0.5, 2.0, 4.0, 20.0)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] < 10 and rates[-1] == pytest.approx(1 / 20.0)


def test_no_plan_and_a_first_plan_have_no_rate():
    statistics = PlanStatistics()
    assert statistics.snapshot(0).rate_hz is None and statistics.snapshot(0).times_ms == {}
    statistics.note(outcome(0), SECOND)
    assert statistics.snapshot(round(1.9 * SECOND)).rate_hz is None
    assert statistics.snapshot(3 * SECOND).rate_hz == pytest.approx(0.5)


def test_kept_tokens_are_counted_by_camera():
    found = steady(2, 0.1).snapshot(SECOND)
    assert found.kept_tokens == {"CAM_FRONT": 3, "CAM_BACK": 1} and found.tokens == {"CAM_FRONT": 6, "CAM_BACK": 6}


def test_a_plan_without_pruning_has_no_kept_tokens():
    statistics = PlanStatistics()
    plan = replace(outcome(0).result, kept=None)
    statistics.note(Outcome(plan, frames()), 0)
    assert statistics.snapshot(0).kept_tokens == {}


def test_refusals_and_times_before_a_jump_back_have_no_part():
    statistics = steady(10, 1.0)
    statistics.note(Outcome(Refusal(0, "x", "image")), 20 * SECOND)
    assert statistics.snapshot(20 * SECOND).plans == 10
    statistics.note(outcome(0), SECOND)
    assert statistics.snapshot(2 * SECOND).plans == 1
    statistics.reset()
    assert statistics.snapshot(2 * SECOND).plans == 0


def test_memory_is_bounded():
    statistics = steady(MAX_PLANS + 10, 0.001)
    assert statistics.snapshot(round(2.01 * SECOND)).plans == MAX_PLANS
