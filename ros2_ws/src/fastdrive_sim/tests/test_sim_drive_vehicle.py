"""The vehicle of the closed loop and the controller that follows plans."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastdrive_node.types import Vehicle
from fastdrive_sim.drive.tracking import Reference, Tracker
from fastdrive_sim.drive.types import EgoStep
from fastdrive_sim.drive.vehicle import SUBSTEP_S, Actuators, Control, VehicleModel

TIMES = 0.5 * np.arange(1, 7)


def still(speed: float = 0.0) -> EgoStep:
    return EgoStep(0.0, 0.0, 0.0, speed, 0.0, 0.0, 0.0)


def follow(xy: np.ndarray, start: EgoStep, seconds: float) -> VehicleModel:
    """Drive along one plan from time 0."""
    model, tracker = VehicleModel(start), Tracker()
    tracker.reference = Reference.of_plan(start, 0.0, xy, TIMES)
    for step in range(round(seconds / SUBSTEP_S)):
        model.step(tracker.control(model.state, step * SUBSTEP_S))
    return model


def test_nothing_happens_before_the_dead_time_is_over():
    model = VehicleModel(still(5.0), actuators=Actuators(delay_s=0.1))
    for _ in range(10):
        model.step(Control(accel=-5.0))
    assert model.state.speed == 5.0
    for _ in range(30):
        model.step(Control(accel=-5.0))
    assert model.state.speed < 4.5


def test_a_steering_angle_gives_the_radius_of_the_wheel_base():
    model = VehicleModel(still(4.0))
    for _ in range(200):
        model.step(Control(steer=0.2))
    radius = Vehicle().wheel_base_m / math.tan(0.2)
    assert model.state.speed / model.state.yaw_rate == pytest.approx(radius, rel=1e-6)


def test_the_actuators_have_limits():
    limits = Actuators()
    model = VehicleModel(still(20.0))
    for _ in range(100):
        before = model.state
        state = model.step(Control(accel=-50.0, steer=3.0))
        assert -limits.max_brake <= state.accel
        assert abs(state.steer - before.steer) <= limits.max_steer_rate * SUBSTEP_S + 1e-9
    assert model.state.accel == -limits.max_brake and model.state.steer == limits.max_steer_rad


def test_a_braked_vehicle_stands_and_does_not_go_back():
    model = VehicleModel(still(2.0))
    for _ in range(300):
        model.step(Control(accel=-4.0))
    assert (model.state.speed, model.state.accel) == (0.0, 0.0)


def test_a_plan_is_followed_at_its_own_times():
    speed = 8.0
    model = follow(np.stack([speed * TIMES, 0 * TIMES], 1), still(speed), 2.0)
    assert model.state.x == pytest.approx(16.0, abs=0.2)
    assert model.state.speed == pytest.approx(speed, abs=0.1)


def test_waypoints_rounded_to_a_decimetre_do_not_make_the_vehicle_jerk():
    speeds, model, tracker = [], VehicleModel(still(5.04)), Tracker()
    xy = np.round(np.stack([5.04 * TIMES, 0 * TIMES], 1), 1)
    tracker.reference = Reference.of_plan(still(5.04), 0.0, xy, TIMES)
    for step in range(200):
        speeds.append(model.step(tracker.control(model.state, step * SUBSTEP_S)).accel)
    assert max(map(abs, speeds)) < 0.3


def test_an_arc_is_followed_to_the_side():
    radius, speed = 20.0, 5.0
    angle = speed * TIMES / radius
    xy = np.stack([radius * np.sin(angle), radius * (1 - np.cos(angle))], 1)
    state = follow(xy, still(speed), 2.5).state
    assert math.hypot(state.x, state.y - radius) == pytest.approx(radius, abs=0.4)


def test_a_plan_that_stays_where_it_is_holds_the_vehicle():
    state = follow(np.full((6, 2), 0.05), still(0.5), 2.0).state
    assert state.speed == 0.0 and state.x < 0.3


def test_without_a_plan_or_after_its_end_the_vehicle_brakes():
    model, tracker = VehicleModel(still(6.0)), Tracker()
    assert tracker.control(model.state, 0.0).accel < -1.0
    assert follow(np.stack([6.0 * TIMES, 0 * TIMES], 1), still(6.0), 6.0).state.speed == 0.0
