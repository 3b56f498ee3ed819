import numpy as np
import pytest

from fastdrive_node.errors import AnswerError
from fastdrive_node.planning.checks import PlanLimits, check_plan

DT = 0.5


def straight(speed, points=6, accel=0.0):
    t = DT * np.arange(1, points + 1)
    return np.stack([speed * t + accel * t * t / 2, 0 * t], axis=1)


def arc(speed, radius):
    angle = speed * DT * np.arange(1, 7) / radius
    return np.stack([radius * np.sin(angle), radius * (1 - np.cos(angle))], axis=1)


@pytest.mark.parametrize("speed,accel", [(0, 0), (0, 3), (0.3, 3), (8, 0), (30, 3), (9, -3), (35, -8)])
def test_straight_driving_passes(speed, accel):
    check_plan(straight(speed, accel=accel), DT, speed)


@pytest.mark.parametrize("radius", [5.0, -5.0, 30.0, -500.0])
def test_bends_that_a_car_can_drive_pass(radius):
    check_plan(arc(5.0, radius), DT, 5.0)


def test_standing_with_answers_that_tremble_passes():
    check_plan(np.array([[0.02, -0.01], [0, 0.02], [-0.01, 0], [0.03, 0], [0, 0], [0.01, 0.01]]), DT, 0.0)


def test_a_current_speed_in_reverse_counts_by_its_size():
    check_plan(-straight(2.0), DT, -2.0)


def test_a_coordinate_that_is_not_finite_is_refused():
    plan = straight(5.0)
    plan[3, 1] = np.nan
    with pytest.raises(AnswerError, match="not finite"):
        check_plan(plan, DT, 5.0)


def test_a_plan_that_is_too_fast_is_refused_with_the_waypoint():
    with pytest.raises(AnswerError, match=r"speed of 41\.00 m/s at waypoint 1 exceeds 40 m/s"):
        check_plan(straight(41.0), DT, 41.0)


def test_a_jump_between_waypoints_is_refused():
    plan = straight(10.0)
    plan[3:, 0] += 9.0
    with pytest.raises(AnswerError, match=r"acceleration of 36\.00 m/s2 at waypoint"):
        check_plan(plan, DT, 10.0)


def test_a_start_that_does_not_meet_the_current_speed_is_refused():
    with pytest.raises(AnswerError, match=r"acceleration of 40\.00 m/s2 at waypoint 1"):
        check_plan(straight(20.0), DT, 10.0)


def test_a_turn_tighter_than_any_car_is_refused():
    with pytest.raises(AnswerError, match="curvature"):
        check_plan(arc(6.0, 2.0), DT, 6.0)


def test_a_start_sideways_is_refused():
    with pytest.raises(AnswerError, match=r"curvature of .* at waypoint 1"):
        check_plan(straight(6.0)[:, ::-1], DT, 6.0)


def test_limits_can_be_set():
    with pytest.raises(AnswerError, match=r"speed of 11\.00 m/s at waypoint 1 exceeds 10 m/s"):
        check_plan(straight(11.0), DT, 11.0, PlanLimits(speed_mps=10.0))
    check_plan(straight(60.0), DT, 60.0, PlanLimits(speed_mps=80.0))
