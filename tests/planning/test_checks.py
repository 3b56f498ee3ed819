"""What no vehicle drives is refused, with a code; what a driver would not like is warned of; real drives pass."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastdrive_node.errors import AnswerError
from fastdrive_node.planning.checks import Band, LastPlan, PlanLimits, check_plan
from fastdrive_node.types import EgoState, Plan

DT = 0.5
ROUNDING = 0.05  # of answers with one decimal
SCENE = Path(__file__).parents[3] / "shared" / "data" / "scene0103" / "scene0103_gt.json"


def straight(speed, points=6, accel=0.0, dt=DT):
    t = dt * np.arange(1, points + 1)
    return np.stack([speed * t + accel * t * t / 2, 0 * t], axis=1)


def arc(speed, radius, points=6, dt=DT):
    angle = speed * dt * np.arange(1, points + 1) / radius
    return np.stack([radius * np.sin(angle), radius * (1 - np.cos(angle))], axis=1)


def code_of(plan, speed, limits=None, dt=DT) -> str:
    """Of the refusal; empty where the plan passes."""
    try:
        check_plan(np.array(plan, float), dt, speed, limits, ROUNDING)
    except AnswerError as error:
        return error.code
    return ""


@pytest.mark.parametrize("speed,accel", [(0, 0), (0, 3), (0.3, 3), (8, 0), (25, 3), (9, -3)])
def test_straight_driving_passes_without_a_warning(speed, accel):
    assert check_plan(straight(speed, accel=accel), DT, speed) == ()


def test_hard_braking_passes_with_a_warning():
    warnings = check_plan(straight(35, accel=-8), DT, 35)
    assert [line.partition(":")[0] for line in warnings] == ["plan.start", "plan.acceleration"]


@pytest.mark.parametrize("radius", [5.0, -5.0, 30.0, -500.0])
@pytest.mark.parametrize("dt", [0.5, 0.2, 0.1])
def test_bends_that_a_car_can_drive_pass(radius, dt):
    assert not code_of(arc(5.0, radius, round(3 / dt), dt), 5.0, dt=dt)


def test_standing_with_answers_that_tremble_passes():
    plan = np.array([[0.1, -0.1], [0, 0.1], [-0.1, 0], [0.1, 0], [0, 0], [0.1, 0.1]])
    assert check_plan(plan, DT, 0.0, rounding_m=ROUNDING) == ()


@pytest.mark.parametrize("speed", [-2.0, -0.5])
def test_driving_on_in_reverse_passes(speed):
    assert not code_of(straight(speed), speed)


STANDING = [(0, 0)] * 6
UNDRIVABLE = {
    "a right angle at 39 m/s": ([(19.5, 0), (39, 0), (39, 19.5), (39, 39), (39, 58.5), (39, 78)], 39.0),
    "a right angle at once": ([(0, 19.5), (0, 39), (0, 58.5), (0, 78), (0, 97.5), (0, 117)], 39.0),
    "backwards at once": ([(-4.0 * k, 0) for k in range(1, 7)], 8.0),
    "backwards from standing": ([(-1.0 * k, 0) for k in range(1, 7)], 0.0),
    "backwards, slowly": ([(-0.2 * k, 0) for k in range(1, 7)], 0.0),
    "sideways in steps of 1.9 m": ([(0, 1.9 * k) for k in range(1, 7)], 3.8),
    "sideways from standing": ([(0, 1.9 * k) for k in range(1, 7)], 0.0),
    "sideways, slowly": ([(0, 0.4 * k) for k in range(1, 7)], 0.8),
    "squares of 2 m": ([(2, 0), (2, 2), (0, 2), (0, 0), (2, 0), (2, 2)], 4.0),
    "squares of 0.5 m": ([(0.5, 0), (0.5, 0.5), (0, 0.5), (0, 0), (0.5, 0), (0.5, 0.5)], 1.0),
    "squares of 10 m": ([(10, 0), (10, 10), (0, 10), (0, 0), (10, 0), (10, 10)], 20.0),
    "to and fro by 5 m": ([(5, 0), (0, 0)] * 3, 10.0),
    "to and fro by 0.6 m": ([(0.6, 0), (0, 0)] * 3, 1.2),
    "40 m/s2 to the left": (arc(20.0, 10.0), 20.0),
    "a side step of 3 m": ([(5, 0), (10, 3), (15, 3), (20, 3), (25, 3), (30, 3)], 10.0),
    "a side step of 3 m at once": ([(5, 3), (10, 3), (15, 3), (20, 3), (25, 3), (30, 3)], 10.0),
    "a side step of 3 m at the end": ([(5, 0), (10, 0), (15, 0), (20, 0), (25, 0), (30, 3)], 10.0),
    "standing 0.5 s after 3.7 m/s": (STANDING, 3.7),
    "starting with 20 m/s from 10 m/s": (straight(20.0), 10.0),
    "a turn tighter than any car": (arc(4.0, 2.0), 4.0),
    "zigzag": ([(5 * k, 1.5 * (-1) ** k) for k in range(1, 7)], 10.0),
}


@pytest.mark.parametrize("name", UNDRIVABLE)
def test_what_no_vehicle_drives_is_refused(name):
    plan, speed = UNDRIVABLE[name]
    assert code_of(plan, speed).startswith("plan."), name


@pytest.mark.parametrize(
    ("code", "plan", "speed"),
    [
        ("plan.not_finite", [(5, 0), (np.nan, 0)], 10.0),
        ("plan.speed", straight(41.0), 41.0),
        ("plan.direction", [(-0.5 * k, 0) for k in range(1, 7)], 0.0),
        ("plan.start", STANDING, 3.7),
        ("plan.acceleration", [(5, 0), (10, 0), (15, 0), (29, 0), (34, 0), (39, 0)], 10.0),
        ("plan.lateral_acceleration", UNDRIVABLE["a side step of 3 m"][0], 10.0),
        ("plan.curvature", arc(3.0, 2.0), 3.0),
        ("plan.lateral_jerk", [(5, 0.4), (10, 1.6), (15, 1.6), (20, 0.4), (25, 0.4), (30, 1.6)], 10.0),
    ],
)
def test_a_refusal_has_the_code_of_its_check(code, plan, speed):
    assert code_of(plan, speed) == code


def test_a_refusal_names_waypoint_value_and_limit():
    with pytest.raises(AnswerError, match=r"^plan: speed of 41\.00 m/s at waypoint \d exceeds 40 m/s"):
        check_plan(straight(41.0), DT, 41.0)
    with pytest.raises(AnswerError, match=r"acceleration from the present speed of 40\.00 m/s2 at waypoint 1"):
        check_plan(straight(20.0), DT, 10.0)
    plan = straight(10.0)
    plan[3:, 0] += 9.0
    with pytest.raises(AnswerError, match=r"acceleration of 36\.00 m/s2 at waypoint 3 exceeds 9\.8 m/s2 \(tolerance"):
        check_plan(plan, DT, 10.0)


@pytest.mark.parametrize(
    ("name", "plan", "speed", "value"),
    [
        ("lateral_acceleration", arc(10.0, 20.0), 10.0, 5.0),
        ("curvature", arc(5.0, 4.0), 5.0, 0.25),
        ("steering", arc(5.0, 4.0), 5.0, np.arctan(2.588 / 4.0)),
        ("yaw_rate", arc(5.0, 5.0), 5.0, 1.0),
    ],
)
def test_figures_of_a_circle_are_exact(name, plan, speed, value):
    exact = {"tolerance_m": 0.0, "min_step_m": 1.0}
    for off in (1.02, 0.0):  # above the value nothing is told
        limits = PlanLimits(**exact, **{name: Band(value * (off or 0.9), 0.0)})
        told = [w for w in check_plan(plan, DT, speed, limits) if w.startswith(f"plan.{name}: ")]
        assert bool(told) == (off == 0.0)


def test_a_band_of_zero_is_off():
    quick = straight(41.0)
    assert code_of(quick, 41.0) == "plan.speed"
    warned = check_plan(quick, DT, 41.0, PlanLimits(speed=Band(36.0, 0.0)))
    assert [line.partition(":")[0] for line in warned] == ["plan.speed"]
    assert check_plan(quick, DT, 41.0, PlanLimits(speed=Band(0.0, 0.0))) == ()


def test_the_tolerance_is_what_rounding_can_do():
    """Plans of a smooth drive, rounded to 0.1 m and to 1 m, exceed no limit that the drive itself keeps."""
    generator = np.random.default_rng(0)
    limits = PlanLimits(jerk=Band(0.5, 0.5), lateral_jerk=Band(0.5, 0.5), acceleration=Band(0.5, 0.5), curvature=Band())
    refused = 0
    for _ in range(200):
        speed = generator.uniform(3, 30)
        plan = straight(speed)
        for digit in (0.1, 1.0):
            rounded = np.round(plan / digit) * digit
            check_plan(rounded, DT, speed, PlanLimits(**{**vars(limits), "start": Band()}), digit / 2)
            strict = PlanLimits(**{**vars(limits), "start": Band(), "tolerance_m": 0.0})
            try:
                check_plan(rounded, DT, speed, strict)
            except AnswerError:
                refused += 1
    assert refused > 100  # without the tolerance rounding alone is refused


def test_short_plans_are_checked():
    assert code_of([(4, 0)], 8.0) == "" and code_of([(0, 4)], 8.0) == "plan.start"
    assert code_of([(4, 0), (8, 0)], 8.0) == "" and code_of([(4, 0), (0, 0)], 8.0) == "plan.direction"


class TestLastPlan:
    """The plan before, moved by odometry."""

    def plans(self, **ego):
        last = LastPlan()
        start = EgoState(0, 100.0, 50.0, np.pi / 2, 10.0)
        last.keep(Plan(0, straight(10.0), DT, ""), start)
        now = EgoState(500_000_000, **{"x_m": 100.0, "y_m": 55.0, "yaw_rad": np.pi / 2, "speed_mps": 10.0, **ego})
        return last, now

    def test_the_same_path_is_no_distance(self):
        last, now = self.plans()
        found = last.distance(straight(10.0), DT, now)
        assert found.values == pytest.approx([0.0, 0.0], abs=1e-9)

    def test_another_path_is_warned_of_with_the_distance(self):
        last, now = self.plans()
        plan = arc(10.0, 20.0)
        found = last.distance(plan, DT, now)
        (warning,) = [w for w in check_plan(plan, DT, 10.0, last=found) if w.startswith("plan.continuity")]
        assert "distance from the last plan of 2.48 m at waypoint 2" in warning

    def test_a_plan_that_turns_back_is_refused(self):
        last, now = self.plans()
        plan = straight(-2.0)
        with pytest.raises(AnswerError) as caught:
            limits = PlanLimits(start=Band(), direction=Band(), jerk=Band(), curvature=Band())
            check_plan(plan, DT, 10.0, limits, last=last.distance(plan, DT, now))
        assert caught.value.code == "plan.continuity"

    def test_a_jump_of_the_odometry_is_not_blamed_on_the_plan(self):
        last, now = self.plans(y_m=75.0)
        assert last.distance(straight(10.0), DT, now) is None

    @pytest.mark.parametrize("stamp_ns", [-1, 0, 1_100_000_000])
    def test_an_old_plan_or_one_of_another_time_is_not_compared(self, stamp_ns):
        last, now = self.plans()
        now = replace(now, stamp_ns=stamp_ns, y_m=50.0 + stamp_ns * 1e-8)
        assert last.distance(straight(10.0), DT, now) is None

    def test_a_plan_in_another_frame_or_with_other_steps_is_not_compared(self):
        last, now = self.plans(frame="odom")
        assert last.distance(straight(10.0), DT, now) is None
        last, now = self.plans()
        assert last.distance(straight(10.0), 0.1, now) is None


@pytest.mark.skipif(not SCENE.exists(), reason="scene-0103 (../shared/data) is not on this machine")
@pytest.mark.parametrize("decimals", [1, 2, 4])
def test_the_recorded_scenes_futures_pass_without_a_warning(decimals):
    for frame in json.loads(SCENE.read_text())["frames"]:
        plan = np.round(np.array(frame["future_xy_0p5s"]), decimals)
        assert check_plan(plan, DT, frame["can_vx"], rounding_m=0.5 * 10.0**-decimals) == ()
