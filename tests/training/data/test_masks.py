"""Annotated masks through the interface of exact ones."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from fastdrive_node.errors import InputError
from fastdrive_node.types import CAMERAS
from fastdrive_training.annotate.run import Annotation
from fastdrive_training.data.adapters import open_source
from fastdrive_training.data.masks import LabelTable, MaskFolder, cell_coverage
from fastdrive_training.data.nuscenes.keyframes import KeyframeDataset
from fastdrive_training.data.sampling import Shard
from tests.training.annotate.annotate_fixtures import BrightModels, settings
from tests.training.tiny_nuscenes import write_dataset

SIZE = (60, 120)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A dataset with exact masks (the right third is road)."""
    return write_dataset(tmp_path_factory.mktemp("data") / "d", scenes=2, keyframes=2, size=SIZE)


@pytest.fixture()
def annotated(data, tmp_path):
    return annotate(data, tmp_path / "m")


def annotate(data, out, split="train", limit=None, **composition):
    annotation = Annotation(open_source(data, split), out, settings(**composition), Shard(), BrightModels, limit=limit)
    annotation.finish(annotation.run(), samples=0)
    return out


def test_annotated_masks_agree_with_exact_ones_outside_the_band(data, annotated):
    exact, made = KeyframeDataset(data, "train"), KeyframeDataset(data, "train", masks=annotated)
    assert made.has_masks
    for camera in CAMERAS:
        truth, regions = exact[1].load_regions(camera, SIZE), made[1].load_regions(camera, SIZE)
        assert truth.ignore is None
        assert 0 < regions.ignore.mean() < 0.1
        np.testing.assert_array_equal(regions.foreground[~regions.ignore], truth.foreground[~regions.ignore])
        assert not (regions.foreground & regions.ignore).any()


def test_masks_without_band_have_no_doubtful_pixels(data, tmp_path):
    made = KeyframeDataset(data, "train", masks=annotate(data, tmp_path / "m", band=0.0))
    assert not made[0].load_regions("CAM_FRONT", SIZE).ignore.any()


def test_coverage_is_that_of_the_exact_masks_where_it_is_known(data, annotated):
    exact, made = KeyframeDataset(data, "train"), KeyframeDataset(data, "train", masks=annotated)
    truth, coverage = exact[0].coverage(CAMERAS, (4, 7)), made[0].coverage(CAMERAS, (4, 7))
    assert coverage.shape == (6, 28) and coverage.dtype == np.float32
    assert not np.isnan(coverage).any()  # a thin band leaves more than half of every cell
    np.testing.assert_array_equal(coverage >= 0.5, truth >= 0.5)


def test_coverage_is_not_known_where_only_doubtful_things_are(data, tmp_path):
    made = KeyframeDataset(data, "train", masks=annotate(data, tmp_path / "m", accept=0.95, band=0.0))
    coverage = made[0].coverage(CAMERAS, (4, 6)).reshape(6, 4, 6)
    assert np.isnan(coverage[:, :, 4:]).all()
    assert (coverage[:, :, :4] == 0).all()


def test_doubtful_pixels_do_not_count_in_the_coverage():
    mask, ignore = np.zeros((4, 8), bool), np.zeros((4, 8), bool)
    mask[:, 1:3] = True
    ignore[:, 2:4] = True
    ignore[:3, 4:8] = True
    coverage = cell_coverage(mask, 1, 2, ignore)
    assert coverage[0] == pytest.approx(0.5)  # one of the two columns that count
    assert np.isnan(coverage[1])  # only a quarter counts


def test_masks_of_another_split_are_refused(data, annotated):
    with pytest.raises(InputError, match="the masks are of split train, the data of split val: splits do not mix"):
        KeyframeDataset(data, "val", masks=annotated)
    with pytest.raises(InputError, match="the data of split none"):
        KeyframeDataset(data, masks=annotated)
    with pytest.raises(InputError, match="splits do not mix"):
        open_source(data, "val", masks=annotated)


def test_unfinished_annotation_is_refused(data, tmp_path):
    annotate(data, tmp_path / "m", limit=1)
    with pytest.raises(InputError, match="not complete; run fastdrive annotate to its end"):
        KeyframeDataset(data, "train", masks=tmp_path / "m")


def test_masks_of_other_samples_are_refused(data, annotated, tmp_path):
    other = write_dataset(tmp_path / "longer", scenes=2, keyframes=3, size=SIZE)
    with pytest.raises(InputError, match=r"no mask of CAM_FRONT/s0k2 \(6 of 18 are absent\)"):
        KeyframeDataset(other, "train", masks=annotated)


def test_changed_or_missing_mask_is_refused(data, annotated):
    made = KeyframeDataset(data, "train", masks=annotated)
    path = annotated / "masks" / "CAM_FRONT" / "s0k0.png"
    cv2.imwrite(str(path), np.ones(SIZE, np.uint8))
    with pytest.raises(InputError, match=r"CAM_FRONT/s0k0\.png is not the file that was written"):
        made[0].load_regions("CAM_FRONT", SIZE)
    path.unlink()
    with pytest.raises(InputError, match=r"CAM_FRONT/s0k0\.png is missing"):
        made[0].load_regions("CAM_FRONT", SIZE)


def test_folder_without_label_table_is_named(data, tmp_path):
    with pytest.raises(InputError, match="without its label table"):
        KeyframeDataset(data, "train", masks=tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match=r"manifest\.json: no manifest of masks"):
        KeyframeDataset(data, "train", masks=tmp_path)


def test_broken_index_is_named(data, annotated):
    (annotated / "images.jsonl").write_text('{"camera": "CAM_FRONT"}\n')
    with pytest.raises(InputError, match=r"images\.jsonl: broken"):
        KeyframeDataset(data, "train", masks=annotated)


def test_exact_masks_of_a_folder_load_through_the_same_class(data):
    regions = MaskFolder(data).load("CAM_BACK", "s0k0", SIZE)
    assert regions.foreground[:, 85:].all() and not regions.foreground[:, :75].any() and regions.ignore is None


def test_ids_in_doubt_may_be_one_or_several(tmp_path):
    path = tmp_path / "labels.json"
    table = {"labels": {"road": 1}, "foreground_groups": {"road": ["road"]}}
    for ignore, expected in ((255, (255,)), ([254, 255], (254, 255)), ([], ())):
        path.write_text(json.dumps({**table, "ignore": ignore}))
        assert LabelTable.load(path).ignore == expected
    for ignore in (256, -1, "road", [None]):
        path.write_text(json.dumps({**table, "ignore": ignore}))
        with pytest.raises(InputError, match="no usable label table"):
            LabelTable.load(path)
