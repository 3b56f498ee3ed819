"""The world, its traffic and its expert: what a driver would be asked to account for."""

from __future__ import annotations

import math
from itertools import count

import numpy as np
import pytest

from fastdrive_sim.expert import FRONT_M, Driver, idm
from fastdrive_sim.roads import CLEARANCE_M, LOCAL_M, STEP_M, build_route
from fastdrive_sim.sim import Simulation
from fastdrive_sim.traffic import Pedestrian, TrafficLight
from fastdrive_sim.types import KINDS, EgoPose, Label
from fastdrive_sim.world import build_world

SEEDS = range(6)


@pytest.fixture(scope="module")
def drives() -> list[tuple[Simulation, list]]:
    found = []
    for seed in SEEDS:
        simulation = Simulation(seed, seconds=20)
        found.append((simulation, list(simulation.run())))
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_a_route_does_not_meet_itself(seed: int) -> None:
    route = build_route(np.random.default_rng(seed), 400)
    xy, s = route.xy[::8], np.arange(len(route.xy))[::8] * STEP_M
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    apart = np.abs(s[:, None] - s[None]) > LOCAL_M + 10
    assert distance[apart].min() > CLEARANCE_M - 6  # easing moves the line by a few metres


def test_a_route_is_as_long_as_asked_and_has_junctions() -> None:
    route = build_route(np.random.default_rng(1), 500)
    assert route.length >= 500
    assert {junction.turn for junction in route.junctions} <= {"left", "straight", "right"}
    assert len(route.junctions) >= 2


def test_a_left_turn_leaves_the_junction_a_quarter_turn_to_the_left() -> None:
    for seed in range(20):
        route = build_route(np.random.default_rng(seed), 500)
        for junction in route.junctions:
            change = route.at(junction.s_out + 4)[2] - route.at(junction.s_in - 4)[2]
            wanted = {"left": math.pi / 2, "straight": 0.0, "right": -math.pi / 2}[junction.turn]
            assert change == pytest.approx(wanted, abs=0.12)


def test_project_inverts_at() -> None:
    route = build_route(np.random.default_rng(3), 300)
    x, y, _ = route.at(123.0, 0.8)
    s, offset = route.project(x, y, 120.0)
    assert s == pytest.approx(123.0, abs=0.3)
    assert offset == pytest.approx(0.8, abs=0.05)


def test_the_idm_keeps_its_speed_on_a_free_road_and_brakes_for_a_wall() -> None:
    assert idm(10.0, 10.0, None, 0.0) == pytest.approx(0.0)
    assert idm(5.0, 10.0, None, 0.0) > 1.0
    assert idm(10.0, 10.0, 8.0, 10.0) < -4.0


def test_the_driver_comes_back_to_the_middle_of_its_lane() -> None:
    route = build_route(np.random.default_rng(2), 400)
    x, y, yaw = route.at(40.0, 1.0)
    driver = Driver(route, EgoPose(x, y, yaw + 0.08, 7.0), 8.0, s=40.0)
    for _ in range(200):
        driver.step([], 0.05)
    _, offset = route.project(driver.pose.x, driver.pose.y, driver.s)
    assert abs(offset) < 0.4


def test_the_driver_stops_behind_a_standing_obstacle() -> None:
    route = build_route(np.random.default_rng(2), 400)
    x, y, yaw = route.at(40.0)
    driver = Driver(route, EgoPose(x, y, yaw, 8.0), 9.0, s=40.0)
    for _ in range(400):
        driver.step([(100.0 - driver.s - FRONT_M, 0.0)], 0.05)
    assert driver.pose.speed < 0.1
    assert 0.5 < 100.0 - driver.s - FRONT_M < 8


def test_the_expert_stays_in_its_lane_and_hits_nobody(drives) -> None:
    for simulation, snapshots in drives:
        near_s = 40.0
        for snapshot in snapshots:
            ego = snapshot.ego
            near_s, offset = simulation.route.project(ego.x, ego.y, near_s)
            assert abs(offset) < 1.6
            nose = ego.x + (FRONT_M - 0.3) * math.cos(ego.yaw), ego.y + (FRONT_M - 0.3) * math.sin(ego.yaw)
            for thing in snapshot.things:
                if thing.kind == "pedestrian":
                    assert math.hypot(thing.x - nose[0], thing.y - nose[1]) > 0.4


def test_the_expert_does_not_pass_a_red_light(drives) -> None:
    """The front bumper is never more than a metre past a stop line while its signal is red."""
    gaps = [
        snapshot.ahead["light_gap_m"]
        for _, snapshots in drives
        for snapshot in snapshots
        if snapshot.ahead["light"] == "red"
    ]
    assert len(gaps) > 100
    assert min(gaps) > -1.0


def test_a_drive_is_a_function_of_its_seed() -> None:
    poses = [[s.ego for s in Simulation(seed, seconds=4).run(hz=2)] for seed in (7, 7, 8)]
    assert poses[0] == poses[1]
    assert poses[0] != poses[2]


def test_snapshots_come_at_the_rate_asked_for() -> None:
    times = [snapshot.time_s for snapshot in Simulation(1, seconds=3).run(hz=2)]
    assert times == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5, 3])


def test_a_rate_that_does_not_divide_the_physics_is_refused() -> None:
    with pytest.raises(ValueError, match="hz 3"):
        next(Simulation(1, seconds=3).run(hz=3))


def test_signals_announce_green_and_end_with_yellow() -> None:
    route = build_route(np.random.default_rng(1), 500)
    light = TrafficLight(route.junctions[0], (1, 2), red_first=False, red_s=3.0, green_s=2.0)
    light.step(route.junctions[0].s_stop - 20, 0.0)
    seen = [light.state]
    for _ in range(200):
        light.step(0.0, 0.05)
        if light.state != seen[-1]:
            seen.append(light.state)
    assert seen == ["green", "yellow", "red", "red_yellow", "green"]


def test_a_pedestrian_crosses_only_once_the_vehicle_is_near() -> None:
    walker = Pedestrian(1, (0, 0, 0), s=100.0, offset=-2.9, across=1.5, trigger_m=15.0)
    walker.step(80.0, 0.5)
    assert not walker.blocks()
    walker.step(90.0, 0.5)
    assert walker.blocks()
    for _ in range(20):
        walker.step(90.0, 0.5)
    assert not walker.blocks()


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_that_stands_is_on_the_road(seed: int) -> None:
    rng = np.random.default_rng(seed)
    route = build_route(rng, 300)
    world = build_world(seed, rng, route, count(1))
    lane = route.xy[::4]
    for thing in world.things:
        assert thing.kind in KINDS
        assert np.linalg.norm(lane - [thing.x, thing.y], axis=1).min() > 1.9


def test_a_world_has_roads_marks_pavements_and_unique_instances() -> None:
    simulation = Simulation(5, seconds=10)
    labels = {surface.label for surface in simulation.world.surfaces}
    assert labels == {Label.ROAD, Label.LANE_MARK, Label.SIDEWALK}
    snapshot = next(simulation.run())
    instances = [thing.instance for thing in (*simulation.world.things, *snapshot.things)]
    assert len(instances) == len(set(instances))
    assert min(instances) >= 1
