"""The node as the planner in real time, by a wall clock of the test: late plans, and a node that hangs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import sim_fakes

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e .[ros]")

from fastdrive_node.record import PlanRecord
from fastdrive_node.replay.bag import BagMessage
from fastdrive_node.replay.connection import Arrival
from fastdrive_node.ros.topics import TopicMap, simulator_topics
from fastdrive_node.types import CAMERAS, Plan
from fastdrive_sim.bag import image_topic
from fastdrive_sim.drive import node_session, realtime
from fastdrive_sim.drive.families import FAMILIES
from fastdrive_sim.drive.faults import Fault, Images
from fastdrive_sim.drive.latency import Latency
from fastdrive_sim.drive.loop import drive
from fastdrive_sim.drive.node_planner import CameraRig
from fastdrive_sim.drive.node_session import rig_of
from fastdrive_sim.drive.realtime import RealTimeNodePlanner
from fastdrive_sim.drive.runner import Chunk, DriveSettings, drive_runs
from fastdrive_sim.drive.suite import ScenarioKey
from fastdrive_sim.drive.types import FAILED, LATE, PLANNED, REFUSED, TIMEOUT, DriveRow, RunRecord

ROW = DriveRow("fake", 0.5)
DT_S = 2.0  # between waypoints: a plan of 12 s, which is of use after the seconds that a slow node takes
Delays = Callable[[int], float | None]  # of the frame sets by their number: until the record; None: there is none


class WallClock:
    """Time of the test, which goes on where somebody waits."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


class StandInConnection:
    """A node's connection whose records come after set delays, by the clock of the test; plans go slowly ahead."""

    def __init__(self, clock: WallClock, last_camera: str, delays: Delays):
        self.clock, self.last_camera, self.delays = clock, last_camera, delays
        self.time_ns, self.sets = 0, 0
        self.arrivals: list[Arrival] = []
        self.arrived_at: dict[int, float] = {}  # by t0 in ns
        self.first_calls: list[str] = []
        self._due: list[tuple[float, int]] = []

    def publish(self, message: BagMessage) -> None:
        self._note("publish")
        if message.topic != self.last_camera:
            return
        delay_s = self.delays(self.sets)
        self.sets += 1
        if delay_s is not None:
            self._due = sorted([*self._due, (self.clock.now_s + delay_s, message.stamp_ns)])

    def wait(self, seconds: float) -> None:
        until_s = self.clock.now_s + seconds
        if self._due and self._due[0][0] <= until_s:
            at_s, t0_ns = self._due.pop(0)
            plan = Plan(t0_ns, np.stack([DT_S * np.arange(1, 7), np.zeros(6)], axis=1), DT_S, "")
            self.arrivals.append(Arrival(PlanRecord(plan), at_s))
            self.arrived_at[t0_ns] = until_s = max(at_s, self.clock.now_s)
        self.clock.now_s = until_s

    def tell_time(self, ns: int) -> None:
        self._note("tell_time")
        self.time_ns = ns

    def round_trip(self, timeout_s: float) -> bool:
        self._note("round_trip")
        return True

    def _note(self, call: str) -> None:
        self.first_calls = [*self.first_calls, call][:3]


@pytest.fixture
def make(monkeypatch) -> Callable[..., RealTimeNodePlanner]:
    """A planner with a stand-in for the node."""
    clock, known = WallClock(), simulator_topics()
    monkeypatch.setattr(realtime, "time", clock)
    topics = TopicMap({name: image_topic(name, "raw") for name in CAMERAS}, known.odometry, known.command, "the test's")
    rig = CameraRig(sim_fakes.FakeRenderer(32, 24, rig_of(CAMERAS)), topics)

    def planner(delays: Delays, fault: Fault | None = None) -> RealTimeNodePlanner:
        node = StandInConnection(clock, list(topics.cameras.values())[-1], delays)
        return RealTimeNodePlanner(rig, node, fault or Fault(), Latency(), 0.05, 0.5)  # pyright: ignore[reportArgumentType]

    return planner


def run_of(planner: RealTimeNodePlanner, seconds: float) -> RunRecord:
    scene = FAMILIES["stopped-lead"].scene(1)
    scene.timeout_s = seconds
    return drive(scene, planner, ROW)


