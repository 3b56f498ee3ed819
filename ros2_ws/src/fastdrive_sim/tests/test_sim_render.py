from __future__ import annotations

import math
from contextlib import closing
from dataclasses import replace

import moderngl
import numpy as np
import pytest
from sim_scenes import rectangle, street, traffic

from fastdrive_node.errors import SimError
from fastdrive_sim import render
from fastdrive_sim.render import Renderer
from fastdrive_sim.rig import DEFAULT_RIG, RIGS
from fastdrive_sim.types import KINDS, Camera, EgoPose, Label, Snapshot, Surface, Thing, World

RIG = RIGS[DEFAULT_RIG]
WIDTH, HEIGHT = 224, 112
EGO = EgoPose(x=120.0, y=-40.0, yaw=0.7, speed=0.0)
EMPTY = World(seed=1, surfaces=(), things=())


@pytest.fixture(scope="module")
def renderer():
    try:
        made = Renderer(WIDTH, HEIGHT)
    except SimError as error:
        pytest.skip(str(error))
    yield made
    made.close()


def snapshot(*things: Thing, ego: EgoPose = EGO) -> Snapshot:
    return Snapshot(0.0, ego, things, "straight", np.zeros((2, 2)))


def to_world(camera: Camera, point: tuple[float, float, float], ego: EgoPose = EGO) -> np.ndarray:
    """From camera coordinates to the world."""
    x, y, z = camera.rotation @ point + camera.translation
    cos, sin = math.cos(ego.yaw), math.sin(ego.yaw)
    return np.array([ego.x + cos * x - sin * y, ego.y + sin * x + cos * y, z])


def to_pixels(camera: Camera, points: np.ndarray, width: int, height: int, ego: EgoPose = EGO) -> np.ndarray:
    """World points [P, 3] to image coordinates [P, 2]; written without the renderer's matrices."""
    cos, sin = math.cos(ego.yaw), math.sin(ego.yaw)
    dx, dy = points[:, 0] - ego.x, points[:, 1] - ego.y
    in_ego = np.stack([cos * dx + sin * dy, -sin * dx + cos * dy, points[:, 2]], axis=1)
    seen = (camera.scaled(width, height) @ camera.rotation.T @ (in_ego - camera.translation).T).T
    return seen[:, :2] / seen[:, 2:]


def block(x: float, y: float, **more) -> Thing:
    """A house that is a plain box."""
    return Thing(
        **{
            "instance": 7,
            "kind": "building",
            "x": x,
            "y": y,
            "yaw": 0.4,
            "size": (3, 4, 3),
            **more,
            "variant": 2,
            "color": (200, 180, 160),
        }
    )


def corners(thing: Thing) -> np.ndarray:
    length, width, height = thing.size
    grid = np.array([(a, b, c) for a in (-0.5, 0.5) for b in (-0.5, 0.5) for c in (0, 1)]) * (length, width, height)
    cos, sin = math.cos(thing.yaw), math.sin(thing.yaw)
    x, y, z = grid.T
    return np.stack([thing.x + cos * x - sin * y, thing.y + sin * x + cos * y, z], axis=1)


@pytest.mark.parametrize("index", range(len(RIG)), ids=[camera.name for camera in RIG])
@pytest.mark.parametrize("across", [-3.0, 0.0, 4.0])
def test_thing_appears_where_the_intrinsics_project_it(renderer, index, across):
    x, y, _ = to_world(RIG[index], (across, 0, 16))
    thing = block(x, y)
    renderer.load(EMPTY)
    views = renderer.render(snapshot(thing))
    expected = to_pixels(RIG[index], corners(thing), WIDTH, HEIGHT)
    rows, columns = np.nonzero(views.instance[index] == 7)
    assert np.all(views.label[index][rows, columns] == Label.BUILDING)
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    # A row or column is found when a sample of it, half a pixel at most from its edge, is covered.
    np.testing.assert_allclose(found, [*expected.min(axis=0), *expected.max(axis=0)], atol=0.8)


def test_cameras_do_not_draw_into_each_others_images(renderer):
    renderer.load(EMPTY)
    x, y, _ = to_world(RIG[0], (0, 0, 16))
    views = renderer.render(snapshot(block(x, y)))
    assert [bool((image == 7).any()) for image in views.instance] == [True] + [False] * 5


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_shows_with_its_label_from_every_side(renderer, kind):
    renderer.load(EMPTY)
    size = {"building": (8, 8, 6), "pedestrian": (0.5, 0.6, 1.8), "traffic_cone": (0.5, 0.5, 0.8)}.get(kind, (2, 2, 3))
    x, y, _ = to_world(RIG[0], (0, 0, 12))
    areas = []
    for turn in range(4):
        views = renderer.render(snapshot(Thing(9, kind, x, y, turn * 1.5708, size, (180, 60, 60))))
        assert set(views.label[0][views.instance[0] == 9]) == {KINDS[kind]}
        areas.append((views.instance[0] == 9).sum())
    assert min(areas) > 0.3 * max(areas) > 5


