"""Datasets of several layouts through one interface, on small files that the tests write."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from fastdrive_node.errors import InputError
from fastdrive_node.types import CAMERAS
from fastdrive_training.annotate.run import Annotation
from fastdrive_training.data.adapters import dataset_identity, detect_kind, open_source
from fastdrive_training.data.sampling import Shard
from tests.training.annotate.annotate_fixtures import BrightModels, settings
from tests.training.tiny_nuscenes import write_dataset

SIZE = (20, 30)


def write_image(path: Path, shade: int = 100, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*size, 3), shade, np.uint8))


def write_mask(path: Path, value: int, dtype=np.uint8, size: tuple[int, int] = SIZE) -> None:
    """The left half is ``value``, the right half 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(size, dtype)
    mask[:, : size[1] // 2] = value
    cv2.imwrite(str(path), mask)


def left_half(regions) -> bool:
    half = SIZE[1] // 2
    return bool(regions.foreground[:, :half].all() and not regions.foreground[:, half:].any())


def annotate(source, out: Path) -> Path:
    annotation = Annotation(source, out, settings(), Shard(), BrightModels)
    annotation.finish(annotation.run(), samples=0)
    return out


@pytest.fixture(scope="module")
def nuscenes(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "d", scenes=2, keyframes=2, size=SIZE)


def test_nuscenes_items_are_keyframes_with_images_and_masks_by_camera(nuscenes):
    source = open_source(nuscenes, "val")
    assert (source.kind, source.split, source.cameras, source.has_masks) == ("nuscenes", "val", CAMERAS, True)
    assert source.names == ["s1k0", "s1k1"] and len(source) == 2
    item = source[1]
    assert (item.name, item.scene) == ("s1k1", "scene-1")
    image = item.load_image("CAM_BACK")
    assert image.shape == (*SIZE, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(image[..., ::-1], cv2.imread(str(nuscenes / "samples" / "CAM_BACK" / "s1k1.jpg")))
    regions = item.load_regions("CAM_BACK", SIZE)
    assert regions.foreground[:, 20:].all() and not regions.foreground[:, :19].any()


def test_nuscenes_split_goes_without_saying_only_where_there_is_one(nuscenes, tmp_path):
    with pytest.raises(InputError, match="holds the splits train, val"):
        open_source(nuscenes)
    assert open_source(write_dataset(tmp_path / "one", scenes=1, keyframes=1, size=SIZE)).split == "train"


def test_nuscenes_cameras_are_a_choice(nuscenes):
    assert open_source(nuscenes, "val", cameras=("CAM_BACK",)).cameras == ("CAM_BACK",)
    with pytest.raises(InputError, match="no camera 'CAM_TOP'"):
        open_source(nuscenes, "val", cameras=("CAM_TOP",))


def test_nuscenes_image_of_another_size_than_its_table_says_is_refused(nuscenes):
    with pytest.raises(InputError, match=r"is 8x4, sample_data\.json says 30x20"):
        open_source(nuscenes, "val")[0].load_regions("CAM_BACK", (4, 8))


def test_identity_changes_with_items_and_images_and_not_with_masks(nuscenes, tmp_path):
    assert open_source(nuscenes, "val").identity == open_source(nuscenes, "val").identity
    assert open_source(nuscenes, "val").identity != open_source(nuscenes, "train").identity
    root = tmp_path / "photos"
    for name in ("a", "b"):
        write_image(root / f"{name}.png", shade=240)
    first = open_source(root).identity
    assert open_source(root, masks=annotate(open_source(root), tmp_path / "m")).identity == first
    write_image(root / "b.png", shade=90, size=(21, 30))
    assert open_source(root).identity != first


def test_folder_with_cameras_and_label_table(tmp_path):
    for camera in ("left", "right"):
        for name in ("b", "a"):
            write_image(tmp_path / "images" / camera / f"{name}.jpg")
            write_mask(tmp_path / "masks" / camera / f"{name}.png", 7)
    table = {"labels": {"grass": 0, "road": 7}, "foreground_groups": {"road": ["road"]}, "ignore": 9}
    (tmp_path / "labels.json").write_text(json.dumps(table))
    source = open_source(tmp_path)
    assert (source.kind, source.split, source.cameras) == ("folder", None, ("left", "right"))
    assert source.names == ["a", "b"] and source.has_masks
    assert [item.name for item in source] == ["a", "b"]
    assert source[0].load_image("right").shape == (*SIZE, 3)
    assert left_half(source[0].load_regions("right", SIZE))
    mask = np.full(SIZE, 9, np.uint8)
    cv2.imwrite(str(tmp_path / "masks" / "left" / "a.png"), mask)
    regions = source[0].load_regions("left", SIZE)
    assert regions.ignore.all() and not regions.foreground.any()


def test_folder_without_table_takes_what_is_not_zero_for_foreground(tmp_path):
    write_image(tmp_path / "images" / "a.jpg")
    write_mask(tmp_path / "masks" / "a.png", 255)
    source = open_source(tmp_path)
    assert source.cameras == ("camera",)
    regions = source[0].load_regions("camera", SIZE)
    assert left_half(regions) and regions.ignore is None
    with pytest.raises(InputError, match=r"a\.png is 30x20, its image 31x20"):
        source[0].load_regions("camera", (20, 31))


def test_plain_images_have_no_masks(tmp_path):
    write_image(tmp_path / "a.jpg")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.jpg").write_text("")
    source = open_source(tmp_path)
    assert source.names == ["a"] and not source.has_masks
    with pytest.raises(InputError, match="no masks; annotate it"):
        source[0].load_regions("camera", SIZE)


def test_folder_splits_by_folders_or_by_a_file(tmp_path):
    for split, name in (("train", "a"), ("val", "b")):
        write_image(tmp_path / "d" / split / f"{name}.jpg")
    assert open_source(tmp_path / "d", "val").names == ["b"]
    with pytest.raises(InputError, match=r"no split 'test': make a folder test or a splits\.json"):
        open_source(tmp_path / "d", "test")
    with pytest.raises(InputError, match="train is a split, not a camera"):
        open_source(tmp_path / "d")
    for name in ("a", "b", "c"):
        write_image(tmp_path / "f" / f"{name}.jpg")
    (tmp_path / "f" / "splits.json").write_text(json.dumps({"train": ["c", "a"], "val": ["b"]}))
    assert open_source(tmp_path / "f", "train").names == ["a", "c"]
    with pytest.raises(InputError, match=r"name a split: splits\.json has train, val"):
        open_source(tmp_path / "f")
    with pytest.raises(InputError, match="no split 'test'"):
        open_source(tmp_path / "f", "test")


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": ["a"], "val": ["b", "a"]}, "a is in train and in val; splits must not share items"),
        ({"train": ["z"]}, "split train names 'z', of which there is no image"),
        ({"train": "a"}, "must be {split: "),
        (["a"], "must be {split: "),
    ],
)
def test_broken_splits_are_refused(tmp_path, splits, message):
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.jpg")
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    with pytest.raises(InputError, match=message):
        open_source(tmp_path, "train")


