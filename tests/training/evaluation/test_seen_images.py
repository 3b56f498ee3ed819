"""``fastdrive evaluate`` for VLAs of past images and of several image sizes: what the node would see and say."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from fastdrive_node.errors import AnswerError, FrameSetError, InputError, ModelError
from fastdrive_node.families import load_vla
from fastdrive_node.planning.pipeline import Pipeline
from fastdrive_node.types import CameraFrame, FrameSet
from fastdrive_training.data.nuscenes.keyframes import KeyframeDataset
from fastdrive_training.evaluation import OpenLoopSettings, evaluate, segments
from tests.generation import SHALLOW, untrained_vla, vary_answers
from tests.training.tiny_nuscenes import write_dataset

FRAMES = {"count": 2, "interval_s": 0.5, "tolerance_s": 0.1}
SAMPLES = ("s0k0", "s0k1", "s1k0", "s1k1")  # keyframes with 3 s of future


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    return untrained_vla(tmp_path_factory.mktemp("vla") / "tiny", replace(SHALLOW, layers=1))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return KeyframeDataset(write_dataset(tmp_path_factory.mktemp("data") / "d", scenes=2, keyframes=8))


@pytest.fixture
def vla(untrained, tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "measure", lambda _, rows, *__, **___: [{} for _ in rows])

    def make(**fields):
        folder = shutil.copytree(untrained, tmp_path / "vla")
        spec = json.loads((folder / "vla.json").read_text())
        (folder / "vla.json").write_text(json.dumps({**spec, **fields}))
        loaded = load_vla(folder)
        vary_answers(loaded, seed=0)
        return loaded

    return make


def lines(dataset, vla, tmp_path, **settings):
    """The lines of the row without a pruner, by sample."""
    out = tmp_path / "run"
    evaluate(dataset, vla, OpenLoopSettings(pruners=("none",), out=out, **settings), progress=False)
    found = pq.read_table(out / "samples.parquet").to_pylist()
    return {line["sample"]: line for line in found if line["pruner"] == "none"}


def said(dataset, vla, positions):
    """What the pipeline of a vehicle says at the last of some items, the others seen before."""
    pipeline, text = Pipeline(vla, drafts=False), ""
    for position in positions:
        item = dataset[position]
        frames = tuple(
            CameraFrame(camera, item.stamp_ns, item.stamp_ns, lambda i=item, c=camera: i.load_image(c))
            for camera in vla.spec.cameras
        )
        try:
            pipeline.plan(FrameSet(frames, item.stamp_ns), item.known_history, item.command)
        except FrameSetError:
            continue
        except AnswerError as error:
            text = error.output.text
    return text


def test_past_images_are_those_of_earlier_keyframes(dataset, vla, tmp_path):
    reader = vla(frames=FRAMES)
    found = lines(dataset, reader, tmp_path)
    assert sorted(found) == sorted(SAMPLES)
    for first in ("s0k0", "s1k0"):
        assert found[first]["refused"] and "no image 0.5 s before t0" in found[first]["reason"]
        assert found[first]["kept"] is None and found[first]["text"] == ""
    for second, positions in (("s0k1", (0, 1)), ("s1k1", (8, 9))):
        assert len(found[second]["kept"]) == reader.tokens == 2 * 192
        assert found[second]["text"] == said(dataset, reader, positions) != ""


def test_images_that_are_missing_are_left_out_by_the_vlas_rule(dataset, vla, tmp_path):
    reader = vla(frames={**FRAMES, "missing": "leave_out"})
    found = lines(dataset, reader, tmp_path, batch=4)
    assert [len(found[sample]["kept"]) for sample in SAMPLES] == [192, 384, 192, 384]
    assert found["s0k0"]["text"] == said(dataset, reader, (0,)) != ""
    assert found["s1k1"]["text"] == said(dataset, reader, (8, 9)) != ""


def test_a_pruner_keeps_its_part_of_what_is_there(dataset, vla, tmp_path):
    out = tmp_path / "run"
    settings = OpenLoopSettings(pruners=("uniform",), drops=(0.5,), out=out)
    evaluate(dataset, vla(frames={**FRAMES, "missing": "leave_out"}), settings, progress=False)
    rows = [line for line in pq.read_table(out / "samples.parquet").to_pylist() if line["pruner"] == "uniform"]
    assert [len(line["kept"]) for line in rows] == [96, 192, 96, 192]


def test_times_that_no_keyframe_has_are_missing_images(dataset, vla, tmp_path):
    found = lines(dataset, vla(frames={"count": 2, "interval_s": 0.25, "tolerance_s": 0.1}), tmp_path)
    assert all(line["refused"] and "no image 0.25 s before t0" in line["reason"] for line in found.values())


def test_features_that_were_kept_give_the_same_answers(dataset, vla, tmp_path):
    reader = vla(frames=FRAMES)
    first = lines(dataset, reader, tmp_path)
    shutil.rmtree(tmp_path / "run" / "parts")  # what is left is the encoder's
    assert lines(dataset, reader, tmp_path) == first


def test_the_oracle_does_not_know_past_images(dataset, vla):
    with pytest.raises(ModelError, match=r"vla\.json: frames: the pruner oracle gives a VLA the images of t0 only"):
        evaluate(dataset, vla(frames=FRAMES), OpenLoopSettings(pruners=("oracle",), drops=(0.5,)), progress=False)


def test_a_dataset_without_stamps_cannot_serve_past_images(dataset, vla, monkeypatch):
    import dataclasses

    read = KeyframeDataset.__getitem__
    monkeypatch.setattr(
        KeyframeDataset, "__getitem__", lambda self, index: dataclasses.replace(read(self, index), stamp_ns=None)
    )
    with pytest.raises(InputError, match="has no stamp, and a VLA with frames"):
        evaluate(dataset, vla(frames=FRAMES), OpenLoopSettings(pruners=("none",)), progress=False)


def test_the_oracle_knows_the_foreground_of_cameras_of_several_sizes(dataset, vla, tmp_path):
    reader, out = vla(image_sizes={"CAM_BACK": {"width": 168, "height": 56}}), tmp_path / "run"
    evaluate(dataset, reader, OpenLoopSettings(pruners=("oracle",), drops=(0.75,), out=out), progress=False)
    rows = pq.read_table(out / "samples.parquet").to_pylist()
    kept = next(row["kept"] for row in rows if row["pruner"] == "oracle")
    columns = [column / columns for rows, columns in reader.grids for _ in range(rows) for column in range(columns)]
    foreground = np.flatnonzero(np.array(columns) >= 2 / 3)  # the right third of every image
    assert len(foreground) == 5 * 8 + 4 and len(kept) == 43 and set(kept) < set(foreground)


def test_cameras_of_several_sizes_are_evaluated(dataset, vla, tmp_path):
    reader = vla(image_sizes={"CAM_BACK": {"width": 112, "height": 56}})
    found = lines(dataset, reader, tmp_path)
    assert len(found["s0k0"]["kept"]) == reader.tokens == 5 * 32 + 8
    assert found["s0k0"]["text"] == said(dataset, reader, (0,)) != ""
    shutil.rmtree(tmp_path / "run" / "parts")  # what is left is the encoder's
    assert lines(dataset, reader, tmp_path) == found
