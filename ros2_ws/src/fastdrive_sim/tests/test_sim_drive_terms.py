"""The terms of the EPDMS-style score on made runs whose value is known by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sim_runs import GOAL_M, box, braking, ego, hit, make_map, make_run, parked, steady, straight_plan

from fastdrive_sim.drive.scoring.comfort import filtered
from fastdrive_sim.drive.scoring.scores import epdms_style, neuroncap, score_run
from fastdrive_sim.drive.scoring.terms import at_fault, lane_offsets, window_mean, wrong_way_m
from fastdrive_sim.drive.scoring.track import Track
from fastdrive_sim.drive.types import Light, Other

MOVING = Other(3, "car", 7.0, 0.0, 0.0, 4.0, 2.0, 3.0)


def test_a_calm_drive_along_the_lane_has_every_term_at_one():
    plans = tuple(straight_plan(ego(2.5 * index), 0.5 * index, 5.0) for index in range(40))
    scores = score_run(make_run(steady(20.0, 5.0), plans=plans))
    terms = [scores.nc, scores.dac, scores.ddc, scores.tlc, scores.ep, scores.ttc, scores.lk, scores.hc, scores.ec]
    assert terms == [1.0] * 9
    assert scores.epdms_style == 1.0
    assert (scores.neuroncap, scores.route_completion, scores.events) == (5.0, 1.0, ())


def test_the_weights_are_those_of_the_reference():
    ones = dict.fromkeys(("nc", "dac", "ddc", "tlc", "ep", "ttc", "lk", "hc", "ec"), 1.0)
    losses = {name: round(16 * (1 - epdms_style(ones | {name: 0.0})), 6) for name in ones}
    assert losses == {"nc": 16, "dac": 16, "ddc": 16, "tlc": 16, "ep": 5, "ttc": 5, "lk": 2, "hc": 2, "ec": 2}
    assert epdms_style(ones | {"nc": 0.5, "ddc": 0.5}) == 0.25


def test_ec_is_not_rated_where_no_two_plans_are_half_a_second_apart():
    scores = score_run(make_run(steady(20.0, 5.0), plans=(straight_plan(ego(0.0), 0.0, 5.0),)))
    assert (scores.ec, scores.epdms_style) == (None, 1.0)
    ones = dict.fromkeys(("nc", "dac", "ddc", "tlc", "ep", "ttc", "lk", "hc"), 1.0)
    assert epdms_style(ones | {"hc": 0.0, "ec": None}) == pytest.approx(12 / 14)  # and not 14 / 16


# NC and NeuroNCAP


def test_a_parked_car_hit_at_5_mps_from_10_costs_nc_and_half_of_neuroncap():
    run = make_run(braking(10.0, 2.5, 2.0), map_=make_map(obstacles=(parked(30.0),)))
    run = replace(run, collisions=(hit(parked(30.0), ego(26.0, speed=5.0)),))
    scores = score_run(run)
    assert (scores.nc, scores.epdms_style, scores.collided, scores.at_fault) == (0.0, 0.0, True, True)
    assert scores.neuroncap == pytest.approx(4 * (1 - 5 / 10))
    assert scores.impact_mps == pytest.approx(5.0)


@pytest.mark.parametrize("kind, expected", [("car", 0.0), ("pedestrian", 0.0), ("barrier", 0.5), ("traffic_cone", 0.5)])
def test_street_furniture_halves_nc_and_road_users_take_it(kind, expected):
    run = make_run(steady(2.0), collisions=(hit(parked(7.0, kind=kind), ego(4.0)),))
    assert score_run(run).nc == expected


def test_a_traffic_cone_is_no_collision_for_the_rate_and_for_neuroncap():
    run = make_run(steady(2.0), collisions=(hit(parked(7.0, kind="traffic_cone"), ego(4.0)),))
    scores = score_run(run)
    assert (scores.collided, scores.neuroncap, scores.nc) == (False, 5.0, 0.5)


@pytest.mark.parametrize("impact, expected", [(0.0, 4.0), (2.5, 2.0), (5.0, 0.0), (7.0, 0.0)])
def test_neuroncap_falls_linearly_to_zero_at_the_reference_speed(impact, expected):
    contact = replace(hit(parked(7.0), ego(4.0)), impact_speed=impact)
    assert neuroncap(make_run(steady(2.0, 5.0), collisions=(contact,))) == pytest.approx(expected)


def test_neuroncap_takes_the_speed_limit_where_the_run_starts_from_rest():
    contact = replace(hit(parked(7.0), ego(4.0)), impact_speed=6.0)
    run = make_run([ego(0, speed=0.5), *steady(2.0)], collisions=(contact,))
    assert neuroncap(run) == pytest.approx(4 * (1 - 6 / 12))


def test_who_stands_is_not_at_fault():
    run = make_run(steady(1.0))
    assert not at_fault(hit(MOVING, ego(4.0, speed=0.05), is_static=False), run)
    assert at_fault(hit(MOVING, ego(4.0, speed=0.06), is_static=False), run)


def test_being_hit_from_behind_is_not_at_fault_unless_the_other_stands():
    run = make_run(steady(1.0))
    behind = replace(MOVING, x=0.0)
    assert not at_fault(hit(behind, ego(4.0, speed=1.0), is_static=False), run)
    assert at_fault(hit(replace(behind, speed=0.05), ego(4.0, speed=1.0), is_static=False), run)


def test_the_front_is_at_fault_and_the_flank_only_in_several_lanes_a_junction_or_off_the_road():
    run = make_run(steady(1.0))
    beside = replace(MOVING, x=5.0, y=1.9, yaw=-np.pi / 2, length=2.0, width=1.0)  # bumper of the ego: x = 7
    assert at_fault(hit(replace(beside, x=6.6), ego(4.0), is_static=False), run)
    assert not at_fault(hit(beside, ego(4.0), is_static=False), run)
    assert at_fault(hit(replace(beside, y=2.9), ego(4.0, y=1.0), is_static=False), run)  # two lanes
    assert at_fault(hit(replace(beside, y=0.8), ego(4.0, y=-1.1), is_static=False), run)  # off the road
    crossing = make_run(steady(1.0), map_=make_map(junctions=(box(0, 20, -10, 10),)))
    assert at_fault(hit(beside, ego(4.0), is_static=False), crossing)


# DAC


@pytest.mark.parametrize("y, expected", [(-0.9, 1.0), (-1.0, 1.0), (-1.01, 0.0)])
def test_one_corner_off_the_road_takes_dac(y, expected):
    path = steady(2.0)
    path[10] = replace(path[10], y=y)
    scores = score_run(make_run(path))
    assert scores.dac == expected
    assert scores.off_road == (expected == 0.0)


def test_the_drivable_area_is_the_union_of_its_polygons():
    map_ = replace(make_map(), drivable=(box(-50, 10, -2, 5.5), box(10, 300, -2, 5.5)))
    assert score_run(make_run(steady(5.0), map_=map_)).dac == 1.0
    gap = replace(make_map(), drivable=(box(-50, 10, -2, 5.5), box(10.6, 300, -2, 5.5)))
    assert score_run(make_run(steady(5.0), map_=gap)).dac == 0.0


# DDC


def against(seconds: float, speed: float):
    """Some seconds in the oncoming lane, between seconds in the own one."""
    before, after = steady(2.0, speed), steady(2.0, speed, x=speed * (2.1 + seconds))
    return make_run([*before, *steady(seconds - 0.1, speed, 3.5, speed * 2.1), *after])


@pytest.mark.parametrize(
    "seconds, speed, expected",
    [
        (3.0, 1.0, 1.0),  # 1 m in any second, plus the way across
        (3.0, 3.0, 0.5),  # 3 m
        (0.5, 3.0, 0.5),
        (3.0, 8.0, 0.0),
    ],
)
def test_the_way_in_the_oncoming_lane_within_a_second(seconds, speed, expected):
    run = against(seconds, speed)
    if seconds > 1:  # the step across the line has 3.5 m of its own: leave it out
        run = replace(run, steps=run.steps[21:])
    assert score_run(run).ddc == expected


@pytest.mark.parametrize("speed, expected", [(1.99, 1.0), (2.0, 0.5), (5.99, 0.5), (6.0, 0.0)])
def test_ddc_changes_at_2_and_6_metres_a_second(speed, expected):
    run = make_run(steady(5.0, speed, y=3.5))
    assert wrong_way_m(Track(run)) == pytest.approx(speed)
    assert score_run(run).ddc == expected


def test_leaving_the_route_is_the_wrong_way():
    wide = replace(make_map(), drivable=(box(-50, 300, -50, 50),))
    for y, expected in ((-3.9, 1.0), (-4.1, 0.0)):
        assert score_run(make_run(steady(5.0, 8.0, y=y), map_=wide)).ddc == expected


def test_a_run_that_ended_off_its_route_has_no_ddc():
    scores = score_run(make_run(steady(5.0), ending="off_road"))
    assert (scores.ddc, scores.dac, scores.off_road) == (0.0, 1.0, True)


def test_a_junction_is_not_the_oncoming_lane():
    run = make_run(steady(5.0, 8.0, y=3.5), map_=make_map(junctions=(box(-50, 300, -10, 10),)))
    assert score_run(run).ddc == 1.0


# TLC


def red(state: str, x: float = 20.0):
    area = ((x, -2.0), (x + 4, -2.0), (x + 4, 1.75), (x, 1.75))
    return lambda _: (Light(5, state, (area[0], area[3]), area),)


@pytest.mark.parametrize("state, expected", [("red", 0.0), ("red_yellow", 0.0), ("yellow", 1.0), ("green", 1.0)])
def test_crossing_the_line_takes_tlc_only_at_red(state, expected):
    scores = score_run(make_run(steady(6.0), lights=red(state)))
    assert (scores.tlc, scores.red_light) == (expected, expected == 0.0)


def test_stopping_before_the_line_keeps_tlc():
    path = [*braking(5.0, 1.0, 5.0), *[ego(12.5, speed=0.0)] * 20]  # the bumper stops at 12.5 + 3
    assert score_run(make_run(path, lights=red("red", 15.6))).tlc == 1.0
    assert score_run(make_run(path, lights=red("red", 15.4))).tlc == 0.0


def test_who_is_on_the_line_before_the_light_is_red_may_leave():
    lights = lambda t: red("yellow" if t < 3.7 else "red")(t)  # noqa: E731  the bumper is at the line at 3.4 s
    assert score_run(make_run(steady(6.0), lights=lights)).tlc == 1.0
    lights = lambda t: red("yellow" if t < 3.2 else "red")(t)  # noqa: E731
    assert score_run(make_run(steady(6.0), lights=lights)).tlc == 0.0


# EP and route completion


@pytest.mark.parametrize(
    "expert_m, seconds, expected",
    [(40.0, 8.0, 0.5), (20.0, 4.0, 1.0), (10.0, 8.0, 1.0), (5.0, 8.0, 1.0), (5.1, 8.0, 1.0)],
)
def test_progress_is_compared_with_the_experts(expert_m, seconds, expected):
    expert = np.linspace(0, expert_m, round(seconds / 0.1) + 1)
    run = make_run(steady(4.0, 5.0), expert_progress_m=expert)
    assert score_run(run).ep == pytest.approx(expected)


def test_a_short_way_of_the_expert_is_no_measure():
    expert = np.linspace(0, 5.0, 41)
    assert score_run(make_run([ego(0, speed=0.0)] * 41, expert_progress_m=expert)).ep == 1.0
    expert = np.linspace(0, 5.1, 41)
    assert score_run(make_run([ego(0, speed=0.0)] * 41, expert_progress_m=expert)).ep == 0.0


def test_progress_counts_until_the_experts_run_has_ended():
    expert = np.linspace(0, 40, 41)
    assert score_run(make_run(steady(20.0, 5.0), expert_progress_m=expert)).ep == pytest.approx(0.5)


def test_route_completion_is_the_way_over_that_to_the_goal():
    assert score_run(make_run(steady(5.0, 5.0))).route_completion == pytest.approx(25 / GOAL_M)
    assert score_run(make_run(steady(25.0, 5.0))).route_completion == 1.0


# LK


def off_lane(seconds: float, offset: float, junctions=()):
    """Beside the lane's middle for so many seconds of an 8 s drive, from 1 s on."""
    path = steady(8.0)
    first, last = 10, 10 + round(seconds / 0.1)
    path[first : last + 1] = [replace(each, y=offset) for each in path[first : last + 1]]
    return make_run(path, map_=make_map(junctions))


