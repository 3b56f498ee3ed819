"""The worker thread: newest set wins, odometry is waited for, faults become refusals."""

from __future__ import annotations

import queue
import threading

import numpy as np
import pytest

from fastdrive_node.errors import AnswerError, EgoStateError, FrameSetError, ImageError, InputError, ModelError
from fastdrive_node.sync.frames import FrameBuffer, FrameLimits
from fastdrive_node.sync.odometry import OdometryBuffer
from fastdrive_node.sync.outcomes import RECENT, WorkerLimits
from fastdrive_node.sync.worker import Worker
from fastdrive_node.types import CAMERAS, CameraFrame, Command, DeadlineChoice, EgoState, Plan

MS = 1_000_000
PATIENCE_S = 30


class Bench:
    """A worker with a clock set by hand and a planner that can be held or made to fail."""

    def __init__(self, **limits):
        self.now = 0
        self.drop = 0.5
        self.fault: Exception | None = None
        self.told = {}  # further fields of each plan
        self.go = threading.Event()
        self.go.set()
        self.begun = queue.Queue()
        self.outcomes = queue.Queue()
        self.worker = Worker(
            self,
            FrameBuffer(CAMERAS, FrameLimits(max_age_s=1.0)),
            OdometryBuffer(),
            clock=lambda: self.now,
            report=self.outcomes.put,
            limits=WorkerLimits(**limits),
        )

    def plan(self, frame_set, history, command):
        self.begun.put((frame_set, history, command))
        assert self.go.wait(PATIENCE_S)
        if self.fault is not None:
            raise self.fault
        return Plan(frame_set.t0_ns, np.ones((6, 2)), 0.5, "text", **self.told)

    def send(self, at_ms: int, odometry: bool = True, speed: float = 5.0) -> None:
        self.now = max(self.now, at_ms * MS)
        if odometry:
            self.worker.add_odometry(EgoState(at_ms * MS, 0, 0, 0, speed))
        for camera in CAMERAS:
            self.worker.add_frame(CameraFrame(camera, at_ms * MS, self.now, lambda: np.zeros((2, 2, 3), np.uint8)))

    def hold_at(self, at_ms: int) -> None:
        """Send a set whose planning begins and goes on until ``go`` is set."""
        self.go.clear()
        self.send(at_ms)
        self.begun.get(timeout=PATIENCE_S)

    def next(self):
        return self.outcomes.get(timeout=PATIENCE_S)


@pytest.fixture
def bench():
    made = []

    def make(**limits) -> Bench:
        made.append(Bench(**limits))
        made[-1].worker.start()
        return made[-1]

    yield make
    for each in made:
        each.go.set()
        each.worker.stop()


def test_a_set_is_planned_with_its_history_and_command(bench):
    bench = bench()
    bench.worker.set_command(Command.RIGHT)
    bench.send(0, speed=3.0)
    outcome = bench.next()
    assert isinstance(outcome.result, Plan) and outcome.result.t0_ns == 0
    assert outcome.command == Command.RIGHT
    assert outcome.history.now.speed_mps == 3.0
    assert bench.worker.status().plans == 1


