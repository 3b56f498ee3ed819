"""Rotations, visibility levels, and the drivable raster."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastdrive_sim.drivable import draw_mask
from fastdrive_sim.geometry import quaternion_of_matrix, quaternion_of_yaw, to_ego
from fastdrive_sim.rig import DEFAULT_RIG, RIGS
from fastdrive_sim.types import EgoPose, Label, Thing, Views
from fastdrive_sim.visibility import visibility_tokens

RIG = RIGS[DEFAULT_RIG]
WIDTH, HEIGHT = 160, 90
EGO = EgoPose(100.0, 50.0, 0.5, 5.0)


def matrix_of(quaternion: tuple[float, ...]) -> np.ndarray:
    w, x, y, z = quaternion
    axis = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * w * axis + 2 * axis @ axis


@pytest.mark.parametrize("camera", RIG, ids=lambda camera: camera.name)
def test_the_quaternion_of_a_camera_gives_its_rotation_back(camera):
    quaternion = quaternion_of_matrix(camera.rotation)
    assert quaternion[0] >= 0 and np.allclose(matrix_of(quaternion), camera.rotation)


def test_half_turns_have_quaternions_too():
    for diagonal in ((1, -1, -1), (-1, 1, -1), (-1, -1, 1)):
        rotation = np.diag(np.array(diagonal, float))
        assert np.allclose(matrix_of(quaternion_of_matrix(rotation)), rotation)


def test_yaw_turns_counter_clockwise():
    assert np.allclose(matrix_of(quaternion_of_yaw(math.pi / 2)) @ (1, 0, 0), (0, 1, 0))


def test_ego_frame_is_forward_and_left():
    pose = EgoPose(1.0, 2.0, math.pi / 2, 0.0)
    assert np.allclose(to_ego(pose, np.array([[1.0, 5.0], [0.0, 2.0]])), [[3.0, 0.0], [0.0, 1.0]])


def ahead(distance: float) -> Thing:
    """A car in front of the ego vehicle."""
    x, y = EGO.x + distance * math.cos(EGO.yaw), EGO.y + distance * math.sin(EGO.yaw)
    return Thing(7, "car", x, y, EGO.yaw, (4.0, 2.0, 1.5), (0, 0, 0))


def views_of(car_columns: slice, rest_depth: float) -> Views:
    """The front view of a car 20 m ahead that spans columns 74 .. 89, of which it shows ``car_columns``."""
    instance = np.zeros((6, HEIGHT, WIDTH), np.uint16)
    depth = np.full((6, HEIGHT, WIDTH), rest_depth, np.float32)
    window = (0, slice(49, 61), car_columns)
    instance[window], depth[window] = 7, 17.0
    label = np.full((6, HEIGHT, WIDTH), int(Label.ROAD), np.uint8)
    return Views(np.zeros((6, HEIGHT, WIDTH, 3), np.uint8), label, instance, depth)


@pytest.mark.parametrize(
    ("columns", "rest_depth", "token"),
    [
        (slice(74, 90), 3.0, "4"),  # all of it
        (slice(79, 90), 3.0, "3"),  # something near covers a third
        (slice(82, 90), 3.0, "2"),
        (slice(86, 90), 3.0, "1"),
        (slice(86, 90), 40.0, "4"),  # what shows beside a narrow car is behind it
        (slice(0, 0), 3.0, "1"),  # nothing
    ],
)
def test_visibility_is_the_share_that_nothing_nearer_covers(columns, rest_depth, token):
    assert visibility_tokens([ahead(20.0)], EGO, views_of(columns, rest_depth), RIG) == [token]


def test_a_thing_that_no_camera_has_in_view_is_least_visible():
    high = Thing(7, "car", EGO.x + 5, EGO.y, 0.0, (4.0, 2.0, 1.5), (0, 0, 0), z=200.0)
    assert visibility_tokens([high], EGO, views_of(slice(0, 0), 40.0), RIG) == ["1"]
    assert visibility_tokens([], EGO, views_of(slice(0, 0), 40.0), RIG) == []


def test_the_raster_holds_the_union_of_its_polygons_north_up():
    path = [EgoPose(10.3, -5.0, 0.0, 0.0), EgoPose(20.0, 5.0, 0.0, 0.0)]
    strip = np.array([[0.0, -2.0], [30.0, -2.0], [30.0, 2.0], [0.0, 2.0]])
    crossing = np.array([[14.0, -20.0], [18.0, -20.0], [18.0, 20.0], [14.0, 20.0]])
    mask = draw_mask([strip, crossing], path)
    assert mask.origin == (-70.0, -85.0) and mask.pixels.shape == (1700, 1700)

    def at(x: float, y: float) -> int:
        column, row = round((x - mask.origin[0]) * 10), 1700 - round((y - mask.origin[1]) * 10)
        return int(mask.pixels[row, column])

    assert [at(*p) for p in ((1, 0), (16, 0), (16, 15), (29.8, 1.8), (13.8, 2.3), (-0.3, 0), (16, -20.3))] == [
        255,
        255,
        255,
        255,
        0,
        0,
        0,
    ]
