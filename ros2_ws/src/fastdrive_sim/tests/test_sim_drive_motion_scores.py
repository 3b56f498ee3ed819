"""TTC, comfort, HD-Score and what is said of plans, on made runs whose value is known by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sim_runs import box, braking, ego, make_map, make_run, parked, steady, straight_plan

from fastdrive_sim.drive.scoring.closeness import close_to
from fastdrive_sim.drive.scoring.comfort import (
    PAIR_LIMITS,
    PlanMotion,
    breaches,
    plan_comfort,
    plan_pairs,
    plans_agree,
    uncomfortable_steps,
)
from fastdrive_sim.drive.scoring.plans import PlanScore, mean_plan_score, plan_deviation, plan_scores
from fastdrive_sim.drive.scoring.polygons import inside, overlap, rectangles
from fastdrive_sim.drive.scoring.scores import score_run
from fastdrive_sim.drive.scoring.track import Track
from fastdrive_sim.drive.types import EgoStep, Other, PlanStep


def motion(plan: PlanStep) -> PlanMotion:
    found = PlanMotion.of(plan)
    assert found is not None
    return found


def judged(plan: PlanStep, track: Track) -> PlanScore:
    (found,) = plan_scores([plan], track)
    return found


# polygons


def test_edges_and_corners_are_inside_and_a_hollow_is_not():
    hollow = np.array([[0, 0], [4, 0], [4, 4], [2, 1], [0, 4]])
    points = np.array(
        [[0.0, 0.0], [2.0, 0.0], [4.0, 2.0], [2.0, 1.0], [2.0, 2.0], [0.5, 2.0], [-0.01, 1.0], [5.0, 0.0]]
    )
    assert inside(points, hollow).tolist() == [True, True, True, True, False, True, False, False]


@pytest.mark.parametrize(
    "x, y, yaw, expected", [(4.0, 0, 0, True), (4.01, 0, 0, False), (3.4, 2.4, 0.785, True), (3.45, 2.4, 0.785, False)]
)
def test_rectangles_that_touch_overlap(x, y, yaw, expected):
    first, second = rectangles(0.0, 0.0, 0.0, 4.0, 2.0), rectangles(x, y, yaw, 4.0, 2.0)
    assert bool(overlap(first, second)) == expected
    assert bool(overlap(second, first)) == expected


def test_a_line_overlaps_only_what_it_reaches():
    line = np.array([[0.0, 0.0], [2.0, 0.0]])
    assert overlap(line, box(2.0, 3.0, -1, 1))
    assert not overlap(line, box(2.1, 3.0, -1, 1))
    assert not overlap(line, box(0.0, 3.0, 0.1, 1))


# TTC: the bumper is 3 m ahead of the position, a parked car's rear 2 m before its middle


@pytest.mark.parametrize("gap, expected", [(4.4, False), (4.6, True)])
def test_a_parked_car_ahead_is_close_within_9_tenths_of_a_second(gap, expected):
    run = make_run([ego(0.0, speed=5.0)] * 3, map_=make_map(obstacles=(parked(3.0 + gap + 2.0),)))
    assert (not (close_to(Track(run)) >= 0).any()) == expected
    assert score_run(run).ttc == float(expected)


@pytest.mark.parametrize("speed, expected", [(4.9e-3, True), (5e-3, False)])
def test_a_vehicle_that_stands_is_not_judged_by_ttc(speed, expected):
    run = make_run([ego(0.0, speed=speed)] * 3, map_=make_map(obstacles=(parked(5.004),)))
    assert (not (close_to(Track(run)) >= 0).any()) == expected


def test_ttc_asks_where_the_others_will_be():
    leaves = lambda t: (Other(4, "car", 8.0 + 6.0 * t, 0.0, 0.0, 4.0, 2.0, 6.0),)  # noqa: E731
    assert score_run(make_run(steady(3.0, 5.0), others=leaves)).ttc == 1.0
    stops = lambda t: (Other(4, "car", 8.0, 0.0, 0.0, 4.0, 2.0, 6.0),)  # noqa: E731
    assert score_run(make_run([ego(0.0, speed=5.0)] * 31, others=stops)).ttc == 0.0


def test_the_event_says_who_was_close():
    run = make_run([ego(0.0, speed=5.0)] * 3, map_=make_map(obstacles=(parked(8.0, kind="barrier"),)))
    assert [(each.kind, each.detail) for each in score_run(run).events] == [("close", "barrier")]


def test_after_the_end_of_the_run_the_others_go_on_at_their_velocity():
    towards = lambda t: (Other(4, "car", 12.0, 0.0, np.pi, 4.0, 2.0, 5.0),)  # noqa: E731
    assert (close_to(Track(make_run([ego(0.0, speed=5.0)], others=towards))) >= 0).tolist() == [True]
    away = lambda t: (Other(4, "car", 8.0, 0.0, 0.0, 4.0, 2.0, 5.0),)  # noqa: E731
    assert (close_to(Track(make_run([ego(0.0, speed=5.0)], others=away))) >= 0).tolist() == [False]


def beside(x: float, y: float, junction: bool = False, ego_y: float = 0.0):
    """Somebody who comes from the left; at 0.9 s in touch with the vehicle."""
    other = lambda t: (Other(4, "car", x, y - 2.0 * t, -np.pi / 2, 4.0, 2.0, 2.0),)  # noqa: E731
    boxes = (box(-50, 50, -10, 10),) if junction else ()
    return make_run([ego(0.0, ego_y, speed=0.1)] * 20, others=other, map_=make_map(boxes))


def test_what_is_beside_counts_only_in_several_lanes_or_a_junction():
    assert score_run(beside(1.0, 4.4)).ttc == 1.0
    assert score_run(beside(1.0, 4.4, junction=True)).ttc == 0.0
    assert score_run(beside(1.0, 5.4, ego_y=1.0)).ttc == 0.0  # two lanes


def test_what_is_behind_never_counts():
    behind = lambda t: (Other(4, "car", -4.0 + 5.0 * t, 0.0, 0.0, 4.0, 2.0, 5.0),)  # noqa: E731
    run = make_run([ego(0.0, speed=0.1)] * 3, others=behind, map_=make_map((box(-50, 50, -10, 10),)))
    assert score_run(run).ttc == 1.0


def test_trees_beside_the_road_do_not_count_and_barriers_do():
    for kind, expected in (("tree", 1.0), ("building", 1.0), ("barrier", 0.0), ("traffic_cone", 0.0), ("car", 0.0)):
        run = make_run([ego(0.0, speed=5.0)] * 3, map_=make_map(obstacles=(parked(8.0, kind=kind),)))
        assert score_run(run).ttc == expected, kind


# HC


def turning(yaw_rate: float, speed: float = 5.0, seconds: float = 6.0) -> list[EgoStep]:
    times = 0.1 * np.arange(round(seconds / 0.1) + 1)
    return [EgoStep(speed * t, 0.0, yaw_rate * t, speed, 0.0, yaw_rate, 0.0) for t in times]


@pytest.mark.parametrize(
    "decel, expected", [(6.0, 0.0), (4.06, 0.0), (4.05, 1.0), (2.0, 1.0), (-2.40, 1.0), (-2.41, 0.0)]
)
def test_hard_braking_is_not_comfortable(decel, expected):
    assert score_run(make_run(braking(40.0, decel, 4.0))).hc == expected


@pytest.mark.parametrize("yaw_rate, expected", [(0.94, 1.0), (0.96, 0.0), (-0.96, 0.0)])
def test_a_high_yaw_rate_is_not_comfortable(yaw_rate, expected):
    assert score_run(make_run(turning(yaw_rate, 1.0))).hc == expected


@pytest.mark.parametrize("lateral, expected", [(4.88, 1.0), (4.90, 0.0)])
def test_a_high_lateral_acceleration_is_not_comfortable(lateral, expected):
    assert score_run(make_run(turning(lateral / 20.0, 20.0))).hc == expected


def test_each_limit_of_comfort_is_named_and_belongs_to_the_comfortable():
    at = {"accel": -4.05, "lateral": 4.89, "jerk": 8.37, "along_jerk": -4.13, "yaw_rate": 0.95, "yaw_accel": -1.93}
    names = {
        "accel": "acceleration", "lateral": "lateral acceleration", "jerk": "jerk", "along_jerk": "longitudinal jerk",
        "yaw_rate": "yaw rate", "yaw_accel": "yaw acceleration",
    }  # fmt: skip
    values = {name: np.array([value]) for name, value in at.items()}
    assert not any(each.any() for each in breaches(**values).values())
    for name, value in values.items():
        found = breaches(**(values | {name: value * 1.001}))
        assert [each for each, broken in found.items() if broken.any()] == [names[name]]
    assert breaches(**(values | {"accel": np.array([2.41])}))["acceleration"].any()


def test_a_ramp_of_acceleration_is_longitudinal_jerk():
    def ramp(jerk: float) -> list[EgoStep]:
        return [EgoStep(0, 0, 0, 5.0, -2.0 + jerk * t, 0.0, 0.0) for t in 0.1 * np.arange(11)]

    over = uncomfortable_steps(Track(make_run(ramp(4.2))))
    assert over["longitudinal jerk"].all()
    assert not uncomfortable_steps(Track(make_run(ramp(4.0))))["longitudinal jerk"].any()


def test_a_heading_that_passes_pi_is_no_turn():
    path = [EgoStep(-5.0 * t, 0.0, float(np.arctan2(np.sin(np.pi + 0.1 * t), np.cos(np.pi + 0.1 * t))), 5.0, 0, 0.1, 0)
            for t in 0.1 * np.arange(-20, 21)]  # fmt: skip
    assert not any(each.any() for each in uncomfortable_steps(Track(make_run(path))).values())


# EC


def curve(at: EgoStep, time_s: float, accel: float = 0.0, turn: float = 0.0) -> PlanStep:
    """A plan with a constant acceleration, or (at a small angle) a constant yaw rate."""
    times = 0.5 * np.arange(1, 7)
    xy = np.stack([at.x + at.speed * times + accel * times**2 / 2, at.y + at.speed * turn * times**2 / 2], axis=1)
    return PlanStep(time_s, "planned", "", time_s, xy, time_s + times, at)


def test_a_plans_motion_is_read_from_its_waypoints():
    values = motion(curve(ego(3.0, speed=8.0), 1.0, accel=1.5)).at(np.array([1.0, 1.1, 2.0, 4.0]))
    assert values["speed"] == pytest.approx([8.0, 8.15, 9.5, 12.5])
    assert values["accel"] == pytest.approx(1.5)
    assert motion(curve(ego(3.0, speed=8.0), 1.0, turn=0.05)).at(np.array([1.0]))["yaw_rate"][0] == pytest.approx(0.05)


@pytest.mark.parametrize("change, expected", [(0.0, True), (0.70, True), (0.71, False), (-0.71, False)])
def test_two_plans_agree_up_to_a_difference_of_7_tenths_in_acceleration(change, expected):
    assert PAIR_LIMITS == {"accel": 0.7, "jerk": 0.5, "yaw_rate": 0.1, "yaw_accel": 0.1}
    first = curve(ego(0.0, speed=8.0), 0.0, accel=0.2)
    now = ego(8.0 * 0.5 + 0.1 * 0.25, speed=8.1)
    assert plans_agree(first, curve(now, 0.5, accel=0.2 + change)) is expected


@pytest.mark.parametrize("change, expected", [(0.09, True), (0.11, False)])
def test_two_plans_agree_up_to_a_difference_of_a_tenth_in_yaw_rate(change, expected):
    first, second = curve(ego(0.0, speed=20.0), 0.0), curve(ego(10.0, speed=20.0), 0.5, turn=change)
    both = [motion(plan).at(np.array([0.5, 0.6])) for plan in (first, second)]
    assert both[1]["yaw_rate"][0] == pytest.approx(change, rel=0.02)
    short = [replace(plan, xy=plan.xy[:2], times_s=plan.times_s[:2]) for plan in (first, second)]
    assert plans_agree(*short) is expected


def test_pairs_are_half_a_second_apart_whatever_the_rate():
    at = [straight_plan(ego(0.5 * i), 0.1 * i, 5.0) for i in range(11)]  # 10 Hz
    assert [(round(a.time_s, 1), round(b.time_s, 1)) for a, b in plan_pairs(at)] == [
        (round(0.1 * i, 1), round(0.1 * i + 0.5, 1)) for i in range(6)
    ]
    assert plan_pairs([at[0], replace(at[5], outcome="refused"), at[10]]) == []


def test_plans_that_stop_and_go_lose_ec():
    go, stop = curve(ego(0.0, speed=8.0), 0.0), curve(ego(4.0, speed=8.0), 0.5, accel=-2.0)
    again = curve(ego(8.0, speed=8.0), 1.0)
    later = curve(ego(12.0, speed=8.0), 1.5)
    assert plan_comfort([go, stop, again, later]) == pytest.approx(1 / 3)
    assert plan_comfort([go]) is None


# HD-Score and plan deviation


def test_a_free_plan_has_the_full_hd_score_times_route_completion():
    run = make_run(steady(10.0, 5.0), plans=(straight_plan(ego(0.0), 0.0, 5.0),))
    assert mean_plan_score(Track(run)) == 1.0
    assert score_run(run).hd_score == pytest.approx(0.5)


def test_a_plan_into_a_parked_car_or_off_the_road_counts_nothing():
    # the bumper ends at 15 + 3; with 1 s more at 23
    for x, expected in ((19.9, 0.0), (20.1, 2 / 7), (24.9, 2 / 7), (25.1, 1.0)):
        run = make_run(steady(3.0, 5.0), map_=make_map(obstacles=(parked(x),)))
        assert judged(straight_plan(ego(0.0), 0.0, 5.0), Track(run)).score == pytest.approx(expected), x
    run = make_run(steady(3.0, 5.0))
    assert judged(straight_plan(ego(0.0, -1.3), 0.0, 5.0), Track(run)).drivable == 0.0
    assert judged(straight_plan(ego(0.0, -0.9), 0.0, 5.0), Track(run)).drivable == 1.0


def test_a_plan_is_judged_by_where_the_others_are_at_its_times():
    crosses = lambda t: (Other(4, "pedestrian", 10.0, -6.0 + 2.0 * t, np.pi / 2, 0.4, 0.6, 2.0),)  # noqa: E731
    run = make_run(steady(5.0, 5.0), others=crosses)  # at x = 10 at 3 s, where the plan is past it
    assert judged(straight_plan(ego(0.0), 0.0, 5.0), Track(run)).collision == 1.0
    assert judged(straight_plan(ego(0.0), 0.0, 3.0), Track(run)).collision == 0.0


def test_plan_deviation_weights_near_waypoints_most():
    first = straight_plan(ego(0.0), 0.0, 5.0)
    same = straight_plan(ego(2.5), 0.5, 5.0)
    assert plan_deviation([first, same]) == pytest.approx(0.0)
    aside = straight_plan(ego(2.5), 0.5, 5.0, y=0.4)
    assert plan_deviation([first, aside]) == pytest.approx(0.4)
    bent = replace(same, xy=same.xy + np.array([[0, 0], [0, 0], [0, 0], [0, 0], [0, 1.0], [0, 9.0]]))
    weights = np.exp(-0.5 * np.arange(5))  # the last waypoint is after the older plan's end
    assert plan_deviation([first, bent]) == pytest.approx(weights[4] / weights.sum())
    assert plan_deviation([first]) is None


def test_ticks_are_counted_by_what_became_of_them():
    plan = straight_plan(ego(0.0), 0.0, 5.0)
    outcomes = ["planned"] * 2 + ["refused"] + ["late"] * 2 + ["superseded"] * 3
    plans = tuple(
        replace(plan, time_s=0.05 * number, outcome=outcome, kept_tokens=20, total_tokens=80)
        for number, outcome in enumerate(outcomes)
    )
    run = make_run(steady(2.0), plans=plans)
    steps = [replace(step, plan=0, plan_age_s=0.1 * i) if i > 4 else step for i, step in enumerate(run.steps)]
    scores = score_run(replace(run, steps=tuple(steps)))
    assert (scores.ticks, scores.refused, scores.late, scores.superseded, scores.kept) == (8, 0.125, 0.25, 0.375, 0.25)
    assert scores.plan_age_s == pytest.approx(np.mean(0.1 * np.arange(5, 21)))
    assert scores.max_plan_age_s == pytest.approx(2.0)