def test_the_node_has_the_time_before_it_hears_anything(make):
    planner = make(lambda number: 0.1)
    run_of(planner, 1.0)
    assert planner._node.first_calls == ["tell_time", "round_trip", "tell_time"], "its clock would start in between"
    planner._node.first_calls = []
    run_of(planner, 1.0)
    assert planner._node.first_calls == ["tell_time", "publish", "publish"], "its clock goes on: no need to wait"


def test_a_plan_comes_into_use_when_its_record_has_come(make):
    planner = make(lambda number: 0.123 + 0.1 * number)
    run = run_of(planner, 4.0)
    assert [plan.outcome for plan in run.plans] == [PLANNED] * len(run.plans) and len(run.plans) > 5
    for number, plan in enumerate(run.plans):
        arrived_s = plan.time_s + 0.123 + 0.1 * number
        assert plan.used_from_s is not None and 0 <= plan.used_from_s - arrived_s < 0.0101  # the next step of physics


class NoImages(Fault):
    """Every second frame set has no image at all."""

    def begin(self, seed: int) -> None:
        super().begin(seed)
        self._sets = 0

    def images(self, images: Images) -> Images:
        self._sets += 1
        return images if self._sets % 2 else [None] * len(images)


def test_a_frame_set_without_any_image_is_refused_like_in_lockstep(make):
    run = run_of(make(lambda number: 0.1, NoImages()), 4.0)
    outcomes = [(plan.outcome, plan.reason) for plan in run.plans]
    assert set(outcomes[::2]) == {(PLANNED, "")} and len(outcomes) > 5
    assert set(outcomes[1::2]) == {(REFUSED, "no camera has sent an image")}


def test_a_step_has_the_age_of_the_plan_that_is_in_use(make):
    run = run_of(make(lambda number: 0.3 + 0.4 * (number % 2)), 4.0)
    used = [step for step in run.steps if step.plan >= 0]
    assert {step.plan for step in used} == set(range(len(run.plans)))
    for step in used:
        plan = run.plans[step.plan]
        assert plan.used_from_s is not None and plan.used_from_s <= step.time_s
        assert step.plan_age_s == pytest.approx(step.time_s - plan.time_s)
    assert max(step.plan_age_s for step in used) > 0.7


def test_a_plan_that_comes_after_a_newer_one_is_late(make):
    run = run_of(make(lambda number: 1.3 if number == 1 else 0.2), 3.0)
    assert {plan.time_s: plan.outcome for plan in run.plans if plan.outcome != PLANNED} == {0.5: LATE}
    assert next(plan for plan in run.plans if plan.outcome == LATE).used_from_s is None


def test_a_slow_node_that_answers_is_late_and_does_not_fail(make):
    planner = make(lambda number: 7.5)
    run = run_of(planner, 14.0)
    assert (run.ending, run.reason) == (TIMEOUT, "")
    assert {round((plan.used_from_s or 0.0) - plan.time_s, 3) for plan in run.plans} == {7.5}
    assert planner.alive()


def test_frame_sets_without_a_record_do_not_fail_a_node_that_answers_others(make):
    planner = make(lambda number: 0.2 if number % 10 == 0 else None)
    run = run_of(planner, 14.0)
    assert run.ending == TIMEOUT and planner.alive()


@pytest.mark.parametrize("answered", [0, 4])
def test_a_node_that_hangs_ends_the_run_with_the_reason(make, answered):
    planner = make(lambda number: 0.2 if number < answered else None)
    run = run_of(planner, 60.0)
    assert run.ending == FAILED and not planner.alive()
    assert "--realtime: the node has given no plan record for 8 s" in run.reason
    assert run.steps[-1].time_s <= 0.5 * answered + 8.0 + 0.1
    assert len(run.plans) == answered


def test_after_a_node_that_hangs_the_next_run_gets_another(make, monkeypatch, tmp_path):
    opened = []

    @contextmanager
    def open_planner(settings: DriveSettings, row: DriveRow) -> Iterator[RealTimeNodePlanner]:
        hangs = not opened
        opened.append(make(lambda number: None if hangs and number > 2 else 0.2))
        yield opened[-1]

    monkeypatch.setattr(node_session, "open_planner", open_planner)
    settings = DriveSettings(Path(tmp_path), "", CAMERAS, (32, 24), realtime=True)
    runs = drive_runs(settings, Chunk(ROW, tuple(ScenarioKey("stopped-lead", seed) for seed in (1, 2, 3))))
    assert [run.ending == FAILED for run in runs] == [True, False, False]
    assert len(opened) == 2
