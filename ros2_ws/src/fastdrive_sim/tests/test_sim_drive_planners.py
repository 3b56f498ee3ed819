"""When plans come into use."""

from __future__ import annotations

from fastdrive_sim.drive.planners import SimulatedLatency, Tick, TickAnswer
from fastdrive_sim.drive.types import EgoStep

EGO = EgoStep(0.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0)


def drive(latency_s: float, ticks: int = 4) -> tuple[list[tuple[float, float, str]], list[tuple[float, float]]]:
    """(time of use, time of the tick, outcome) of each answer, and (tick, begin of planning) of what was planned."""
    planned = []

    def solve(tick: Tick, begins_s: float) -> TickAnswer:
        planned.append((tick.time_s, round(begins_s, 3)))
        return TickAnswer(tick)

    queue = SimulatedLatency(lambda ego, time_s: None, solve, lambda: latency_s)
    found = []
    for step in range(10 * ticks):
        now = round(0.1 * step, 3)
        if step % 5 == 0 and step < 5 * ticks:
            queue.offer(EGO, now)
        found += [(now, answer.tick.time_s, answer.outcome) for answer in queue.collect(now)]
    return found, planned


def test_without_latency_a_plan_is_used_at_once():
    found, _ = drive(0.0)
    assert found == [(t, t, "planned") for t in (0.0, 0.5, 1.0, 1.5)]


def test_a_latency_below_the_period_delays_each_plan():
    found, _ = drive(0.3)
    assert found == [(round(t + 0.3, 3), t, "planned") for t in (0.0, 0.5, 1.0, 1.5)]


def test_a_busy_planner_takes_the_newest_tick_next_and_the_others_are_superseded():
    found, planned = drive(1.2, ticks=5)
    assert planned == [(0.0, 0.0), (1.0, 1.2), (2.0, 2.4)]
    assert found == [
        (1.0, 0.5, "superseded"),
        (1.2, 0.0, "planned"),
        (2.0, 1.5, "superseded"),
        (2.4, 1.0, "planned"),
        (3.6, 2.0, "planned"),
    ]
