"""Planning figures of every convention: against public evaluators' own, worked out by hand, and by their properties."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastdrive_node.cli import main
from fastdrive_training.data.drivable import DrivableArea, EgoFrame
from fastdrive_training.evaluation.metrics.drivable import _FOOTPRINT, boundary_lines, off_drivable_steps
from fastdrive_training.evaluation.metrics.footprint import corners, path_headings, step_headings
from fastdrive_training.evaluation.metrics.horizons import (
    Obstacles,
    any_to_t,
    at_t,
    collision_steps,
    mean_to_t,
    step_errors,
)
from fastdrive_training.evaluation.metrics.judge import Surroundings, judge_plan
from fastdrive_training.evaluation.metrics.rasters import RASTERS, boundary_steps, raster_collision_steps

SHARED = Path(__file__).parents[4] / "shared" / "data"
VECTORS, SCENE = SHARED / "open_loop_metric_vectors.json", SHARED / "scene0103"
STRAIGHT = np.stack([2.5 * np.arange(1, 7), np.zeros(6)], axis=1)  # 5 m/s
NOWHERE = [np.zeros((0, 5))] * 6
POINT_ONLY = {"obj_col", "obj_col_per_step"}  # figures that disregard the vehicle's size


def _standing(*box: float) -> list[np.ndarray]:
    """One object that stays where it is for six steps."""
    return [np.array([box], float)] * 6


def _compare(found, wanted, where: str) -> None:
    if isinstance(wanted, dict):
        for key in wanted.keys() - POINT_ONLY:
            _compare(found[key], wanted[key], f"{where}/{key}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), where
        for index, (one, other) in enumerate(zip(found, wanted, strict=True)):
            _compare(one, other, f"{where}[{index}]")
    else:
        assert found == pytest.approx(wanted, abs=1e-4), where


@pytest.mark.skipif(not VECTORS.exists(), reason="the metric vectors (../shared/data) are not on this machine")
def test_command_reproduces_the_public_evaluators(tmp_path):
    assert main(["metrics", str(VECTORS), "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    scenarios = json.loads(VECTORS.read_text())["scenarios"]
    assert set(figures) == {scenario["name"] for scenario in scenarios}
    for scenario in scenarios:
        _compare(figures[scenario["name"]], scenario["results"], scenario["name"])


def test_l2_conventions_differ_as_defined():
    errors = np.array([[1.0, 2, 3, 4, 5, 6], [3.0, 4, 5, 6, 7, 8]])
    assert mean_to_t(errors) == pytest.approx({"1s": 2.5, "2s": 3.5, "3s": 4.5, "avg": 3.5})
    assert at_t(errors) == pytest.approx({"1s": 3.0, "2s": 5.0, "3s": 7.0, "avg": 5.0})


def test_three_ways_of_counting_a_step():
    flags = np.array([[False, False, True, False, False, False]])
    assert mean_to_t(flags) == pytest.approx({"1s": 0, "2s": 1 / 4, "3s": 1 / 6, "avg": 5 / 36})
    assert at_t(flags) == pytest.approx({"1s": 0, "2s": 0, "3s": 0, "avg": 0})
    assert any_to_t(flags) == pytest.approx({"1s": 0, "2s": 1, "3s": 1, "avg": 2 / 3})


def test_headings_follow_the_path_and_a_standing_vehicle_looks_forward():
    turn = np.array([[2.0, 0], [4, 0], [4, 2], [4, 4], [4, 4.5], [4, 4.5]])
    central = path_headings(turn)
    assert central[0] == 0 and central[1] == pytest.approx(np.pi / 4) and central[2] == pytest.approx(np.pi / 2)
    last = step_headings(turn)
    np.testing.assert_allclose(last, [0, 0, *[np.pi / 2] * 4])  # the last two steps are short: the heading stays
    shuffle = np.array([[0.1, 0.2], [0, 0.3], [0.1, 0.2], [0, 0.3], [0.1, 0.2], [0.2, 0.4]])
    assert (path_headings(shuffle) == 0).all() and (step_headings(shuffle) == 0).all()


def test_box_centre_is_half_a_metre_ahead_of_the_point():
    front, rear = 0.5 + 4.084 / 2, 0.5 - 4.084 / 2
    at_last = STRAIGHT[-1, 0]
    for x, hit in ((at_last + front + 0.49, True), (at_last + front + 0.51, False)):
        assert Obstacles.from_boxes(_standing(x, 0, 0, 1, 1)).hit_by(STRAIGHT)[-1] == hit
    at_first = STRAIGHT[0, 0]
    for x, hit in ((at_first + rear - 0.49, True), (at_first + rear - 0.51, False)):
        assert Obstacles.from_boxes(_standing(x, 0, 0, 1, 1)).hit_by(STRAIGHT)[0] == hit


@pytest.mark.parametrize(("name", "left"), [("ST-P3", 1), ("UniAD", -1), ("VAD", -1)])
def test_cells_of_the_box_on_coarse_rasters(name, left):
    """Eight cells from 1.5 m behind to 2 m ahead, four from 1 m to 0.5 m in the direction in which columns grow."""
    stays, away = np.zeros((6, 2)), np.full((6, 2), 30.0)
    cases = [(2.0, 0.0, True), (2.5, 0.0, False), (-1.5, 0.0, True), (-2.0, 0.0, False)]
    cases += [(0.0, 0.5, True), (0.0, 1.0, False), (0.0, -1.0, True), (0.0, -1.5, False)]
    for x, y, hit in cases:
        post = _standing(x, left * y, 0.0, 0.1, 0.1)
        assert raster_collision_steps(RASTERS[name], stays, away, post).all() == hit, (x, y)


@pytest.mark.parametrize(("name", "side"), [("ST-P3", -1), ("UniAD", 1), ("VAD", 1)])
def test_coarse_rasters_hit_a_car_that_polygons_pass(name, side):
    """A car passed at 0.22 m; the cells of the ego box lie 0.25 m to one side, which depends on how columns grow."""
    car = _standing(15.0, side * (0.925 + 0.22 + 0.95), 0, 4.6, 1.9)
    truth = STRAIGHT - [0, 6 * side]
    assert not collision_steps(STRAIGHT, truth, Obstacles.from_boxes(car)).any()
    assert raster_collision_steps(RASTERS[name], STRAIGHT, truth, car).any()
    assert not raster_collision_steps(RASTERS["BEV-Planner"], STRAIGHT, truth, car).any()


def test_bev_planners_box_stands_a_further_metre_ahead():
    car = _standing(STRAIGHT[-1, 0] + 0.5 + 2.042 + 0.5 + 0.5, 0, 0, 1, 1)  # half a metre in front of the box
    away = STRAIGHT * [0.1, 0]
    assert not collision_steps(STRAIGHT, away, Obstacles.from_boxes(car)).any()
    assert raster_collision_steps(RASTERS["BEV-Planner"], STRAIGHT, away, car).tolist() == [False] * 5 + [True]


def test_a_step_at_which_the_truth_collides_does_not_count():
    car = _standing(10.0, 0, 0, 4.6, 1.9)
    hits = Obstacles.from_boxes(car).hit_by(STRAIGHT)
    assert hits.tolist() == [False, False, True, True, True, False]
    truth = STRAIGHT * [0.5, 1]  # at the object in steps 5 and 6
    expected = hits & ~Obstacles.from_boxes(car).hit_by(truth)
    assert expected.tolist() == [False, False, True, True, False, False]
    assert (collision_steps(STRAIGHT, truth, Obstacles.from_boxes(car)) == expected).all()
    for raster in RASTERS.values():
        assert raster_collision_steps(raster, STRAIGHT, truth, car).sum() < hits.sum()


def test_another_number_of_steps_is_refused():
    with pytest.raises(ValueError, match="6 steps"):
        Obstacles.from_boxes(NOWHERE).hit_by(STRAIGHT[:5])


def test_boundary_counts_where_the_truth_does_not_touch_it():
    line = [np.array([[-10.0, 2.0], [45.0, 2.0]])]
    drift = STRAIGHT + np.stack([np.zeros(6), 0.3 * np.arange(1, 7)], axis=1)
    crossed = boundary_steps(drift, STRAIGHT, line)
    assert not crossed[:2].any() and crossed[3:].any()
    assert not boundary_steps(drift, drift, line).any()
    assert not boundary_steps(drift, STRAIGHT, [np.array([[0.0, 2.0]])]).any()  # one vertex is no line


def _road(width_m: float = 8.0, size_m: float = 120.0) -> tuple[EgoFrame, DrivableArea]:
    """A straight road along x through the middle of a map; the vehicle is on its middle, at the map's."""
    cells = round(size_m * 10)
    pixels = np.zeros((cells, cells), bool)
    half = round(width_m * 5)
    pixels[cells // 2 - half : cells // 2 + half + 1] = True
    return EgoFrame((size_m / 2, size_m / 2), 0.0), DrivableArea.from_pixels(pixels)


def test_leaving_the_road_counts_from_the_step_it_happens():
    frame, area = _road()
    drift = STRAIGHT + np.stack([np.zeros(6), 0.9 * np.arange(1, 7)], axis=1)
    # a corner of the box reaches over the edge at 4 m to the left: 0.925 m and the turned length
    off = off_drivable_steps(drift, frame, area)
    heading = step_headings(drift)
    reach = drift[:, 1] + (1.486 + 2.042) * np.sin(heading) + 0.925 * np.cos(heading)
    assert off.tolist() == (reach > 4.05).tolist() and off.any() and not off.all()
    assert not off_drivable_steps(STRAIGHT, frame, area).any()


def test_a_vehicle_that_is_off_the_road_already_is_not_counted():
    frame, area = _road(width_m=1.0)
    assert not off_drivable_steps(STRAIGHT, frame, area).any()


def test_beyond_fifty_metres_nothing_is_counted_and_beyond_the_map_all_is():
    frame, area = _road()
    fast = STRAIGHT * 4  # up to 60 m, the map ends at 60 m
    assert not off_drivable_steps(fast, frame, area).any()
    near_end = EgoFrame((110.0, 60.0), 0.0)
    assert off_drivable_steps(STRAIGHT, near_end, area).tolist() == [False, False, True, True, True, True]


def test_boundary_lines_run_along_the_road_and_not_along_the_maps_edge():
    frame, area = _road()
    lines = boundary_lines(frame, area)
    points = np.concatenate(lines)
    assert {round(abs(float(y)), 1) for y in points[:, 1]} == {4.0}
    assert np.abs(points).max() < 50 and points[:, 0].min() < -49 and points[:, 0].max() > 49
    turned = np.concatenate(boundary_lines(EgoFrame(frame.position_m, np.pi / 2), area))
    assert {round(abs(float(x)), 1) for x in turned[:, 0]} == {4.0}
    assert boundary_lines(EgoFrame((-500.0, 0.0), 0.0), area) == []


def test_bits_of_an_area_are_its_pixels():
    pixels = np.random.default_rng(0).random((37, 53)) < 0.5
    area = DrivableArea.from_pixels(pixels, (5.0, -3.0), 0.5)
    rows, columns = np.meshgrid(np.arange(37), np.arange(53), indexing="ij")
    assert (area.contains(area.place(rows, columns)) == pixels).all()
    window, (row, column) = area.window((3, 30), (11, 100))
    assert (window == pixels[row : row + window.shape[0], column : column + window.shape[1]]).all()
    assert row == 3 and column <= 11
    assert not area.contains(np.array([[-1e9, 0.0], [1e9, 1e9], [4.0, -3.0]])).any()


def test_a_plan_is_judged_by_what_is_known():
    frame, area = _road()
    car = _standing(10.0, 0, 0, 4.6, 1.9)
    drift = STRAIGHT + np.stack([np.zeros(6), 0.9 * np.arange(1, 7)], axis=1)
    known = judge_plan(drift, Surroundings(STRAIGHT - [8, 0], car, frame, area))
    np.testing.assert_allclose(known.errors_m, step_errors(drift, STRAIGHT - [8, 0]))
    assert (known.off_drivable == off_drivable_steps(drift, frame, area)).all() and known.off_drivable.any()
    assert known.intersection.any()
    assert known.raster_collision is None  # the classes of the boxes are not known
    unknown = judge_plan(drift, Surroundings(STRAIGHT))
    assert (unknown.collision, unknown.off_drivable, unknown.intersection) == (None, None, None)
    assert not judge_plan(drift, Surroundings(STRAIGHT, NOWHERE)).collision.any()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_raster_collision_of_a_judged_plan_is_bev_planners(seed):
    random = np.random.default_rng(seed)
    boxes = [np.column_stack([random.uniform(-6, 25, (4, 2)), random.uniform(-3, 3, 4), np.full((4, 2), 2.0)])] * 6
    plan, truth = (STRAIGHT + random.normal(0, 2.0, STRAIGHT.shape) for _ in range(2))
    found = judge_plan(plan, Surroundings(truth, [*boxes], vehicle_boxes=[step[:2] for step in boxes])).raster_collision
    wanted = raster_collision_steps(RASTERS["BEV-Planner"], plan, truth, [step[:2] for step in boxes])
    assert (found == wanted).all()


@pytest.mark.skipif(not SCENE.exists(), reason="scene-0103 (../shared/data) is not on this machine")
def test_footprints_on_a_real_map_equal_the_recorded_shares():
    truth = json.loads((SCENE / "scene0103_gt.json").read_text())
    place, first = truth["drivable"], truth["frames"][0]
    pixels = cv2.imread(str(SCENE / place["file"]), cv2.IMREAD_GRAYSCALE) > 127
    half = place["px_m"] / 2  # the recorded corner is the outer edge of a pixel
    area = DrivableArea.from_pixels(pixels, (place["world_left_x"] + half, place["world_bottom_y"] - half))
    frame = EgoFrame(tuple(first["global_xy"]), first["global_yaw"])
    steps = np.arange(1, 7)
    ahead = np.stack([first["can_vx"] * 0.5 * steps, np.zeros(6)], axis=1)
    plans = {
        "gt": np.array(first["future_xy_0p5s"]),
        "constant_velocity": ahead,
        "drift_left_1m_per_step": ahead + np.stack([0 * steps, steps], axis=1),
        "drift_right_1m_per_step": ahead - np.stack([0 * steps, steps], axis=1),
    }
    recorded = place["footprint_fraction_off_drivable_per_step_frame0"]
    for name, plan in plans.items():
        fractions = [
            _fraction_off(point, yaw, frame, area) for point, yaw in zip(plan, step_headings(plan), strict=True)
        ]
        np.testing.assert_allclose(fractions, recorded[name], atol=5e-5)
        assert off_drivable_steps(plan, frame, area).tolist() == [fraction > 0 for fraction in recorded[name]]


def _fraction_off(point, yaw, frame, area) -> float:
    cos, sin = np.cos(yaw), np.sin(yaw)
    return float((~area.contains(frame.to_map(_FOOTPRINT @ np.array([[cos, sin], [-sin, cos]]) + point))).mean())


# Properties

metres = st.floats(-20, 20).map(lambda value: round(value, 3))
paths = st.lists(st.tuples(metres, metres), min_size=6, max_size=6).map(np.array)
boxes = st.tuples(
    metres, metres, st.floats(-3.2, 3.2), st.floats(0.5, 10).map(lambda side: round(side, 2)), st.floats(0.5, 3)
)
traffic = st.lists(st.lists(boxes, min_size=6, max_size=6), max_size=4).map(
    lambda objects: [np.array([one[step] for one in objects]).reshape(-1, 5) for step in range(6)]
)


def _grown(around: list[np.ndarray], by: float) -> Obstacles:
    return Obstacles.from_boxes([step + np.array([0, 0, 0, by, by]) for step in around])


@settings(max_examples=40)
@given(paths, paths, traffic, metres, metres)
def test_moving_the_whole_scene_changes_nothing(plan, truth, around, east, north):
    """Cases in which boxes only just touch are left out, for rounding decides them."""
    for path in (plan, truth):
        assume((_grown(around, 1e-6).hit_by(path) == _grown(around, -1e-6).hit_by(path)).all())
    shift = np.array([east, north])
    moved = Obstacles.from_boxes([step + np.array([east, north, 0, 0, 0]) for step in around])
    found = collision_steps(plan + shift, truth + shift, moved, (east, north))
    assert (found == collision_steps(plan, truth, Obstacles.from_boxes(around))).all()
    np.testing.assert_allclose(step_errors(plan + shift, truth + shift), step_errors(plan, truth), atol=1e-9)


@settings(max_examples=20)
@given(paths, paths, traffic, st.randoms())
def test_the_order_of_objects_changes_nothing(plan, truth, around, random):
    mixed = []
    for step in around:
        order = list(range(len(step)))
        random.shuffle(order)
        mixed.append(step[order].reshape(-1, 5))
    expected = collision_steps(plan, truth, Obstacles.from_boxes(around))
    assert (collision_steps(plan, truth, Obstacles.from_boxes(mixed)) == expected).all()
    for raster in RASTERS.values():
        found = raster_collision_steps(raster, plan, truth, mixed)
        assert (found == raster_collision_steps(raster, plan, truth, around)).all()


@settings(max_examples=15)
@given(paths, traffic, st.floats(-3, 3))
def test_a_plan_equal_to_the_truth_scores_zero_everywhere(truth, around, yaw):
    frame, area = _road()
    turned = EgoFrame(frame.position_m, yaw)
    found = judge_plan(truth.copy(), Surroundings(truth, around, turned, area))
    assert not found.errors_m.any() and not found.collision.any() and not found.intersection.any()
    for raster in RASTERS.values():
        assert not raster_collision_steps(raster, truth, truth, around).any()
    assert not boundary_steps(truth, truth, boundary_lines(turned, area)).any()


@settings(max_examples=40)
@given(paths, st.integers(-200, 200), st.integers(-200, 200), st.floats(-3, 3))
def test_moving_map_and_vehicle_changes_nothing(plan, east, north, yaw):
    area = _road()[1]
    here = off_drivable_steps(plan, EgoFrame((60.013, 60.027), yaw), area)
    moved = DrivableArea(area.bits, area.shape, (float(east), float(north)))
    there = off_drivable_steps(plan, EgoFrame((60.013 + east, 60.027 + north), yaw), moved)
    assert (here == there).all()


@given(boxes)
def test_corners_are_at_half_the_diagonal_and_in_order(box):
    found = corners(np.array([box]))[0]
    np.testing.assert_allclose(found.mean(axis=0), box[:2], atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(found - box[:2], axis=1), np.hypot(box[3], box[4]) / 2)
    assert cv2.contourArea(found.astype(np.float32), oriented=True) == pytest.approx(box[3] * box[4], rel=1e-3)
