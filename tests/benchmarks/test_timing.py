import pytest
import torch

from fastdrive_node.benchmark import timing as timing_module
from fastdrive_node.benchmark.timing import REST_S, Case, Timing, measure, ratio

CPU = torch.device("cpu")


def test_cases_take_turns_after_their_warm_up():
    calls = []
    cases = {name: Case(lambda _, name=name: calls.append(name)) for name in "ab"}
    timings = measure(cases, runs=3, device=CPU, warm_up=2)
    assert "".join(calls) == "aabb" + "ababab"
    assert [len(timing.ms) for timing in timings.values()] == [3, 3]


def test_a_case_is_prepared_once_and_given_what_that_gave():
    prepared, given = [], []
    case = Case(given.append, lambda: prepared.append(0) or "state")
    measure({"a": case}, runs=2, device=CPU, warm_up=1)
    assert prepared == [0] and given == ["state"] * 3


class Clock:
    """Time that passes only where one sleeps or works."""

    def __init__(self):
        self.now, self.slept = 0.0, []

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(timing_module, "time", found)
    return found


def test_the_machine_rests_before_each_timed_run_so_that_threads_of_the_run_before_sleep(clock):
    begun = []

    def work(_):
        begun.append(clock.now)
        clock.now += 0.5

    timings = measure({"a": Case(work), "b": Case(work)}, runs=2, device=CPU, warm_up=0)
    assert clock.slept == [REST_S] * 4 and REST_S >= 0.02
    assert begun == pytest.approx([REST_S, 0.5 + 2 * REST_S, 1.0 + 3 * REST_S, 1.5 + 4 * REST_S])
    assert timings["a"].ms == pytest.approx([500.0] * 2), "a rest is not a part of a run"


def test_a_period_lies_between_the_beginnings_of_runs_and_leaves_a_rest(clock):
    begun = []

    def work(seconds):
        begun.append(clock.now)
        clock.now += seconds

    measure({"short": Case(work, lambda: 0.3), "long": Case(work, lambda: 1.0)}, 2, CPU, warm_up=0, period_s=1.0)
    assert begun == pytest.approx([1.0, 2.0, 3.0 + REST_S, 4.0 + REST_S])


def test_runs_a_second_leave_the_rests_out():
    assert Timing(ms=[40.0, 20.0, 30.0]).per_second == pytest.approx(1e3 / 30)


def test_each_case_runs_with_its_own_number_of_threads():
    before, seen = torch.get_num_threads(), []
    cases = {count: Case(lambda _: seen.append(torch.get_num_threads()), threads=count) for count in (1, 2)}
    try:
        measure(cases, runs=2, device=CPU, warm_up=1)
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 2, 1, 2, 1, 2]


def fail(_):
    raise torch.OutOfMemoryError("out of\nmemory")


def test_a_failing_case_is_recorded_and_the_others_go_on():
    calls = []
    cases = {"bad": Case(fail), "good": Case(calls.append)}
    timings = measure(cases, runs=2, device=CPU, warm_up=1, tolerant=True)
    assert timings["bad"].figures() == {"error": "OutOfMemoryError: out of memory"}
    assert len(calls) == 3 and timings["good"].figures()["runs"] == 2
    assert ratio(timings["good"], timings["bad"]) is None


def test_a_case_that_fails_late_runs_no_further():
    runs = []

    def late(_):
        runs.append(0)
        if len(runs) == 2:
            fail(_)

    timings = measure({"late": Case(late)}, runs=5, device=CPU, warm_up=1, tolerant=True)
    assert len(runs) == 2 and "error" in timings["late"].figures()


def test_a_failure_is_raised_unless_tolerated():
    with pytest.raises(torch.OutOfMemoryError):
        measure({"bad": Case(fail)}, runs=1, device=CPU)


def test_figures_are_of_one_part_of_a_run():
    timing = Timing(ms=[40.0, 20.0, 30.0])
    assert timing.figures(parts=10) == {"median_ms": 3.0, "p99_ms": 3.98, "min_ms": 2.0, "runs": 3}
    assert ratio(timing, Timing(ms=[15.0])) == 2.0