@pytest.mark.parametrize(
    "seconds, offset, holds",
    [(2.1, 0.6, False), (2.0, 0.6, False), (1.9, 0.6, True), (2.1, -0.6, False), (3.0, 0.5, True), (3.0, 0.51, False)],
)
def test_two_seconds_on_end_beside_the_middle_take_lk(seconds, offset, holds):
    scores = score_run(off_lane(seconds, offset))
    assert (scores.lk == 1.0) == holds


def test_lk_counts_the_windows_in_which_it_was_lost():
    assert score_run(off_lane(2.0, 0.6)).lk == pytest.approx(2 / 9)  # at 3.0 s: not in the last two


def test_a_junction_interrupts_the_time_beside_the_middle():
    assert score_run(off_lane(2.1, 0.6, (box(10, 11.2, -10, 10),))).lk == 1.0
    assert score_run(off_lane(2.1, 0.6, (box(40, 41, -10, 10),))).lk < 1.0


def test_the_offset_is_that_of_the_vehicles_middle():
    run = make_run([ego(5.0, 0.0, yaw=0.3)] * 5)
    assert lane_offsets(Track(run)) == pytest.approx(np.sin(0.3) * 1.0)


# HC


@pytest.mark.parametrize("derivative", [0, 1, 2])
@pytest.mark.parametrize("steps", [4, 5, 15, 40])
def test_a_filter_of_order_3_keeps_a_cubic_and_gives_its_derivatives_up_to_the_ends(steps, derivative):
    cubic = np.polynomial.Polynomial([1.0, -2.0, 3.0, 0.5])
    times = 0.1 * np.arange(steps)
    found = filtered(cubic(times), 15, 3, derivative)
    if steps == 4:  # the largest odd window has 3 steps, which no cubic is fitted to
        assert np.array_equal(found, np.zeros(4) if derivative else cubic(times))
    else:
        assert np.allclose(found, cubic.deriv(derivative)(times), atol=1e-6)


