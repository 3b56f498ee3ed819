"""The operating mode from outcomes and from their absence, with a clock set by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdrive_node.sync.frames import CameraStatus
from fastdrive_node.sync.modes import BUSY, DEADLINE, NO_IMAGES, NO_SET, Mode, ModeJudge, ModeLimits, ModeReason, View
from fastdrive_node.types import CAMERAS, SUPERSEDED, Plan, PlannerState, Refusal

TICK_S = 0.05


class Drive:
    """A judge, cameras of a period, and a planner; ``run`` lets time pass in ticks and gives when a mode came."""

    def __init__(self, period_s: float = 0.1, **limits):
        self.now_s = 100.0
        self.period_s = period_s
        self.judge = ModeJudge(ModeLimits(**limits), self.now_s)
        self.judge.lifecycle("active", self.now_s)
        self.received = dict.fromkeys(CAMERAS, 0)
        self.late = dict.fromkeys(CAMERAS, 0)
        self.problems: dict[str, str] = {}
        self.dead: tuple[str, ...] = ()
        self.result = "plan"  # or the code of a refusal, or "nothing", or "busy"
        self.mode = "nominal"  # of plans
        self.warnings: tuple[str, ...] = ()  # likewise
        self._next_s = self.now_s
        self._busy_since: float | None = None

    def tick(self):
        if self.now_s >= self._next_s - 1e-9:
            self._next_s += self.period_s
            self._send()
        cameras = {
            camera: CameraStatus(0.0, 1 / self.period_s if count > 1 else 0.0, count, self.late[camera])
            for camera, count in self.received.items()
        }
        busy_s = None if self._busy_since is None else self.now_s - self._busy_since
        status = self.judge.judge(View(cameras, busy_s, self.problems), self.now_s)
        self.now_s += TICK_S
        return status

    def _send(self):
        for camera in CAMERAS:
            self.received[camera] += camera not in self.dead
        self._busy_since = None if self.result != "busy" else self._busy_since or self.now_s
        if self.result == "plan":
            self.judge.note(Plan(0, np.zeros((6, 2)), 0.5, "", self.mode, warnings=self.warnings), self.now_s)
        elif self.result not in ("nothing", "busy"):
            self.judge.note(Refusal(0, "the reason", self.result), self.now_s)

    def run(self, seconds: float):
        for _ in range(round(seconds / TICK_S)):
            status = self.tick()
        return status

    def until(self, mode: Mode, limit_s: float = 10.0):
        """The first status of a mode, and the time that it took."""
        start_s = self.now_s
        while (status := self.tick()).mode is not mode:
            assert self.now_s - start_s < limit_s, f"still {status.text}"
        return status, self.now_s - start_s - TICK_S


@pytest.fixture
def nominal() -> Drive:
    drive = Drive()
    assert drive.run(1.0).mode is Mode.NOMINAL
    return drive


def test_the_first_plan_ends_starting():
    drive = Drive()
    drive.result = "nothing"
    status = drive.run(1.0)
    assert (status.mode, status.reason.code) == (Mode.STARTING, NO_SET)
    drive.result = "plan"
    assert drive.until(Mode.NOMINAL)[1] <= 0.1


def test_starting_without_a_plan_becomes_refusing():
    drive = Drive(start_s=2.0)
    drive.dead, drive.result = CAMERAS, "nothing"
    status, took_s = drive.until(Mode.REFUSING)
    assert status.reason.code == NO_IMAGES and took_s == pytest.approx(2.0, abs=0.1)


def test_a_first_set_that_is_refused_is_told_at_once():
    drive = Drive()
    drive.result = "odometry"
    status, took_s = drive.until(Mode.REFUSING)
    assert status.reason == ModeReason("odometry", "the reason") and took_s < 0.01


@pytest.mark.parametrize("code", ["frames", "odometry", "answer", "internal"])
def test_refusals_are_a_mode_within_half_a_second_and_three_plans_end_it(nominal, code):
    nominal.result = code
    status, took_s = nominal.until(Mode.REFUSING)
    assert status.reason.code == code and took_s <= 0.5 and status.needs_fallback
    assert nominal.run(2.0).refusals[code] > 10
    nominal.result = "plan"
    status = nominal.run(0.2)
    assert status.mode is Mode.REFUSING and status.recovering and not status.needs_fallback
    assert nominal.until(Mode.NOMINAL)[1] <= 0.2


def test_one_refusal_among_plans_is_no_mode(nominal):
    for _ in range(5):
        nominal.result = "image"
        assert nominal.run(0.1).mode is Mode.NOMINAL
        nominal.result = "plan"
        assert nominal.run(0.3).mode is Mode.NOMINAL


def test_one_refusal_at_a_low_rate_is_told_before_the_next_set():
    drive = Drive(period_s=0.5)
    drive.run(4.0)
    drive.result = "image"
    assert drive.until(Mode.REFUSING)[1] <= 0.5


def test_superseded_sets_are_neither_plans_nor_refusals(nominal):
    nominal.result = SUPERSEDED
    assert nominal.until(Mode.REFUSING)[0].reason.code == NO_SET


def test_dead_cameras_are_named_though_no_set_ends(nominal):
    nominal.dead, nominal.result = CAMERAS[1:], "nothing"
    status, took_s = nominal.until(Mode.REFUSING)
    assert took_s <= 0.5 and status.reason.code in (NO_IMAGES, NO_SET)
    status = nominal.run(0.5)
    assert status.reason.code == NO_IMAGES and "CAM_BACK_LEFT" in status.reason.text
    assert list(status.cameras) == list(CAMERAS[1:])


def test_after_refusals_the_reason_is_what_holds_now(nominal):
    nominal.result = "frames"
    nominal.run(1.0)
    nominal.dead, nominal.result = CAMERAS, "nothing"
    status = nominal.run(1.0)
    assert (status.mode, status.reason.code) == (Mode.REFUSING, NO_IMAGES)


def test_images_that_make_no_set_are_told(nominal):
    nominal.result = "nothing"
    status, took_s = nominal.until(Mode.REFUSING)
    assert status.reason.code == NO_SET and took_s <= 0.5


def test_a_planner_that_hangs_is_told_before_and_after_its_deadline(nominal):
    nominal.result = "busy"
    assert nominal.until(Mode.REFUSING)[1] <= 0.5
    assert nominal.run(0.2).reason.code == BUSY
    assert nominal.run(2.0).reason.code == DEADLINE


def test_a_slow_but_steady_planner_is_nominal():
    drive = Drive(planning_deadline_s=3.0)
    for _ in range(8):
        drive.result = "busy"
        drive.run(1.9)
        drive.result = "plan"
        drive.run(0.1)
    drive.result = "busy"
    assert drive.run(1.9).mode is Mode.NOMINAL


def test_dead_cameras_of_a_slow_planner_are_told_before_its_next_plan_is_due():
    drive = Drive(planning_deadline_s=3.0)
    for _ in range(8):
        drive.result = "busy"
        drive.run(1.9)
        drive.result = "plan"
        drive.run(0.1)
    drive.dead, drive.result = CAMERAS, "nothing"
    status, took_s = drive.until(Mode.REFUSING)
    assert took_s <= 0.5 and status.reason.code == NO_IMAGES


def test_a_long_pause_does_not_lengthen_the_period(nominal):
    nominal.dead, nominal.result = CAMERAS, "nothing"
    nominal.run(20.0)
    nominal.dead, nominal.result = (), "plan"
    assert nominal.run(1.0).period_s == pytest.approx(0.1)


@pytest.mark.parametrize("kind", ["plan mode", "missing", "late", "frozen"])
def test_plans_with_a_faulty_camera_are_degraded_by_name_and_recover(nominal, kind):
    if kind == "plan mode":
        nominal.mode = "degraded: no image of CAM_BACK"
    elif kind == "missing":
        nominal.dead = ("CAM_BACK",)
    elif kind == "late":
        nominal.late["CAM_BACK"] += 2
    else:
        nominal.problems = {"CAM_BACK": kind}
    status, took_s = nominal.until(Mode.DEGRADED)
    assert "CAM_BACK" in status.reason.text and took_s <= 0.5
    nominal.mode, nominal.dead, nominal.problems = "nominal", (), {}
    assert nominal.until(Mode.NOMINAL)[1] <= 1.3


def test_a_warning_of_an_input_is_degraded_with_its_code_until_three_plans_have_none(nominal):
    nominal.warnings = ("plan.jerk: 12 m/s3", "odometry.motion: its pose stands")
    status, took_s = nominal.until(Mode.DEGRADED)
    assert status.reason == ModeReason("odometry.motion", "plan.jerk: 12 m/s3; odometry.motion: its pose stands")
    assert took_s <= 0.1
    nominal.warnings = ()
    assert nominal.run(0.2).recovering
    assert nominal.until(Mode.NOMINAL)[1] <= 0.2


def test_a_camera_that_is_warned_of_is_named_with_the_warning(nominal):
    nominal.warnings, nominal.problems = ("image.dark: CAM_BACK: the mean is 0.0",), {"CAM_BACK": "dark"}
    status = nominal.until(Mode.DEGRADED)[0]
    assert status.reason == ModeReason("cameras", "CAM_BACK dark; image.dark: CAM_BACK: the mean is 0.0")
    assert status.cameras == {"CAM_BACK": "dark"}


def test_a_warning_of_the_plan_leaves_the_mode_and_is_its_reason(nominal):
    for warning in ("deadline: the plan took 120 ms of 100", "plan.jerk: 12 m/s3"):
        nominal.warnings = (warning,)
        status = nominal.run(0.3)
        assert (status.mode, status.reason) == (Mode.NOMINAL, ModeReason("", warning))
    assert status.text == "nominal: plan.jerk: 12 m/s3"
    nominal.warnings = ()
    assert nominal.run(0.2).reason == ModeReason()


def test_one_late_frame_is_no_mode(nominal):
    nominal.late["CAM_BACK"] += 1
    for _ in range(20):
        assert nominal.tick().mode is Mode.NOMINAL


@given(st.lists(st.tuples(st.sampled_from(["plan", "image", "nothing", "busy", "superseded"]), st.integers(1, 12))))
def test_nominal_is_never_said_without_plans(phases):
    drive = Drive()
    last_plan_s = None
    for result, ticks in phases:
        drive.result = result
        for _ in range(ticks):
            noted, before = drive.now_s, drive._next_s
            status = drive.tick()
            if result == "plan" and drive._next_s != before:
                last_plan_s = noted
            if status.mode in (Mode.NOMINAL, Mode.DEGRADED):
                limit_s = min(max(3 * status.period_s, 0.3), 5.0)
                assert last_plan_s is not None and noted - last_plan_s <= limit_s + 1e-6


def test_a_fault_holds_until_it_is_over_and_a_problem_degrades(nominal):
    nominal.judge.fault(ModeReason("planner_died", "restart limit"))
    assert nominal.tick().mode is Mode.FAULT and nominal.tick().needs_fallback
    nominal.judge.fault(None)
    assert nominal.run(0.5).mode is Mode.NOMINAL
    nominal.judge.problem("parameter", "drop: accepted but not applied")
    assert nominal.tick().text == "degraded: parameter: drop: accepted but not applied"
    nominal.judge.problem("parameter", "")
    assert nominal.tick().mode is Mode.NOMINAL


def test_lifecycle_states_are_modes():
    judge = ModeJudge()
    assert judge.judge(None, 0.0).reason.code == "unconfigured"
    judge.lifecycle("loading", 1.0)
    assert judge.judge(None, 1.0).mode is Mode.STARTING
    judge.lifecycle("inactive", 2.0)
    assert judge.judge(None, 2.0).mode is Mode.INACTIVE and not judge.judge(None, 2.0).needs_fallback


def test_a_clock_that_begins_late_or_goes_back_is_no_silence(nominal):
    nominal.now_s = nominal._next_s = 1.5e9
    assert nominal.tick().mode is not Mode.REFUSING
    nominal.run(1.0)
    nominal.now_s = nominal._next_s = 50.0
    assert nominal.run(0.3).mode is Mode.NOMINAL


def test_a_planners_process_that_cannot_plan_is_a_mode():
    judge = ModeJudge()
    judge.lifecycle("active", 0.0)

    def mode_at(now_s: float, phase, reason: str = "") -> tuple[Mode, str]:
        found = judge.judge(View({}, planner=PlannerState(phase, reason)), now_s)
        return found.mode, found.reason.code

    for now_s in range(0, 20, 2):  # loading takes longer than a start without plans may
        judge.note(Refusal(0, "the planner is loading", "planner", "planner_starting"), now_s)
        assert mode_at(now_s, "starting") == (Mode.STARTING, "loading")
    assert mode_at(20.0, "ready")[0] == Mode.STARTING
    assert mode_at(21.0, "restarting") == (Mode.REFUSING, "planner_restarting")
    assert mode_at(22.0, "down", "it ended 6 times") == (Mode.FAULT, "planner_down")


def test_an_active_node_without_a_worker_is_inactive_by_name():
    """As it is for a moment while it is deactivated."""
    judge = ModeJudge()
    judge.lifecycle("active", 0.0)
    status = judge.judge(None, 0.1)
    assert status.mode is Mode.INACTIVE and status.reason.code == "inactive"