def test_static_things_are_drawn_like_moving_ones(renderer):
    x, y, _ = to_world(RIG[2], (1, 0, 16))
    renderer.load(EMPTY)
    moving = renderer.render(snapshot(block(x, y)))
    renderer.load(replace(EMPTY, things=(block(x, y),)))
    static = renderer.render(snapshot())
    for name in ("rgb", "label", "instance", "depth"):
        np.testing.assert_array_equal(getattr(moving, name), getattr(static, name))


def test_depth_is_metres_along_the_optical_axis(renderer):
    """A wall across the view has one depth all over, not one that grows towards the edges."""
    renderer.load(EMPTY)
    x, y, _ = to_world(RIG[0], (0, 0, 21))
    views = renderer.render(snapshot(block(x, y, size=(2, 8, 8), yaw=EGO.yaw)))
    wall = views.depth[0][views.instance[0] == 7]
    assert len(wall) > 500
    np.testing.assert_allclose(wall, 20.0, rtol=1e-3)


def test_depth_of_the_ground_and_of_the_sky(renderer):
    renderer.load(EMPTY)
    views = renderer.render(snapshot())
    intrinsic = RIG[3].scaled(WIDTH, HEIGHT)
    row = np.arange(80, HEIGHT)
    # The label's sample lies a quarter of a pixel below the centre when the image is supersampled twice.
    expected = RIG[3].translation[2] * intrinsic[1, 1] / (row + 0.75 - intrinsic[1, 2])
    np.testing.assert_allclose(views.depth[3][80:, 100], expected, rtol=2e-3)
    assert np.all(views.label[3][80:] == Label.GROUND)
    sky = views.label == Label.SKY
    assert np.all(np.isinf(views.depth[sky])) and np.all(np.isfinite(views.depth[~sky]))
    assert np.all(sky[:, 0]) and not sky[:, -1].any()


def test_marks_cover_the_road_and_the_road_the_ground_at_every_distance(renderer):
    road = Surface(Label.ROAD, rectangle(-500, -200, 500, 200)[:, ::-1], 0.01, (80, 80, 80))
    mark = Surface(Label.LANE_MARK, rectangle(-500, -1, 500, 1), 0.03, (230, 230, 230))
    renderer.load(replace(EMPTY, surfaces=(mark, road)))
    views = renderer.render(snapshot(ego=EgoPose(0, 0, 0, 0)))
    below = views.label[:, 70:]
    assert not (below == Label.GROUND).any() and not (below == Label.SKY).any()
    intrinsic = RIG[0].scaled(WIDTH, HEIGHT)
    for metres in (6.0, 20.0, 60.0, 150.0):
        row = int(intrinsic[1, 2] + RIG[0].translation[2] * intrinsic[1, 1] / metres)
        assert views.label[0, row, round(intrinsic[0, 2])] == Label.LANE_MARK
    assert views.instance.max() == 0


def mean_of(views, instance: int) -> np.ndarray:
    return views.rgb[0][views.instance[0] == instance].mean(axis=0)


@pytest.mark.parametrize("kind", ["car", "truck", "bus"])
def test_brake_lights_show_from_behind_at_30_m(renderer, kind):
    renderer.load(EMPTY)
    x, y, _ = to_world(RIG[0], (0, 0, 30))
    size = {"car": (4.5, 1.8, 1.5), "truck": (8, 2.5, 3.3), "bus": (12, 2.55, 3.2)}[kind]
    vehicle = Thing(3, kind, x, y, EGO.yaw, size, (60, 90, 150))
    coasting = renderer.render(snapshot(vehicle))
    braking = renderer.render(snapshot(replace(vehicle, state="brake")))
    lit = (braking.rgb[0].astype(int) - coasting.rgb[0])[..., 0] > 80
    assert lit.sum() >= 4
    assert np.all(braking.instance[0][lit] == 3)


@pytest.mark.parametrize(("state", "channel"), [("red", 0), ("green", 1)])
def test_lit_lamp_shows_at_40_m(renderer, state, channel):
    renderer.load(EMPTY)
    x, y, _ = to_world(RIG[0], (2, 0, 40))
    light = Thing(4, "traffic_light", x, y, EGO.yaw + math.pi, (0.4, 0.9, 5.0), (60, 60, 60), state=state)
    lit = renderer.render(snapshot(light)).rgb[0].astype(int)
    dark = renderer.render(snapshot(replace(light, state=""))).rgb[0].astype(int)
    assert ((lit - dark)[..., channel] > 100).sum() >= 4
    away = renderer.render(snapshot(replace(light, yaw=EGO.yaw))).rgb[0].astype(int)
    assert ((away - dark)[..., channel] > 100).sum() == 0


def test_signs_and_variants_differ(renderer):
    renderer.load(EMPTY)
    x, y, _ = to_world(RIG[0], (1, 0, 8))
    images = set()
    for state in ("stop", "limit30", "limit50", "curve_left", "curve_right", "other"):
        sign = Thing(4, "traffic_sign", x, y, EGO.yaw + math.pi, (0.1, 0.9, 2.6), (60, 60, 60), state=state)
        images.add(renderer.render(snapshot(sign)).rgb.tobytes())
    for variant in (2, 3):
        house = Thing(4, "building", x, y, 0.0, (5, 5, 12), (150, 150, 150), variant=variant)
        images.add(renderer.render(snapshot(house)).rgb.tobytes())
    assert len(images) == 8