def test_folder_that_is_not_regular_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        open_source(tmp_path / "none")
    with pytest.raises(InputError, match="no images in it"):
        open_source(tmp_path)
    write_image(tmp_path / "left" / "a.jpg")
    write_image(tmp_path / "left" / "b.jpg")
    write_image(tmp_path / "right" / "a.jpg")
    with pytest.raises(InputError, match=r"camera right has no image 'b' \(1 are absent\)"):
        open_source(tmp_path)
    assert open_source(tmp_path, cameras=("left",)).names == ["a", "b"]
    write_image(tmp_path / "left" / "a.png")
    with pytest.raises(InputError, match=r"a\.jpg has the same name"):
        open_source(tmp_path, cameras=("left",))
    with pytest.raises(InputError, match="no camera 'top'; it has left, right"):
        (tmp_path / "left" / "a.png").unlink()
        open_source(tmp_path, cameras=("top",))


def test_image_without_its_mask_is_refused_unless_the_masks_are_left_alone(tmp_path):
    write_image(tmp_path / "images" / "a.jpg")
    write_image(tmp_path / "images" / "b.jpg")
    write_mask(tmp_path / "masks" / "a.png", 1)
    with pytest.raises(InputError, match=r"masks/b\.png is missing"):
        open_source(tmp_path)
    assert open_source(tmp_path, own_masks=False).names == ["a", "b"]


def test_annotated_masks_take_the_place_of_a_folders_own(tmp_path):
    write_image(tmp_path / "d" / "images" / "a.png", shade=240)
    write_mask(tmp_path / "d" / "masks" / "a.png", 1)
    made = annotate(open_source(tmp_path / "d", own_masks=False), tmp_path / "m")
    regions = open_source(tmp_path / "d", masks=made)[0].load_regions("camera", SIZE)
    assert regions.foreground.all()
    write_image(tmp_path / "d" / "images" / "b.png")
    with pytest.raises(InputError, match="has no mask of camera/b"):
        open_source(tmp_path / "d", masks=made)


@pytest.fixture()
def kitti(tmp_path):
    for name in ("000000_10", "000001_10", "000002_10"):
        write_image(tmp_path / "training" / "image_2" / f"{name}.png")
        write_mask(tmp_path / "training" / "semantic" / f"{name}.png", 26)  # car; the rest is unlabeled
    write_image(tmp_path / "training" / "image_2" / "000000_11.png")  # the next frame, which has no label
    write_image(tmp_path / "testing" / "image_2" / "000000_10.png")
    return tmp_path


def test_kitti_semantic_labels(kitti):
    source = open_source(kitti, "training")
    assert (source.kind, source.cameras) == ("kitti", ("image_2",))
    assert source.names == ["000000_10", "000001_10", "000002_10"]
    regions = source[1].load_regions("image_2", SIZE)
    assert left_half(regions)
    np.testing.assert_array_equal(regions.ignore, ~regions.foreground)  # unlabeled is in doubt, not background
    write_mask(kitti / "training" / "semantic" / "000001_10.png", 11)  # building
    assert not source[1].load_regions("image_2", SIZE).foreground.any()


