"""Other road users of the closed loop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from fastdrive_sim.drive.agents import Pace, RoadVehicle, Shift, Stop, Walker, project
from fastdrive_sim.drive.overtaking import Overtaking
from fastdrive_sim.drive.paths import crossing_path, merging_path, oncoming_path, opposite_path, path_of
from fastdrive_sim.roads import LANE_M, Crossing, Straight, route_of

ROAD = route_of([Straight(400.0)])
GREY = (90, 90, 90)
DT = 0.01


def car(s: float, speed: float, instance: int = 1, limit: float = 12.0, **more) -> RoadVehicle:
    return RoadVehicle(instance, "car", GREY, more.pop("path", ROAD), s, speed, limit, **more)


def run(vehicles: Sequence[RoadVehicle], seconds: float, stops: Sequence[Stop] = ()) -> list[list[float]]:
    """Drives all of them; returns the smallest distance between the middles of the first two, and the offsets."""
    found = []
    for step in range(round(seconds / DT)):
        if step % 10 == 0:
            others = [vehicle.other() for vehicle in vehicles]
            for vehicle in vehicles:
                vehicle.decide(step * DT, others, stops)
            found.append([vehicle.offset for vehicle in vehicles])
        for vehicle in vehicles:
            vehicle.step(step * DT, DT)
    return found


def test_a_follower_keeps_its_distance_to_a_leader_that_stops():
    leader = car(60.0, 10.0, 2, paces=(Pace(0.0, 10.0), Pace(1.0, 0.0, 6.0)))
    follower = car(35.0, 10.0)
    run([follower, leader], 12.0)
    assert leader.speed == pytest.approx(0.0, abs=1e-6) and follower.speed < 0.2
    assert 1.5 < leader.s - follower.s - 4.5 < 5.0


def test_a_pace_says_how_hard_its_driver_brakes():
    vehicle = car(20.0, 10.0, paces=(Pace(0.0, 10.0), Pace(1.0, 0.0, 4.0)))
    run([vehicle], 1.0)
    before = vehicle.s
    run([vehicle], 8.0)  # time begins anew: one second at its speed, then 10^2 / (2 * 4) m of braking
    assert vehicle.s - before == pytest.approx(10.0 + 12.5, abs=1.0)


def test_a_vehicle_stops_at_a_closed_line_and_passes_an_open_one():
    waiting, passing = car(20.0, 10.0), car(20.0, 10.0, 2)
    run([waiting], 12.0, [Stop(80.0, closed=True)])
    run([passing], 12.0, [Stop(80.0, closed=False)])
    assert waiting.speed < 0.2 and 76.0 < waiting.s + 2.25 < 80.5
    assert passing.s > 110.0


def test_a_shift_takes_its_time_and_ends_at_its_offset():
    vehicle = car(20.0, 8.0, shifts=(Shift(1.0, LANE_M, 2.0),))
    offsets = np.array(run([vehicle], 4.0))[:, 0]
    assert offsets[10] == 0.0 and 0.3 < offsets[20] < LANE_M - 0.3 and offsets[31] == pytest.approx(LANE_M)
    assert np.diff(offsets).min() >= 0


def test_a_pedestrian_sets_off_once_and_keeps_walking():
    walker = Walker(1, GREY, (50.0, -3.0), (50.0, 7.0), pace=1.5, trigger_s=3.0, at_s=50.0)
    walker.step(10.0, 10.0, DT)
    assert not walker.walking and walker.speed == 0.0
    walker.step(25.0, 10.0, DT)
    for _ in range(400):
        walker.step(26.0, 0.0, DT)  # the ego vehicle has stopped
    assert walker.pose()[1] == pytest.approx(-3.0 + 1.5 * 4.01)
    for _ in range(400):
        walker.step(26.0, 0.0, DT)
    assert walker.pose()[1] == 7.0 and walker.speed == 0.0


def overtaking_scene(oncoming_s: float | None) -> tuple[list[RoadVehicle], Overtaking]:
    decisions = Overtaking(14.0, 8.0, gap_m=5.0)
    fast, slow = car(40.0, 6.0, overtaking=decisions), car(58.0, 6.0, 2, limit=6.0)
    others = [] if oncoming_s is None else [car(5.0, 8.0, 3, path=oncoming_path(ROAD, oncoming_s, 2.0))]
    return [fast, slow, *others], decisions


def test_a_slower_vehicle_is_overtaken_and_the_gap_kept():
    vehicles, decisions = overtaking_scene(None)
    offsets = np.array(run(vehicles, 16.0))[:, 0]
    fast, slow = vehicles
    assert decisions.phase == "done" and offsets.max() == pytest.approx(LANE_M)
    assert fast.offset == pytest.approx(0.0) and fast.s - slow.s - 4.5 > 4.0


def test_an_oncoming_vehicle_is_waited_for():
    free, blocked = (run(overtaking_scene(s)[0], 16.0) for s in (None, 150.0))
    begins = [np.flatnonzero(np.array(offsets)[:, 0] > 0.1)[0] for offsets in (free, blocked)]
    assert begins[1] > begins[0] + 20  # tenths of a second


def test_paths_over_a_junction_end_where_they_should():
    route = route_of([Straight(60.0), Crossing("straight"), Straight(120.0)])
    junction = route.junctions[0]
    for path in (opposite_path(route, junction), crossing_path(junction, True), merging_path(route, junction)):
        assert np.abs(np.diff(np.linalg.norm(np.diff(path.xy, axis=0), axis=1))).max() < 0.1
        assert np.abs(path.curvature).max() < 0.35
    ends = np.array([opposite_path(route, junction).xy[-1], merging_path(route, junction).xy[-1]])
    _, left, _ = project(route, 100.0, 150.0, ends, behind_m=100.0)
    assert left.tolist() == pytest.approx([LANE_M, 0.0], abs=0.1)


def test_a_path_through_corners_is_sampled_evenly():
    path = path_of([(0.0, 0.0), (10.0, 0.0), (10.0, 5.0)])
    assert path.length == pytest.approx(14.5)
    assert path.at(12.0)[:2] == pytest.approx((10.0, 2.0))
