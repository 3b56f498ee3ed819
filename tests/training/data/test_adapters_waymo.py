"""Waymo Open Dataset v2, on small Parquet files with its columns."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from fastdrive_node.errors import InputError
from fastdrive_training.annotate.run import Annotation
from fastdrive_training.data.adapters import open_source
from fastdrive_training.data.sampling import Shard
from tests.training.annotate.annotate_fixtures import BrightModels, settings

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra waymo)")
from pyarrow import parquet  # noqa: E402

from fastdrive_training.data.adapters import waymo  # noqa: E402

SIZE = (16, 24)
DIVISOR = 1000
CAMERAS = ("FRONT", "FRONT_LEFT", "FRONT_RIGHT", "SIDE_LEFT", "SIDE_RIGHT")


def keys(segment: str, stamps: list[int], cameras: range) -> dict:
    rows = [(stamp, camera) for stamp in stamps for camera in cameras]
    return {
        "key.segment_context_name": pyarrow.array([segment] * len(rows)),
        "key.frame_timestamp_micros": pyarrow.array([stamp for stamp, _ in rows], pyarrow.int64()),
        "key.camera_name": pyarrow.array([camera for _, camera in rows], pyarrow.int8()),
    }


def jpeg(shade: int) -> bytes:
    return cv2.imencode(".jpg", np.full((*SIZE, 3), shade, np.uint8))[1].tobytes()


def panoptic(label: int, instance: int = 7) -> bytes:
    """16 bits: the left half is ``label``, the right half sky."""
    both = np.full(SIZE, 25 * DIVISOR, np.uint16)
    both[:, : SIZE[1] // 2] = label * DIVISOR + instance
    return cv2.imencode(".png", both)[1].tobytes()


def write_images(folder: Path, segment: str, stamps: list[int], cameras: range = range(1, 6), shade: int = 0) -> None:
    columns = keys(segment, stamps, cameras)
    count = len(stamps) * len(cameras)
    images = [jpeg(shade or 20 * camera + 100) for _ in stamps for camera in cameras]
    columns["[CameraImageComponent].image"] = pyarrow.array(images, pyarrow.binary())
    columns["[CameraImageComponent].pose_timestamp"] = pyarrow.array([0.0] * count)
    write(folder / "camera_image" / f"{segment}.parquet", columns)


def write_labels(folder: Path, segment: str, stamps: list[int], label: int = 2, cameras: range = range(1, 6)) -> None:
    columns = keys(segment, stamps, cameras)
    count = len(stamps) * len(cameras)
    prefix = "[CameraSegmentationLabelComponent]"
    columns[f"{prefix}.panoptic_label_divisor"] = pyarrow.array([DIVISOR] * count, pyarrow.int32())
    columns[f"{prefix}.panoptic_label"] = pyarrow.array([panoptic(label)] * count, pyarrow.binary())
    write(folder / "camera_segmentation" / f"{segment}.parquet", columns)


def write(path: Path, columns: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path, row_group_size=4)


@pytest.fixture()
def root(tmp_path):
    """Segment b has four frames of which two are labelled, segment a has one, in the training split; validation one."""
    train = tmp_path / "waymo" / "training"
    write_images(train, "b", [400, 100, 200, 300])
    write_labels(train, "b", [100, 300])
    write_images(train, "a", [900])
    write_labels(train, "a", [900], label=9)
    write_images(tmp_path / "waymo" / "validation", "v", [1])
    write_labels(tmp_path / "waymo" / "validation", "v", [1], label=19)
    return tmp_path / "waymo"


def test_items_are_the_labelled_frames_in_order(root):
    source = open_source(root, "train")
    assert (source.kind, source.split, source.cameras, source.has_masks) == ("waymo", "train", CAMERAS, True)
    assert source.names == ["a_900", "b_100", "b_300"]
    assert source[1].scene == "b" and len(source) == 3
    assert [item.name for item in source] == source.names


def test_images_and_masks_are_of_the_camera_that_was_asked_for(root):
    item = open_source(root, "train")[2]
    for number, camera in enumerate(CAMERAS, start=1):
        image = item.load_image(camera)
        assert image.shape == (*SIZE, 3) and abs(int(image[5, 5, 0]) - 20 * number - 100) <= 2
    regions = item.load_regions("SIDE_LEFT", SIZE)
    assert regions.foreground[:, :12].all() and not regions.foreground[:, 12:].any() and not regions.ignore.any()


def test_classes_are_waymos(root):
    assert not open_source(root, "val")[0].load_regions("FRONT", SIZE).foreground.any()  # a building
    write_labels(root / "validation", "v", [1], label=0)
    regions = open_source(root, "validation")[0].load_regions("FRONT", SIZE)
    assert regions.ignore[:, :12].all() and not regions.ignore[:, 12:].any()  # undefined
    assert {9, 10, 11, 2, 3, 4, 17, 18, 20, 21, 22, 14} <= set(waymo.TABLE.foreground)


def test_frames_that_lack_a_camera_are_left_out(root):
    write_labels(root / "training", "b", [100, 300], cameras=range(1, 5))
    assert open_source(root, "train").names == ["a_900"]
    assert len(open_source(root, "train", cameras=("FRONT", "SIDE_LEFT"))) == 3


def test_all_frames_are_there_for_annotation_and_its_masks_load(root, tmp_path):
    write_images(root / "training", "a", [900], shade=240)
    source = open_source(root, "train", own_masks=False)
    assert len(source) == 5 and not source.has_masks
    with pytest.raises(InputError, match="no masks"):
        source[0].load_regions("FRONT", SIZE)
    only = open_source(root, "validation", own_masks=False)
    write_images(root / "validation", "v", [1], shade=240)
    annotation = Annotation(only, tmp_path / "m", settings(), Shard(), BrightModels)
    assert annotation.finish(annotation.run(), samples=2)["complete"]
    masked = open_source(root, "validation", masks=tmp_path / "m")
    assert masked[0].load_regions("SIDE_RIGHT", SIZE).foreground.all()


def test_splits_and_cameras_that_are_not_there_are_named(root):
    with pytest.raises(InputError, match=r"name a split \(there are: training, validation\)"):
        open_source(root)
    with pytest.raises(InputError, match="testing/camera_image is missing"):
        open_source(root, "test")
    with pytest.raises(InputError, match="no camera 'BACK'"):
        open_source(root, "train", cameras=("BACK",))


def test_broken_files_are_named(root):
    labels = root / "validation" / "camera_segmentation" / "v.parquet"
    whole = labels.read_bytes()
    labels.write_bytes(whole[:-20])
    with pytest.raises(InputError, match=r"v\.parquet: no readable Parquet file"):
        open_source(root, "validation")
    write(labels, keys("v", [1], range(1, 6)))
    with pytest.raises(InputError, match=r"no column '\[CameraSegmentationLabelComponent\]\.panoptic_label'"):
        open_source(root, "validation")
    write_labels(root / "validation", "v", [1], label=40)
    with pytest.raises(InputError, match="class 40 of FRONT in frame 1 is not Waymo's"):
        open_source(root, "validation")[0].load_regions("FRONT", SIZE)


def test_mask_of_another_size_than_its_image_is_refused(root):
    with pytest.raises(InputError, match="label of FRONT in frame 1 is 24x16, its image 20x16"):
        open_source(root, "validation")[0].load_regions("FRONT", (16, 20))


def test_extracted_frames_are_the_same_as_plain_files(root, tmp_path):
    assert waymo.extract(root, "training", tmp_path / "plain") == 3
    source, plain = open_source(root, "training"), open_source(tmp_path / "plain", "training")
    assert plain.kind == "folder" and plain.names == source.names and set(plain.cameras) == set(source.cameras)
    for mine, theirs in zip(plain, source, strict=True):
        for camera in CAMERAS:
            np.testing.assert_array_equal(mine.load_image(camera), theirs.load_image(camera))
            one, other = mine.load_regions(camera, SIZE), theirs.load_regions(camera, SIZE)
            np.testing.assert_array_equal(one.foreground, other.foreground)
            np.testing.assert_array_equal(one.ignore, other.ignore)


def test_extraction_from_the_command_line(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["waymo", str(root), "training", str(tmp_path / "plain")])
    waymo.main()
    assert "3 frames" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["waymo", str(root), "testing", str(tmp_path / "plain")])
    with pytest.raises(SystemExit, match=r"waymo: .*camera_image is missing"):
        waymo.main()