def test_only_the_newest_of_the_sets_that_wait_is_planned(bench):
    bench = bench()
    bench.hold_at(0)
    for at_ms in (100, 200, 300):
        bench.send(at_ms)
    bench.go.set()
    found = [bench.next() for _ in range(4)]
    kinds = [(o.result.t0_ns // MS, "plan" if isinstance(o.result, Plan) else o.result.stage) for o in found]
    assert sorted(kinds) == [(0, "plan"), (100, "superseded"), (200, "superseded"), (300, "plan")]


def test_a_set_whose_time_ran_out_is_given_up_before_the_next_image_not_when_the_thread_looks():
    bench = Bench()  # the thread runs after the images only
    for index, camera in enumerate(CAMERAS):
        bench.now = 400 * MS if index == 5 else 0
        bench.worker.add_frame(CameraFrame(camera, 0, bench.now, lambda: np.zeros((2, 2, 3), np.uint8)))
    bench.worker.start()
    result = bench.next().result
    bench.worker.stop()
    assert (result.t0_ns, result.stage) == (0, "frames") and "CAM_FRONT_LEFT missing" in result.reason


def test_the_command_is_that_of_the_sets_completion(bench):
    bench = bench()
    bench.worker.set_command(Command.LEFT)
    bench.hold_at(0)
    bench.send(500)
    bench.worker.set_command(Command.RIGHT)
    bench.go.set()
    assert [bench.next().command for _ in range(2)] == [Command.LEFT, Command.LEFT]
    bench.send(1000)
    assert bench.next().command == Command.RIGHT


def test_an_old_command_is_none(bench):
    bench = bench(max_command_age_s=1.0)
    bench.worker.set_command(Command.LEFT)
    bench.send(500)
    assert bench.next().command == Command.LEFT
    bench.send(1500)
    assert bench.next().command == Command.NONE


def test_a_set_waits_for_the_odometry_of_its_time(bench):
    bench = bench(odometry_wait_s=PATIENCE_S)
    bench.worker.add_odometry(EgoState(0, 0, 0, 0, 1.0))
    bench.send(100, odometry=False)
    with pytest.raises(queue.Empty):
        bench.begun.get(timeout=0.2)
    assert bench.worker.status().busy
    bench.worker.add_odometry(EgoState(200 * MS, 0, 0, 0, 3.0))
    assert bench.next().history.now.speed_mps == pytest.approx(2.0)


def test_the_wait_for_odometry_ends(bench):
    bench = bench(odometry_wait_s=0.0)
    bench.worker.add_odometry(EgoState(0, 0, 0, 0, 1.0))
    bench.send(100, odometry=False)
    assert bench.next().history.now.speed_mps == 1.0
    bench.send(900, odometry=False)
    refusal = bench.next().result
    assert refusal.stage == "odometry" and "0.90 s before t0" in refusal.reason


@pytest.mark.parametrize(
    ("fault", "stage", "reason"),
    [
        (ImageError("CAM_BACK: cut"), "image", "CAM_BACK: cut"),
        (EgoStateError("ego state: speed_mps"), "odometry", "ego state: speed_mps"),
        (FrameSetError("frame set: cameras"), "frames", "frame set: cameras"),
        (InputError("drop: 2"), "input", "drop: 2"),
        (AnswerError("no tag"), "answer", "no tag"),
        (ModelError("scores"), "model", "scores"),
        (MemoryError("full"), "internal", "MemoryError: full"),
    ],
)
def test_a_fault_is_a_refusal_and_the_next_set_is_planned(bench, fault, stage, reason):
    bench = bench()
    bench.fault = fault
    bench.send(0)
    refusal = bench.next().result
    assert (refusal.t0_ns, refusal.stage, refusal.reason) == (0, stage, reason)
    assert bench.worker.status().last_refusal == f"{stage}: {reason}"
    bench.fault = None
    bench.send(500)
    assert isinstance(bench.next().result, Plan)


def test_a_refusal_has_the_code_of_its_fault(bench):
    bench = bench()
    bench.fault = AnswerError("too fast", code="plan.speed")
    bench.send(0)
    assert bench.next().result.code == "plan.speed"


def test_a_stale_set_is_refused_when_its_turn_comes(bench):
    bench = bench(max_plan_age_s=10.0)
    bench.hold_at(0)
    bench.send(500)
    bench.now = 1600 * MS
    bench.go.set()
    assert isinstance(bench.next().result, Plan)
    assert "stale" in bench.next().result.reason


def test_a_plan_that_is_too_old_when_it_is_ready_is_refused_and_the_next_one_is_published(bench):
    bench = bench(max_plan_age_s=0.5)
    bench.hold_at(0)
    assert bench.worker.status().planning_s is not None
    bench.now = 510 * MS
    bench.go.set()
    refusal = bench.next().result
    assert (refusal.stage, refusal.t0_ns) == ("age", 0) and "0.51 s old when it is ready" in refusal.reason
    bench.send(600)
    assert isinstance(bench.next().result, Plan) and bench.worker.status().planning_s is None


def test_a_compensated_plan_is_in_the_frame_of_the_time_at_which_it_is_ready(bench):
    bench = bench(compensate=True)
    bench.hold_at(0)
    bench.now = 500 * MS
    bench.worker.add_odometry(EgoState(500 * MS, 1.0, 0.0, 0.0, 5.0))
    bench.go.set()
    outcome = bench.next()
    assert (outcome.result.t0_ns, outcome.result.stamp_ns) == (0, 500 * MS)
    assert outcome.ego_at_stamp.x_m == 1.0
    np.testing.assert_allclose(outcome.result.waypoints_m, [[0.0, 1.0]] * 5, atol=1e-9)


def test_without_odometry_at_the_time_of_publishing_nothing_is_compensated_or_published(bench):
    bench = bench(compensate=True)
    bench.hold_at(0)
    bench.now = 500 * MS
    bench.go.set()
    refusal = bench.next().result
    assert refusal.stage == "odometry" and refusal.reason.startswith("compensate: odometry: the newest is 0.50 s")


def test_a_plan_from_before_a_jump_in_time_is_not_published(bench):
    bench = bench()
    bench.hold_at(9000)
    bench.now = 0
    bench.worker.time_jumped(0)
    bench.go.set()
    assert bench.next().result.stage == "superseded"
    bench.send(0)
    assert isinstance(bench.next().result, Plan)


def test_a_jump_that_only_the_stamps_show_does_the_same(bench):
    bench = bench()
    bench.hold_at(900)
    bench.send(0)
    bench.go.set()
    assert bench.next().result.stage == "superseded"
    assert isinstance(bench.next().result, Plan)


def test_limits_change_while_it_runs(bench):
    bench = bench()
    bench.worker.configure(drop=0.25, frames=FrameLimits(max_age_s=0.1))
    assert bench.drop == 0.25
    bench.now = 300 * MS
    bench.send(0)
    assert "stale" in bench.next().result.reason


def test_it_stops_after_the_plan_in_progress_and_starts_again(bench):
    bench = bench()
    bench.hold_at(0)
    stopper = threading.Thread(target=bench.worker.stop)
    stopper.start()
    bench.go.set()
    stopper.join(PATIENCE_S)
    assert not stopper.is_alive() and isinstance(bench.next().result, Plan)
    bench.worker.start()
    bench.send(500)
    assert isinstance(bench.next().result, Plan)


def test_a_report_that_fails_does_not_end_the_worker(bench):
    bench = bench()
    reports = []

    def fail_once(outcome):
        reports.append(outcome)
        if len(reports) == 1:
            raise RuntimeError("the context is gone")
        bench.outcomes.put(outcome)

    bench.worker._report = fail_once
    bench.send(0)
    bench.begun.get(timeout=PATIENCE_S)
    bench.send(500)
    assert bench.next().result.t0_ns in (0, 500 * MS)


def test_the_status_has_the_age_of_the_last_plan_and_recent_refusals_by_stage(bench):
    bench = bench()
    assert bench.worker.status().plan_age_s is None
    bench.send(0)
    bench.next()
    bench.fault = ImageError("CAM_BACK: cut")
    for at_ms in range(500, 500 * (RECENT + 5), 500):
        if at_ms == 500 * RECENT:
            bench.fault = AnswerError("no tag")
        bench.send(at_ms)
        bench.next()
    status = bench.worker.status()
    assert (status.plans, status.refused, status.recent) == (1, RECENT + 4, RECENT)
    assert list(status.recent_refusals.items()) == [("image", RECENT - 5), ("answer", 5)]
    assert status.plan_age_s == pytest.approx(0.5 * (RECENT + 4))
    bench.worker.time_jumped(0)
    assert bench.worker.status().plan_age_s is None


def test_the_status_has_the_last_plans_deadline_and_counts_late_plans(bench):
    bench = bench()
    choice = DeadlineChoice(100.0, 42.5, 51.25, 64, 96, 1.5)
    for at_ms, total_ms in ((0, 99.0), (500, 104.0), (1000, 80.0)):
        bench.told = {"deadline": choice, "stage_ms": {"total": total_ms}}
        bench.send(at_ms)
        bench.next()
    status = bench.worker.status()
    assert (status.deadline, status.plan_ms, status.late_plans) == (choice, 80.0, 1)
    bench.told = {}
    bench.send(1500)
    bench.next()
    assert bench.worker.status().deadline is None


def test_superseded_sets_are_no_refusals(bench):
    bench = bench()
    bench.hold_at(0)
    for at_ms in (100, 200):
        bench.send(at_ms)
    bench.go.set()
    assert len([bench.next() for _ in range(3)]) == 3
    status = bench.worker.status()
    assert (status.frames.superseded, status.recent, status.recent_refusals) == (1, 2, {})
