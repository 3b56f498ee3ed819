"""Loading of camera images, whole and scaled."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.studies import images, jpeg_decoders
from benchmarks.studies.images import SAMPLE, enlarged, recorded, run
from fastdrive_node.errors import InputError
from fastdrive_node.families import load_vla
from fastdrive_node.families.spec import default_vla_dir
from fastdrive_node.ros.cdr import ImageView
from fastdrive_node.ros.images import ImageLoader


def test_scaled_images_are_nearly_the_whole_ones(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    vla = load_vla(default_vla_dir())
    frames = enlarged(recorded(vla, SAMPLE, None))
    figures = run(vla, frames, runs=1)
    assert figures["images"] == 6 and figures["size"] == [1600, 900] and figures["model_size"] == [112, 224]
    assert 0 < figures["difference"] < 1.0  # of 255
    for row in figures["rows"].values():
        assert 0 < row["preprocess_median_ms"] < row["median_ms"] <= row["p99_ms"] * 1.001


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    return load_vla(default_vla_dir())


def test_decoders_of_jpegs_are_compared_with_the_node_s(toy, monkeypatch):
    def brighter():
        return lambda data, least: jpeg_decoders.pillow(data, least) // 2 * 2 + 1

    def missing():
        raise ImportError("No module named 'missing'")

    others = {"cv2.imdecode, reduced": jpeg_decoders.opencv, "brighter": brighter, "missing": missing}
    monkeypatch.setattr(jpeg_decoders, "OTHERS", others)
    frames = enlarged(recorded(toy, SAMPLE, None))
    figures = images.run_decoders(toy, frames, runs=1)
    assert figures["decoded"] == [225, 400] and figures["absent"] == {"missing": "No module named 'missing'"}
    rows = figures["rows"]
    assert list(rows) == ["PIL, draft", "cv2.imdecode, reduced", "brighter"]
    assert rows["PIL, draft"]["ratio_to_pil"] == [1, 1] and rows["PIL, draft"]["difference_max"] == 0
    assert rows["cv2.imdecode, reduced"]["difference_mean"] < 1
    assert 0.3 < rows["brighter"]["difference_mean"] < 0.7 and rows["brighter"]["difference_max"] == 1


def test_raw_images_have_no_decoders_of_jpegs(toy):
    frames = recorded(toy, SAMPLE, None)
    view = ImageView(0, "CAM_FRONT", 2, 2, "rgb8", False, 6, memoryview(bytes(12)))
    raw = [replace(frames[0], load=ImageLoader("CAM_FRONT", view))]
    with pytest.raises(InputError, match="CAM_FRONT: no JPEG; give a bag with JPEGs"):
        images.run_decoders(toy, raw, runs=1)


@pytest.mark.parametrize(("least", "by"), [((112, 224), 4), ((113, 200), 8), ((226, 400), 2), ((900, 1601), 1)])
def test_the_fraction_is_the_smallest_that_is_large_enough(least, by):
    assert jpeg_decoders.divisor((900, 1600), least) == by


def test_images_of_other_sizes_have_no_difference():
    small, large = np.zeros((2, 2, 3), np.uint8), np.full((2, 3, 3), 255, np.uint8)
    assert jpeg_decoders.difference([small], [large])["difference_mean"] is None
    assert jpeg_decoders.difference([small], [small + 255]) == {"difference_mean": 255.0, "difference_max": 255}