def test_sun_and_haze_change_the_light(renderer):
    means = []
    for world in (street(), replace(street(), sun_deg=8.0), replace(street(), haze=1.0)):
        renderer.load(world)
        means.append(renderer.render(traffic()).rgb[0].astype(float))
    clear, evening, foggy = means
    assert np.abs(clear - evening).mean() > 5
    assert foggy[40:80].std() < 0.9 * clear[40:80].std()


def test_same_snapshot_gives_same_arrays_also_beside_another_renderer(renderer):
    renderer.load(street())
    first = renderer.render(traffic())
    with closing(Renderer(96, 54, supersample=1)) as other:
        other.load(EMPTY)
        small = other.render(snapshot())
        renderer.render(traffic(lead="brake", light="green"))
        second = renderer.render(traffic())
    assert small.rgb.shape == (6, 54, 96, 3)
    for name in ("rgb", "label", "instance", "depth"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_views_have_the_types_and_shapes_of_the_contract(renderer):
    renderer.load(street())
    views = renderer.render(traffic())
    assert (views.rgb.dtype, views.rgb.shape) == (np.uint8, (6, HEIGHT, WIDTH, 3))
    assert (views.label.dtype, views.label.shape) == (np.uint8, (6, HEIGHT, WIDTH))
    assert (views.instance.dtype, views.instance.shape) == (np.uint16, (6, HEIGHT, WIDTH))
    assert (views.depth.dtype, views.depth.shape) == (np.float32, (6, HEIGHT, WIDTH))
    assert set(np.unique(views.label)) <= set(Label)
    assert {1, 4, 6} <= set(np.unique(views.instance))


@pytest.mark.parametrize("domain", ["day", "night"])
def test_color_alone_is_that_of_all_views(renderer, domain):
    renderer.load(replace(EMPTY, domain=domain))
    x, y, _ = to_world(RIG[0], (1, 0, 9))
    seen = snapshot(block(x, y))
    color = renderer.render_color(seen)
    assert np.array_equal(color, renderer.render(seen).rgb)
    assert color.dtype == np.uint8 and color.shape == (len(RIG), HEIGHT, WIDTH, 3)
    assert not np.array_equal(color, renderer.render_color(snapshot()))


def test_cameras_in_several_rounds_give_the_same_images(renderer, monkeypatch):
    monkeypatch.setattr(render, "_MAX_ROWS", 4 * 2 * HEIGHT)
    renderer.load(street())
    with closing(Renderer(WIDTH, HEIGHT)) as split:
        split.load(street())
        views, expected = split.render(traffic()), renderer.render(traffic())
        np.testing.assert_array_equal(split.render_color(traffic()), views.rgb)
    np.testing.assert_allclose(views.rgb.astype(int), expected.rgb, atol=1)  # texture coordinates are rounded elsewhere
    for name in ("label", "instance"):
        np.testing.assert_array_equal(getattr(views, name), getattr(expected, name))


def test_images_of_another_aspect_ratio_keep_the_field_of_view(renderer):
    x, y, _ = to_world(RIG[0], (2, 0, 16))
    thing = block(x, y)
    with closing(Renderer(151, 203, supersample=1)) as tall:
        tall.load(EMPTY)
        views = tall.render(snapshot(thing))
    expected = to_pixels(RIG[0], corners(thing), 151, 203)
    rows, columns = np.nonzero(views.instance[0] == 7)
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(found, [*expected.min(axis=0), *expected.max(axis=0)], atol=0.8)


def test_a_world_that_cannot_be_drawn_is_refused(renderer):
    renderer.load(EMPTY)
    with pytest.raises(SimError, match=r"thing 3: kind 'boat' has no mesh"):
        renderer.render(snapshot(Thing(3, "boat", 0, 0, 0, (1, 1, 1), (0, 0, 0))))
    with pytest.raises(SimError, match=r"thing 70000: an instance is a number from 1 to 65535"):
        renderer.load(replace(EMPTY, things=(block(0, 0, instance=70000),)))


def test_rendering_before_loading_and_impossible_sizes_are_refused(renderer):
    with pytest.raises(SimError, match="image size 9000x10"):
        Renderer(9000, 10)
    with closing(Renderer(16, 8)) as fresh, pytest.raises(SimError, match=r"load\(world\) comes first"):
        fresh.render(snapshot())
    with closing(Renderer(16, 8)) as fresh, pytest.raises(SimError, match=r"load\(world\) comes first"):
        fresh.render_color(snapshot())


def test_missing_egl_names_the_packages_to_install(monkeypatch):
    def no_egl(**_):
        raise ImportError("libEGL.so not loaded")

    monkeypatch.setattr(moderngl, "create_context", no_egl)
    with pytest.raises(SimError) as caught:
        Renderer(16, 8)
    assert "libegl1" in str(caught.value) and "libgl1-mesa-dri" in str(caught.value)
    assert "libEGL.so not loaded" in str(caught.value) and "\n" not in str(caught.value)
