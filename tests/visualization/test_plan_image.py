import dataclasses

import numpy as np
import pytest
from PIL import Image

from fastdrive_node.errors import InputError
from fastdrive_node.types import CAMERAS, Command, KeptTokens, Plan, Vehicle
from fastdrive_node.visualization.layout import camera_layout, save_image
from fastdrive_node.visualization.overlay import overlay, path_through
from fastdrive_node.visualization.plan_image import draw_plan
from fastdrive_node.visualization.projection import NUSCENES_FRONT, CameraModel

AHEAD = np.array([[4.0 * k, 0.05 * k * k] for k in range(1, 7)])


def images_of(height=112, width=224, count=6):
    return [np.random.default_rng(i).integers(60, 200, (height, width, 3), dtype=np.uint8) for i in range(count)]


def plan_of(waypoints=AHEAD, kept=48, cameras=6):
    tokens = KeptTokens(np.arange(kept), None, (cameras, 4, 8))
    return Plan(10**9, waypoints, 0.5, "", kept=tokens, stage_ms={"encode": 20.0, "decode": 40.0, "total": 60.0})


def differs(a, b):
    """Bounding box (left, top, right, bottom) of the pixels in which two images differ."""
    rows, columns = np.nonzero((a != b).any(axis=2))
    return columns.min(), rows.min(), columns.max(), rows.max()


def test_the_image_of_a_plan_has_a_tile_for_each_camera_and_a_map():
    image = draw_plan(plan_of(), images_of(), CAMERAS, 8.0, Command.LEFT)
    assert image.dtype == np.uint8 and image.shape == (64 + 2 * (240 + 10) + 44, 10 + 3 * 490 + 410, 3)


def test_the_trajectory_shows_in_the_front_view_and_on_the_map():
    here, there = plan_of(), plan_of(AHEAD * [1, -8])
    images = [draw_plan(plan, images_of(), CAMERAS, 8.0) for plan in (here, there)]
    front, rest = slice(500, 980), slice(0, 490)
    assert (images[0][64:304, front] != images[1][64:304, front]).any()
    assert (images[0][64:554, 1480:] != images[1][64:554, 1480:]).any()
    assert (images[0][64:554, rest] == images[1][64:554, rest]).all()


def test_the_path_ahead_is_as_wide_as_the_vehicle_on_both_sides():
    straight = np.array([[4.0 * k, 0.0] for k in range(1, 7)])
    stationary, driving = (
        draw_plan(plan_of(points, kept=192), images_of(), CAMERAS, 8.0)[64:304, 500:980]
        for points in (straight * 0, straight)
    )
    left, _, right, bottom = differs(stationary, driving)
    middle = 816 / 1600 * 480
    nearest_m = 1.51 * 1266 / (900 - 491)  # seen at the lower edge of the image
    half_width = 0.5 * Vehicle().width_m / nearest_m * 1266 * 480 / 1600
    assert bottom == 239
    assert middle - left == pytest.approx(half_width, abs=4) and right - middle == pytest.approx(half_width, abs=4)


def test_a_wider_vehicle_has_a_wider_path_and_outline():
    narrow, wide = (draw_plan(plan_of(), images_of(), CAMERAS, 8.0, vehicle=Vehicle(width_m=w)) for w in (1.85, 2.5))
    assert (narrow[64:304, 500:980] != wide[64:304, 500:980]).any()
    assert (narrow[64:554, 1480:] != wide[64:554, 1480:]).any()


def test_the_kept_tokens_show_in_their_camera():
    first, second = plan_of(kept=32), plan_of(kept=33)  # the next one is CAM_FRONT_RIGHT's first
    images = [draw_plan(plan, images_of(), CAMERAS, 8.0)[64:554, :1480] for plan in (first, second)]
    left, top, right, bottom = differs(*images)
    assert left >= 990 and right < 990 + 120 and top <= 32 and bottom < 64


