"""Contacts of the ego vehicle."""

from __future__ import annotations

import math

import pytest

from fastdrive_node.types import Vehicle
from fastdrive_sim.drive.contact import ContactFinder, overlap
from fastdrive_sim.drive.types import EgoStep, Other, corners

EGO = EgoStep(0.0, 0.0, 0.0, 6.0, 0.0, 0.0, 0.0)
AHEAD = Vehicle().length_m - Vehicle().rear_overhang_m


def car(x: float, y: float, yaw: float = 0.0, speed: float = 0.0) -> Other:
    return Other(5, "car", x, y, yaw, 4.0, 2.0, speed)


def test_turned_rectangles_overlap_only_where_they_do():
    square = corners(0, 0, 0, 2, 2)
    assert overlap(square, corners(2.3, 0, math.pi / 4, 2, 2))
    assert not overlap(square, corners(2.1, 2.1, math.pi / 4, 2, 2))


@pytest.mark.parametrize(
    ("other", "where"),
    [
        (car(AHEAD + 1.95, 0.5), "front"),
        (car(-Vehicle().rear_overhang_m - 1.95, 0.3), "rear"),
        (car(1.4, 1.9), "side"),
        (car(1.4, -2.85, math.pi / 2), "side"),
    ],
)
def test_the_face_that_is_hit_is_named(other, where):
    (found,) = ContactFinder((), Vehicle()).find(1.0, EGO, [other])
    assert found.where == where


def test_the_impact_is_the_length_of_the_relative_velocity():
    (found,) = ContactFinder((), Vehicle()).find(1.0, EGO, [car(1.4, 1.9, math.pi / 2, 8.0)])
    assert found.impact_speed == pytest.approx(10.0)
    assert (found.ego_speed, found.is_static) == (6.0, False)


def test_an_obstacle_is_reported_once():
    finder = ContactFinder([car(AHEAD + 1.9, 0.0), car(60.0, 0.0)], Vehicle())
    assert [len(finder.find(t, EGO, ())) for t in (0.0, 0.1)] == [1, 0]
    later = EgoStep(60.0, 0.0, 0.0, 6.0, 0.0, 0.0, 0.0)
    assert [each.is_static for each in finder.find(9.0, later, ())] == [True]