def test_kitti_instance_labels_where_there_are_no_semantic_ones(kitti):
    for name in ("000000_10", "000001_10"):
        write_mask(kitti / "training" / "instance" / f"{name}.png", 24 * 256 + 3, np.uint16)  # the third person
    (kitti / "training" / "semantic").rename(kitti / "unused")
    source = open_source(kitti, "training")
    assert source.names == ["000000_10", "000001_10"]
    assert left_half(source[0].load_regions("image_2", SIZE))
    write_mask(kitti / "training" / "instance" / "000000_10.png", 24)
    with pytest.raises(InputError, match=r"instance/000000_10\.png is no 16-bit image"):
        source[0].load_regions("image_2", SIZE)


def test_kitti_images_without_labels_are_there_for_annotation(kitti):
    assert len(open_source(kitti, "training", own_masks=False)) == 4
    testing = open_source(kitti, "testing")
    assert testing.names == ["000000_10"] and not testing.has_masks


def test_kitti_splits(kitti):
    with pytest.raises(InputError, match="name a split: training, testing"):
        open_source(kitti)
    with pytest.raises(InputError, match=r"no split 'val': there is no splits\.json"):
        open_source(kitti, "val")
    (kitti / "splits.json").write_text(json.dumps({"train": ["000000_10", "000002_10"], "val": ["000001_10"]}))
    assert open_source(kitti, "val").names == ["000001_10"]
    with pytest.raises(InputError, match="divides training; name one of its splits"):
        open_source(kitti, "training")
    with pytest.raises(InputError, match="has the camera image_2 only"):
        open_source(kitti, "val", cameras=("image_3",))


def test_layouts_are_told_apart(nuscenes, kitti, tmp_path):
    assert detect_kind(nuscenes) == "nuscenes"
    assert detect_kind(kitti) == "kitti"
    (tmp_path / "w" / "training" / "camera_image").mkdir(parents=True)
    (tmp_path / "w" / "training" / "camera_image" / "x.parquet").touch()
    assert detect_kind(tmp_path / "w") == "waymo"
    assert detect_kind(tmp_path / "w" / "training") == "waymo"
    assert detect_kind(kitti / "training") == "folder"
    with pytest.raises(InputError, match="kind 'coco': must be one of nuscenes, kitti, waymo, folder, or auto"):
        open_source(kitti, kind="coco")


def _driven_folder(root: Path, **changes) -> Path:
    """Eight images of one camera, 0.5 s apart, of a vehicle that drives north at 4 m/s."""
    motion = {}
    for index in range(8):
        write_image(root / "images" / "CAM_FRONT" / f"{index}.jpg")
        motion[f"{index}"] = {"scene": "north", "t_s": 100 + 0.5 * index, "x": 7.0, "y": 2.0 * index, "yaw": np.pi / 2}
    motion["0"] |= {"command": "left"}
    motion["3"] |= changes
    (root / "ego_motion.json").write_text(json.dumps(motion))
    return root


def test_folder_with_ego_motion_has_history_future_and_command(tmp_path):
    source = open_source(_driven_folder(tmp_path))
    assert source.scenes == ["north"] * 8
    first, second, third = source[0], source[1], source[2]
    np.testing.assert_allclose(second.future(), [[2.0 * step, 0.0] for step in range(1, 7)], atol=1e-9)
    assert third.future() is None and third.history.now.speed_mps == pytest.approx(4.0)
    assert (first.command.value, second.command.value, third.command.value) == ("left", "straight", "none")
    assert first.stamp_ns == 100 * 10**9 and first.find_objects() is None and first.find_drivable() is None
    assert third.find_world_state().y_m == pytest.approx(4.0)


def test_items_without_ego_motion_have_no_future(tmp_path):
    write_image(tmp_path / "a.jpg")
    item = open_source(tmp_path)[0]
    assert item.future() is None and item.history is None and item.stamp_ns is None and item.find_objects() is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": "east"}, r"ego_motion\.json: 3\.x: 'east': .* needs scene \(a name\), t_s \[s\], x, y \[m\] and yaw"),
        ({"yaw": None}, r"3\.yaw: None: must be a valid number"),
        ({"y": 1e300}, r"3\.y: 1e\+300: must be less than"),
        ({"scene": 3}, r"3\.scene: 3: must be a valid string"),
        ({"t_s": 100.0}, "two poses of scene 'north' have the same t_s"),
        ({"command": "up"}, r"3\.command: 'up': must be"),
    ],
)
def test_broken_ego_motion_is_named(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        open_source(_driven_folder(tmp_path, **changes))


def test_ego_motion_belongs_to_the_identity_and_masks_on_request(tmp_path, nuscenes):
    source = open_source(_driven_folder(tmp_path))
    before = dataset_identity(source)
    _driven_folder(tmp_path, x=8.0)
    assert dataset_identity(open_source(tmp_path)) != before
    with_masks = [dataset_identity(open_source(nuscenes, "val"), masks=on) for on in (False, True)]
    assert len(set(with_masks)) == 2
