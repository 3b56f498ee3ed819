"""What VLA training reads: arrays of pixels, labels and texts, kept on disk by dataset."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from fastdrive_node.errors import InputError
from fastdrive_node.planning.answer_format import format_answer
from fastdrive_training.data.adapters import open_source
from fastdrive_training.vla.data import IGNORE, NO_GAP_M, cell_labels, prepare
from tests.training.tiny_nuscenes import write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "toy", scenes=1, keyframes=10)


@pytest.fixture(scope="module")
def data(dataset, tiny_vla, tmp_path_factory):
    return prepare(tiny_vla, open_source(dataset, "train"), tmp_path_factory.mktemp("cache"))


def test_only_keyframes_with_a_future_are_prepared(data) -> None:
    assert len(data) == 4  # ten keyframes at 2 Hz, of which the last six have less than 3 s before them
    assert [each.shape for each in data.pixels] == [(4, 6, 3, 112, 224)]
    assert data.rows.tolist() == [[0], [1], [2], [3]]
    assert (data.lights == IGNORE).all()
    assert (data.gaps == NO_GAP_M).all()
    assert data.speeds == pytest.approx(np.hypot(*data.futures[:, 0].T) / 0.5, rel=0.05)


def test_prepared_answers_are_the_futures_as_text(data, tiny_vla) -> None:
    text = tiny_vla.tokenizer.decode(data.answers[1].tolist())
    assert text == format_answer(data.futures[1], tiny_vla.spec.answer) + "<|im_end|>"


def test_prompts_come_with_the_whole_history_and_with_shorter_ones(data, tiny_vla) -> None:
    texts = [tiny_vla.tokenizer.decode(row.tolist()) for row in data.prompts[3]]
    unknown = [text.count("?") for text in texts]
    assert unknown[1] > unknown[2] > unknown[3] >= unknown[0]


def test_a_second_run_reads_what_the_first_prepared(dataset, tiny_vla, tmp_path) -> None:
    first = prepare(tiny_vla, open_source(dataset, "train"), tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    again = prepare(tiny_vla, open_source(dataset, "train"), tmp_path)
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert np.array_equal(first.pixels[0], again.pixels[0])


def test_a_dataset_that_was_made_again_is_read_again(tiny_vla, tmp_path) -> None:
    root, futures = tmp_path / "again", []
    for speed in (4.0, 6.0):
        shutil.rmtree(root, ignore_errors=True)
        write_dataset(root, scenes=1, keyframes=8, speed=speed)
        futures.append(np.array(prepare(tiny_vla, open_source(root, "train"), tmp_path / "cache").futures))
    assert futures[0].shape == futures[1].shape
    assert futures[1][0, -1, 0] == pytest.approx(1.5 * futures[0][0, -1, 0], rel=1e-3)


def test_a_dataset_without_futures_is_refused(tiny_vla, tmp_path) -> None:
    short = write_dataset(tmp_path / "short", scenes=1, keyframes=3)
    with pytest.raises(InputError, match="none of the 3 items has a recorded future"):
        prepare(tiny_vla, open_source(short, "train"), tmp_path / "cache")


def test_a_small_object_names_its_cell() -> None:
    mask = np.full((112, 224), 2, np.uint8)
    mask[3:5, 3:9] = 10  # 2 x 4 of the 7 x 7 px of the first cell
    cells = cell_labels(mask, 16, 32)
    assert cells[0, 0] == 10
    assert (cells == 2).sum() == 16 * 32 - 1
