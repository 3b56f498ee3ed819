"""Loading of camera images, whole and scaled."""

from pathlib import Path

from benchmarks.studies.images import SAMPLE, enlarged, recorded, run
from fastdrive_node.families import load_vla
from fastdrive_node.families.spec import default_vla_dir


def test_scaled_images_are_nearly_the_whole_ones(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    vla = load_vla(default_vla_dir())
    frames = enlarged(recorded(vla, SAMPLE, None))
    figures = run(vla, frames, runs=1)
    assert figures["images"] == 6 and figures["size"] == [1600, 900] and figures["model_size"] == [112, 224]
    assert 0 < figures["difference"] < 1.0  # of 255
    for row in figures["rows"].values():
        assert 0 < row["preprocess_median_ms"] < row["median_ms"] <= row["p99_ms"] * 1.001
