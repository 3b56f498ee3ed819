"""Future boxes and drivable area of samples, from datasets written by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fastdrive_node.errors import InputError
from fastdrive_training.data.adapters import Item
from fastdrive_training.data.nuscenes.keyframes import KeyframeDataset
from tests.training.evaluation.planning_scenes import add_object, draw_road, edit_table
from tests.training.tiny_nuscenes import write_dataset

KEYFRAMES = [f"s0k{index}" for index in range(8)]
SPEED = 4.0  # the vehicle starts at (100, 50) and drives along x


@pytest.fixture
def root(tmp_path):
    return write_dataset(tmp_path / "d", scenes=1, keyframes=8, speed=SPEED)


def _item(root, name: str) -> Item:
    dataset = KeyframeDataset(root)
    return dataset[dataset.names.index(name)]


def _boxes(root, name="s0k0"):
    objects = _item(root, name).find_objects()
    return None if objects is None else objects.boxes


def test_boxes_are_in_the_ego_frame_of_the_sample_at_each_step(root):
    places = {token: (110 + 3 * index, 52, 0.1 * index) for index, token in enumerate(KEYFRAMES)}
    add_object(root, "car", places)
    steps = _boxes(root, "s0k1")  # the vehicle is at (102, 50)
    assert len(steps) == 6
    for step, box in enumerate(steps, start=1):
        np.testing.assert_allclose(box, [[8 + 3 * (step + 1), 2, 0.1 * (step + 1), 4, 2]], atol=1e-9)


def test_turned_vehicle_turns_the_boxes(tmp_path):
    root = write_dataset(tmp_path / "d", scenes=2, keyframes=8, speed=SPEED)  # scene 1 looks 0.3 rad to the left
    east, north = 5 * np.cos(0.3) - np.sin(0.3), 5 * np.sin(0.3) + np.cos(0.3)  # 5 m ahead, 1 m to the left
    add_object(root, "car", {f"s1k{index}": (100 + east, 50 + north, 0.3) for index in range(8)})
    steps = _boxes(root, "s1k0")
    np.testing.assert_allclose(steps[0], [[5, 1, 0, 4, 2]], atol=1e-9)


def test_sample_whose_future_is_not_annotated_has_no_boxes(root):
    add_object(root, "car", dict.fromkeys(KEYFRAMES, (110.0, 50.0, 0.0)))
    assert _boxes(root, "s0k1") is not None
    assert _boxes(root, "s0k2") is None  # two and a half seconds are left


def _with_boxes(root, boxes):
    add_object(root, "car", dict.fromkeys(KEYFRAMES, (110.0, 50.0, 0.0)))
    (root / "extras.json").write_text(json.dumps({"s0k2": {"future_boxes": boxes}, "s0k1": {"future_boxes": boxes}}))
    return root


def test_boxes_behind_the_last_annotation_come_from_the_extras(root):
    boxes = [[[10.0 + step, 1.0, 0.1, 4.0, 2.0]] for step in range(5)] + [[]]
    steps = _boxes(_with_boxes(root, boxes), "s0k2")
    assert [step.shape for step in steps] == [(1, 5)] * 5 + [(0, 5)]
    np.testing.assert_array_equal(steps[3], [[13, 1, 0.1, 4, 2]])
    np.testing.assert_allclose(_boxes(root, "s0k1")[0], [[8, 0, 0, 4, 2]], atol=1e-9)  # annotations first


def test_vehicles_are_told_by_their_category(root):
    add_object(root, "car", dict.fromkeys(KEYFRAMES, (110.0, 50.0, 0.0)))
    add_object(root, "walker", dict.fromkeys(KEYFRAMES, (112.0, 55.0, 0.0)), size=(0.6, 0.5))
    edit_table(root, "category", lambda rows: rows.append({"token": "adult", "name": "human.pedestrian.adult"}))
    edit_table(root, "instance", lambda rows: rows[-1].update(category_token="adult"))
    objects = _item(root, "s0k1").find_objects()
    assert [step.tolist() for step in objects.vehicles] == [[True, False]] * 6
    assert [len(step) for step in objects.vehicle_boxes] == [1] * 6 and objects.vehicle_boxes[0][0, 3] == 4.0


def test_vehicles_behind_the_last_annotation_come_from_the_extras(root):
    _with_boxes(root, [[[10.0, 1.0, 0.1, 4.0, 2.0], [12.0, 1.0, 0.1, 0.4, 0.6]]] * 6)
    assert _item(root, "s0k2").find_objects().vehicle_boxes is None  # an older dataset does not tell
    _edit_extras(root, future_vehicles=[[True, False]] * 6)
    assert [len(step) for step in _item(root, "s0k2").find_objects().vehicle_boxes] == [1] * 6


@pytest.mark.parametrize("flags", [[[True]] * 5, [[True, False]] * 6, [[1]] * 6, [True] * 6, "yes"])
def test_flags_that_do_not_fit_the_boxes_are_refused(root, flags):
    _with_boxes(root, [[[10.0, 1.0, 0.1, 4.0, 2.0]]] * 6)
    _edit_extras(root, future_vehicles=flags)
    with pytest.raises(InputError, match=r"extras.json: future_vehicles of sample s0k2.*true or false"):
        _item(root, "s0k2").find_objects()


def _edit_extras(root, **entries) -> None:
    path = root / "extras.json"
    content = json.loads(path.read_text())
    content["s0k2"] |= entries
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("boxes", "problem"),
    [
        ([[]] * 5, "6 lists"),
        ([[[1, 2, 3, 4]]] * 6, "6 lists"),
        ([[[1, 2, 3, 4, float("nan")]]] * 6, "finite"),
        ([[[1, 2, 0, 4, 0]]] * 6, "size"),
        ("boxes", "6 lists"),
        (7, "6 lists"),
    ],
)
def test_unusable_boxes_in_the_extras_are_refused(root, boxes, problem):
    with pytest.raises(InputError, match=rf"extras.json: future_boxes of sample s0k2.*{problem}"):
        _boxes(_with_boxes(root, boxes), "s0k2")


def test_no_annotations_at_all_is_not_an_empty_road(root):
    assert _boxes(root) is None
    add_object(root, "car", {"s0k7": (110.0, 50.0, 0.0)})
    assert [len(step) for step in _boxes(root)] == [0] * 6


def test_between_keyframes_boxes_are_interpolated(tmp_path):
    root = write_dataset(tmp_path / "d", scenes=1, keyframes=10, speed=SPEED)
    keyframes = [f"s0k{index}" for index in range(10)]
    for table in ("sample", "sample_data", "ego_pose"):  # keyframes every 0.4 s
        edit_table(root, table, lambda rows: [row.update(timestamp=_squeezed(row["timestamp"])) for row in rows])
    places = {token: (110 + 4 * index, 50, 3.1 + 0.1 * index) for index, token in enumerate(keyframes)}
    add_object(root, "steady", places)
    add_object(root, "early", {token: places[token] for token in keyframes[:2]}, size=(1.0, 1.0))
    add_object(root, "late", {token: places[token] for token in keyframes[4:]}, size=(1.5, 1.0))
    steps = _boxes(root)
    first = {box[3]: box for box in steps[0]}  # 0.5 s: a quarter of the way from keyframe 1 to 2
    assert set(first) == {4.0, 1.0}
    assert first[4.0][0] == pytest.approx(10 + 4 * 1.25) and first[1.0][0] == pytest.approx(14)
    assert np.exp(1j * first[4.0][2]) == pytest.approx(np.exp(1j * (3.1 + 0.125)), abs=1e-3)
    third = {box[3]: box for box in steps[2]}  # 1.5 s: three quarters of the way from keyframe 3 to 4
    assert set(third) == {4.0, 1.5} and third[1.5][0] == pytest.approx(26)


def _squeezed(stamp_us: int) -> int:
    start = 1_600_000_000_000_000
    return start + (stamp_us - start) * 4 // 5


def test_objects_that_no_sensor_saw_are_left_out_where_there_is_a_lidar(tmp_path):
    for lidar, expected in ((True, 1), (False, 2)):
        root = write_dataset(tmp_path / f"d{lidar}", scenes=1, keyframes=8, speed=SPEED, lidar=lidar)
        if not lidar:
            edit_table(root, "sensor", lambda rows: rows.remove(rows[-1]))
            edit_table(root, "calibrated_sensor", lambda rows: rows.remove(rows[-1]))
        add_object(root, "seen", dict.fromkeys(KEYFRAMES, (110.0, 50.0, 0.0)), points=1)
        add_object(root, "hidden", dict.fromkeys(KEYFRAMES, (120.0, 50.0, 0.0)), points=0)
        assert [len(step) for step in _boxes(root)] == [expected] * 6


@pytest.mark.parametrize(("field", "value"), [("size", [2.0, 0.0, 1.5]), ("translation", [1, 2]), ("rotation", None)])
def test_broken_annotation_is_named(root, field, value):
    add_object(root, "car", dict.fromkeys(KEYFRAMES, (110.0, 50.0, 0.0)))
    edit_table(root, "sample_annotation", lambda rows: rows[1].update({field: value}))
    with pytest.raises(InputError, match=r"sample_annotation\.json: annotation car-s0k1"):
        _boxes(root)


def test_map_lies_where_the_vehicle_drives(root):
    draw_road(root, "scene-0", 48.0, 53.0)
    frame, area = _item(root, "s0k3").find_drivable()
    assert frame.position_m == (106.0, 50.0) and frame.yaw_rad == pytest.approx(0)
    ahead = frame.to_map(np.array([[5.0, 0.0], [5.0, 2.9], [5.0, 3.2], [5.0, -1.9], [5.0, -2.2]]))
    assert area.contains(ahead).tolist() == [True, True, False, True, False]


def test_dataset_without_a_map_of_the_place_has_none(root):
    edit_table(root, "scene", lambda rows: rows[0].update(log_token="of another place"))
    assert _item(root, "s0k0").find_drivable() is None


@pytest.mark.parametrize("kept", [0, 1])
def test_logs_without_a_map_record_have_no_road(tmp_path, kept):
    root = write_dataset(tmp_path / "d", scenes=2, keyframes=8, speed=SPEED)
    edit_table(root, "map", lambda rows: rows.__delitem__(slice(kept, None)))
    assert (_item(root, "s0k0").find_drivable() is None) == (kept == 0)
    assert _item(root, "s1k0").find_drivable() is None and not KeyframeDataset(root).missing_maps


def test_map_that_is_no_image_is_named(root):
    (root / "maps" / "scene-0.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"scene-0\.png is no readable image"):
        _item(root, "s0k0").find_drivable()