def test_every_plan_can_be_drawn():
    for waypoints in (AHEAD * 0, -AHEAD, AHEAD * 1000, AHEAD[:, ::-1], AHEAD[:1]):
        draw_plan(plan_of(waypoints), images_of(), CAMERAS, 0.0)
    bare = dataclasses.replace(plan_of(), kept=None, stage_ms={}, t0_ns=0, mode="degraded: no image of CAM_BACK")
    draw_plan(bare, images_of(168, 280), CAMERAS, 0.0)


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (4, 2, 3), (7, 3, 3), (32, 6, 6)])
def test_unknown_cameras_are_laid_out_in_a_grid(count, rows, columns):
    names = [f"roof_{index}" for index in range(count)]
    layout = camera_layout(names)
    assert (len(layout), max(map(len, layout))) == (rows, columns)
    assert [name for row in layout for name in row] == names
    image = draw_plan(plan_of(kept=10, cameras=count), images_of(count=count), names, 0.0)
    assert image.shape == (64 + rows * 250 + 44, 10 + columns * 490 + 410, 3)


def test_the_six_cameras_of_nuscenes_surround_the_vehicle():
    assert camera_layout(CAMERAS)[0] == ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT")


def test_an_overlay_dims_what_was_dropped_and_leaves_what_was_kept():
    image = images_of(90, 160)[0]
    kept = np.zeros((3, 4), bool)
    kept[1, 2] = True
    result = overlay(image, kept)
    assert result.shape == image.shape and result.dtype == np.uint8
    assert (result[35:55, 85:115] == image[35:55, 85:115]).all()
    outside = result[:25]
    assert (outside[..., 0] == outside[..., 1]).all() and outside.mean() < 0.6 * image[:25].mean()


def test_an_overlay_tints_higher_scores_more():
    grey, kept = np.full((40, 80, 3), 100, np.uint8), np.ones((1, 2), bool)
    result = overlay(grey, kept, np.array([[-1.0, 3.0]])).astype(int)
    assert (result[20, 20] == 100).all() and result[20, 60, 1] > 120


def test_the_path_passes_through_its_waypoints():
    path = path_through(AHEAD, samples=10)
    np.testing.assert_allclose(path[10::10], AHEAD)
    np.testing.assert_allclose(path[0], 0)


def test_a_point_straight_ahead_projects_onto_the_principal_column():
    x, y, z = NUSCENES_FRONT.translation
    pixels, depths = NUSCENES_FRONT.project(
        np.array([[x + 10, y, z], [x + 10, y, 0.0], [x + 10, y + 1, z], [x - 5, y, z]])
    )
    np.testing.assert_allclose(pixels[:3], [[816, 491], [816, 491 + 126.6 * z], [816 - 126.6, 491]])
    assert depths.tolist() == pytest.approx([10, 10, 10, -5])


def test_a_camera_follows_a_resized_image():
    half = NUSCENES_FRONT.scaled(800, 300)
    point = np.array([[12.0, 2.0, 0.5]])
    np.testing.assert_allclose(half.project(point)[0], NUSCENES_FRONT.project(point)[0] * [1 / 2, 1 / 3])


def test_a_given_front_camera_is_used():
    beside = NUSCENES_FRONT.translation + np.array([0, 3.0, 0])
    moved = CameraModel(NUSCENES_FRONT.intrinsic, NUSCENES_FRONT.rotation, beside, (1600, 900))
    images = [draw_plan(plan_of(), images_of(), CAMERAS, 0.0, front_camera=camera) for camera in (None, moved)]
    left, top, right, bottom = differs(*images)
    assert left >= 500 and right < 980 and top >= 64 and bottom < 304


@pytest.mark.parametrize("name", ["image.png", "new/folder/image.jpg"])
def test_an_image_is_written_by_its_suffix(tmp_path, name):
    save_image(tmp_path / name, images_of()[0])
    assert Image.open(tmp_path / name).size == (224, 112)


@pytest.mark.parametrize("name", ["image.doc", "image"])
def test_an_unknown_suffix_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"cannot be written .* use a name like plan\.png"):
        save_image(tmp_path / name, images_of()[0])
