"""Keyframes at other speeds: samples that share images, from labels in extras.json."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from fastdrive_node.errors import InputError
from fastdrive_node.families.spec import FramesSpec
from fastdrive_training.data.adapters import open_source
from fastdrive_training.vla import train_planner
from fastdrive_training.vla.data import prepare
from tests.training.tiny_nuscenes import write_dataset

SLOW = {"speed_mps": 1.5, "yaw_rate_radps": 0.01, "future_xy": [[0.6 * step, 0.0] for step in range(1, 7)]}
FAST = {"speed_mps": 9.0, "yaw_rate_radps": 0.06, "future_xy": [[4.0 * step, 0.1] for step in range(1, 7)]}


def write(root, **changes):
    """Ten keyframes, four with a future; the second of them has labels for two other speeds, with ``changes``."""
    write_dataset(root, scenes=1, keyframes=10)
    tokens = open_source(root, "train").names
    (root / "extras.json").write_text(json.dumps({tokens[1]: {"other_speeds": [SLOW, FAST | changes]}}))
    return open_source(root, "train")


def test_a_keyframe_at_other_speeds_is_a_sample_with_the_same_images(tiny_vla, tmp_path) -> None:
    source = write(tmp_path / "toy")
    plain, data = prepare(tiny_vla, source, tmp_path), prepare(tiny_vla, source, tmp_path, other_speeds=True)
    assert len(plain) == 4 and len(data) == 6
    assert data.rows.tolist() == [[0], [1], [1], [1], [2], [3]] and len(data.pixels[0]) == 4
    assert data.speeds[2:4].tolist() == [1.5, 9.0]
    assert np.allclose(data.futures[2:4], [SLOW["future_xy"], FAST["future_xy"]])
    assert np.array_equal(data.futures[[0, 1, 4, 5]], plain.futures)
    assert np.array_equal(data.prompts[[0, 1, 4, 5]], plain.prompts)


def test_of_a_keyframe_at_another_speed_no_past_is_known(tiny_vla, tmp_path) -> None:
    data = prepare(tiny_vla, write(tmp_path / "toy"), tmp_path, other_speeds=True)
    decode = tiny_vla.tokenizer.decode
    short, *other = (decode(prompt.tolist()) for prompt in (data.prompts[1][1], *data.prompts[3]))
    assert set(other) == {other[0]}
    assert other[0].count("?") == short.count("?") > decode(data.prompts[1][0].tolist()).count("?")
    assert "9" in other[0] and other[0] != short


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speed_mps": -1.0}, r"other_speeds of extras.json: 1.speed_mps: -1.0: .* write the dataset anew"),
        ({"future_xy": [[1.0, 0.0]]}, r"1.future_xy: .* at least 6 items"),
        ({"future_xy": [[float("nan"), 0.0]] * 6}, r"1.future_xy.0.0: nan"),
        ({"future_xy": [[100.0, 0.0]] * 6}, r"1.future_xy.0.0: 100.0"),
        ({"speed_mps": "9.0"}, r"1.speed_mps"),
        ({"yaw_rate": 0.0}, r"1.yaw_rate"),
    ],
)
def test_labels_that_are_not_the_simulators_are_refused(tiny_vla, tmp_path, changes, message) -> None:
    with pytest.raises(InputError, match=message):
        prepare(tiny_vla, write(tmp_path / "toy", **changes), tmp_path, other_speeds=True)
    assert not list(tmp_path.rglob("pixels-*.npy"))  # told before images are decoded


def test_a_checkpoint_of_before_the_key_serves_a_recipe_without_it() -> None:
    plain = train_planner.LanguageRecipe("d", "o").identity
    assert "other_speeds" not in plain
    assert train_planner.LanguageRecipe("d", "o", other_speeds=True).identity == plain | {"other_speeds": True}


def test_a_vla_that_reads_past_images_is_refused(tiny_vla, tmp_path) -> None:
    frames = replace(tiny_vla, spec=replace(tiny_vla.spec, frames=FramesSpec(2, 0.5)))
    with pytest.raises(InputError, match="frames: past images show the true speed"):
        prepare(frames, write(tmp_path / "toy"), tmp_path, other_speeds=True)


def test_a_dataset_without_labels_for_other_speeds_is_refused(tiny_dir, tmp_path) -> None:
    write_dataset(tmp_path / "toy", scenes=1, keyframes=10)
    recipe = {
        "kind": "vla_language", "dataset": str(tmp_path / "toy"), "out": str(tmp_path / "run"), "start": str(tiny_dir),
        "cache": str(tmp_path / "cache"), "other_speeds": True, "device": "cpu", "workers": 0,
    }  # fmt: skip
    with pytest.raises(InputError, match="toy: no labels for other speeds; write it with `fastdrive sim dataset"):
        train_planner.train(recipe, False)
