"""Score maps: where heat and border lie, how cameras are laid out, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from fastdrive_node.errors import InputError
from fastdrive_node.types import CAMERAS
from fastdrive_node.visualization.layout import GAP, TILE_WIDTH
from fastdrive_training.scoring.pictures import (
    TITLE_HEIGHT,
    Scale,
    camera_title,
    color_stops,
    draw_score_maps,
    heat_overlay,
)

GREY = np.full((40, 80, 3), 120, np.uint8)


def brightness(image: np.ndarray) -> float:
    return float(image.astype(float).mean())


def test_higher_scores_are_brighter():
    scores = np.array([[-4.0, -2.0, 0.0, 2.0]]) - 10  # all below zero: no border
    image = heat_overlay(GREY, scores, Scale.of(scores))
    columns = [brightness(image[:, start : start + 20]) for start in range(0, 80, 20)]
    assert columns == sorted(columns) and columns[3] > columns[0] + 60


def test_a_border_divides_what_is_above_zero():
    scores = np.array([[-1.0, -1.0, 1.0, 1.0]])
    image = heat_overlay(GREY, scores, Scale(-1, 1))
    white = (image == 255).all(axis=2)
    assert white[:, 40].all() and white.sum() == 40
    for same in (scores + 5, scores - 5):
        assert not (heat_overlay(GREY, same, Scale(-6, 6)) == 255).all(axis=2).any()


def test_edges_of_the_picture_can_be_seen_through_the_heat():
    image = GREY.copy()
    image[:, 30:50] = 220
    scores = np.full((1, 1), 1.0)
    plain, seen = (heat_overlay(each, scores, Scale(0, 2)) for each in (GREY, image))
    assert brightness(seen[:, 35:45]) > brightness(plain[:, 35:45]) + 20


def test_cells_follow_the_grid_whatever_the_image_size():
    scores = np.arange(15.0).reshape(3, 5) - 100
    scores[1, 3] = 50
    image = heat_overlay(np.full((31, 53, 3), 128, np.uint8), scores, Scale(-100, 0))
    hot = np.argwhere(image.astype(int).sum(2) > 560)
    (top, left), (bottom, right) = hot.min(0), hot.max(0)
    assert top >= 9 and bottom <= 22 and left >= 30 and right <= 43


@pytest.mark.parametrize("camera", CAMERAS)
def test_each_camera_has_its_place_in_the_rig(camera):
    images = [np.full((90, 160, 3), 100, np.uint8)] * 6
    scores = np.full((6, 2, 2), -3.0)
    before = draw_score_maps(images, scores, CAMERAS, "scene-1", Scale(-3, 3))
    scores[CAMERAS.index(camera)] = -1.0
    after = draw_score_maps(images, scores, CAMERAS, "scene-1", Scale(-3, 3))
    rows, columns = np.nonzero((before != after).any(axis=2))
    left = GAP + (TILE_WIDTH + GAP) * (0 if "LEFT" in camera else 2 if "RIGHT" in camera else 1)
    top = TITLE_HEIGHT + (270 + GAP) * ("BACK" in camera)
    assert (rows.min(), columns.min()) == (top, left)
    assert (rows.max(), columns.max()) == (top + 269, left + TILE_WIDTH - 1)


def test_any_cameras_sizes_and_scores_can_be_drawn():
    sizes = [(50, 90), (400, 10), (1, 1), (9, 900)]
    images = [np.zeros((*size, 3), np.uint8) for size in sizes]
    for scores in (np.zeros((4, 3, 3)), np.full((4, 3, 3), 1e30), np.random.default_rng(0).normal(size=(4, 60, 60))):
        image = draw_score_maps(images, scores, ["a", "b", "c", "d"], "x" * 5000)
        assert image.dtype == np.uint8 and image.shape[1] == GAP + 3 * (TILE_WIDTH + GAP)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.full((6, 2, 2), np.nan), "no finite numbers"),
        (np.full((6, 2, 2), np.inf), "no finite numbers"),
        (np.zeros((5, 2, 2)), "6 images and 5 score maps for 6 cameras"),
    ],
)
def test_unusable_scores_are_refused(scores, message):
    with pytest.raises(InputError, match=message):
        draw_score_maps([GREY] * 6, scores, CAMERAS)


def test_the_scale_leaves_outliers_out_and_is_never_empty():
    scores = np.concatenate([np.linspace(-1, 1, 1000), [1e6]])
    assert Scale.of(scores).high < 2
    for constant in (0.0, 5.0, -1e20):
        scale = Scale.of(np.full(10, constant))
        assert scale.low < constant < scale.high
        assert 0.4 < float(scale.fraction(constant)) < 0.6


def test_names_and_colours_for_people():
    assert camera_title("CAM_FRONT_LEFT") == "front left"
    stops = color_stops(3)
    assert len(stops) == 3 and stops[0] == "#000003" and all(len(stop) == 7 for stop in stops)