def test_a_filter_of_order_2_weighs_an_impulse_as_savitzky_and_golay_do():
    impulse = np.zeros(9)
    impulse[4] = 35.0
    assert np.allclose(filtered(impulse, 5), [3.0, -5.0, -3.0, 12.0, 17.0, 12.0, -3.0, -5.0, 3.0])


# windows


def test_windows_are_of_4_seconds_every_half_second():
    marked = np.zeros(81, bool)  # 8 s: starts 0, 0.5 ... 4
    assert window_mean(marked, 4.0, 0.5) == 1.0
    marked[0] = True
    assert window_mean(marked, 4.0, 0.5) == pytest.approx(8 / 9)
    marked[40] = True  # in all of them
    assert window_mean(marked, 4.0, 0.5) == 0.0
    assert window_mean(np.zeros(5, bool), 4.0, 0.5) == 1.0
    assert window_mean(np.array([False, True]), 4.0, 0.5) == 0.0


# failures


def test_a_run_that_failed_scores_nothing_and_says_why():
    failed = replace(make_run(steady(20.0)), ending="failed", reason="the node ended")
    scores = score_run(failed)
    assert (scores.epdms_style, scores.neuroncap, scores.hd_score, scores.failed) == (0.0, 0.0, 0.0, True)
    assert scores.events[-1].detail == "the node ended"
    empty = score_run(replace(failed, steps=()))
    assert (empty.epdms_style, empty.neuroncap, empty.route_completion, empty.failed) == (0.0, 0.0, 0.0, True)
