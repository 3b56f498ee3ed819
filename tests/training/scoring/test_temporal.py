"""What the temporal terms do to a stream of keyframes, on a small written dataset with scores put in."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch

from fastdrive_node.cli import main
from fastdrive_node.errors import InputError
from fastdrive_node.families import load_vla
from fastdrive_node.pruning.catalog import ScoreOptions, TemporalSettings
from fastdrive_node.pruning.checkpoint import save_pruner
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_node.types import CAMERAS
from fastdrive_training.data.nuscenes.keyframes import KeyframeDataset
from fastdrive_training.data.nuscenes.step_outs import sightings
from fastdrive_training.scoring.temporal import temporal_figures
from fastdrive_training.vla.tiny_model import TinySize, build_tiny_vla
from tests.training.tiny_nuscenes import write_dataset

CELL = 28  # px, of images of 224 x 112 with a grid of 8 x 4
TOKEN = 2 * 8 + 3  # of CAM_FRONT, which shows the pedestrian
NOTHING = TemporalSettings(change=0.0, memory=0.0, max_gap_s=0.75)


def entry(since, pixels=None, number=1):
    return {"number": number, "crossing": True, "gap_m": 9.0, "pixels": pixels or {}, "keyframes_since_visible": since}


def write_masks(root, token, camera="CAM_FRONT", number=1, rows=(56, 84), columns=(84, 98)):
    mask = np.zeros((112, 224), np.uint8)
    mask[slice(*rows), slice(*columns)] = number
    path = root / "step_out" / camera / f"{token}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), mask)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two scenes of six keyframes, 0.5 s apart; in the first a pedestrian comes into sight in the third keyframe."""
    pixels = {"CAM_FRONT": 14 * CELL}
    extras = {
        "s0k1": {"step_outs": [entry(None)]},
        **{f"s0k{2 + age}": {"step_outs": [entry(age, pixels)]} for age in range(4)},
        "s1k0": {"step_outs": [entry(None)]},
    }
    path = write_dataset(tmp_path_factory.mktemp("data") / "d", scenes=2, keyframes=6, extras=extras)
    for age in range(4):
        write_masks(path, f"s0k{2 + age}")
    return path


@pytest.fixture(scope="module")
def vla(tmp_path_factory):
    size = TinySize(tower_depth=1, full_attention_blocks=(0,), layers=1)  # its scores are put in
    return load_vla(build_tiny_vla(tmp_path_factory.mktemp("vla") / "tiny", seed=0, size=size))


class Scores:
    """Stands in for a pruner: the scores of one keyframe after the other."""

    def __init__(self, *rows):
        self._rows = iter(rows)

    def __call__(self, tokens, grid):
        return torch.as_tensor(next(self._rows), dtype=torch.float32).view(6, 32)


def falling(first=(), count=192):
    """Scores that fall with the index, but ``first`` come first."""
    scores = -np.arange(count, dtype=np.float32)
    scores[list(first)] = 10.0
    return scores


def figures(root, vla, rows, settings=NOTHING):
    return temporal_figures(KeyframeDataset(root), vla, Scores(*rows), ScoreOptions(temporal=settings))


def test_pedestrians_are_followed_for_a_second(root, vla):
    missed, kept = falling(range(100, 148)), falling([TOKEN])
    rows = [missed, missed, missed, kept, kept, missed, *[missed] * 6]
    result = figures(root, vla, rows)
    assert (result["pedestrians"], result["sightings"], result["interval_s"]) == (1, 3, pytest.approx(0.5))
    plain = result["keep"]["0.25"]["plain"]
    assert plain["by_keyframe"] == [0.0, 1.0, 1.0]
    assert plain["pedestrian_pixels"] == plain["pedestrian_tokens"] == pytest.approx(2 / 3)
    assert result["keep"]["0.75"]["plain"]["by_keyframe"] == [1.0, 1.0, 1.0]


def test_flicker_is_the_share_that_the_keyframe_before_had_not(root, vla):
    one, other = falling(), falling(range(144, 168))  # half of the best 48 are others
    result = figures(root, vla, [one, other, one, one, one, one, *[one] * 6])
    assert result["keep"]["0.25"]["plain"]["flicker"] == pytest.approx((0.5 + 0.5) / 10)
    still = figures(root, vla, [one] * 6 + [other] * 6)  # scenes do not follow each other
    assert still["keep"]["0.25"]["plain"]["flicker"] == 0.0


def test_foreground_recall_is_that_of_the_masks(root, vla):
    right = [index for index in range(192) if index % 8 >= 5]  # the right third of each image is road
    result = figures(root, vla, [falling(right)] * 12)
    assert result["keep"]["0.5"]["plain"]["foreground_recall"] == 1.0
    assert result["keep"]["0.25"]["plain"]["foreground_recall"] == pytest.approx(48 / 72)


def test_weights_of_zero_change_no_figure(root, vla):
    rows = [falling(range(start, start + 40)) for start in range(0, 120, 10)]
    result = figures(root, vla, rows)
    for row in result["keep"].values():
        assert row["plain"] == row["temporal"] and row["better"] == row["worse"] == 0


def test_memory_shows_in_the_figures(root, vla):
    high, low = falling([TOKEN]), falling(range(100, 148))
    rows = [high, high, high, low, low, low, *[high] * 6]
    result = figures(root, vla, rows, TemporalSettings(change=0.0, memory=0.9, max_gap_s=0.75))
    row = result["keep"]["0.25"]
    assert row["plain"]["by_keyframe"] == [1.0, 0.0, 0.0] and row["temporal"]["by_keyframe"] == [1.0, 1.0, 1.0]
    assert (row["better"], row["worse"]) == (1, 0)
    assert row["temporal"]["flicker"] < row["plain"]["flicker"]


def test_what_became_of_the_state_is_counted(root, vla):
    rows = [falling()] * 12
    assert figures(root, vla, rows)["state"] == {"new": 2, "used": 10}
    assert figures(root, vla, rows, TemporalSettings())["state"] == {"dropped: gap": 10, "new": 2}


def test_a_dataset_without_pedestrians_still_has_flicker(tmp_path, vla):
    plain = write_dataset(tmp_path / "plain", scenes=1, keyframes=3, masks=False)
    result = figures(plain, vla, [falling()] * 3)
    row = result["keep"]["0.5"]["temporal"]
    assert result["pedestrians"] == 0 and row["pedestrian_pixels"] is None and row["by_keyframe"] == []
    assert row["foreground_recall"] is None and row["flicker"] == 0.0


def test_a_sighting_has_the_pixels_of_each_token(root):
    dataset = KeyframeDataset(root)
    found = sightings(dataset.root, dataset[2], CAMERAS, (4, 8))
    assert [(each.number, each.keyframes_since) for each in found] == [(1, 0)]
    assert found[0].pixels.sum() == pytest.approx(14 * CELL) and found[0].pixels[0, TOKEN] == pytest.approx(14 * CELL)
    assert sightings(dataset.root, dataset[1], CAMERAS, (4, 8)) == []
    assert sightings(dataset.root, dataset[2], CAMERAS[1:], (4, 8)) == []


@pytest.mark.parametrize(
    "bad",
    [5, {}, {**entry(0), "number": 0}, {**entry(0), "number": "1"}, {**entry(0), "pixels": []}, entry(-1), entry("0")],
)
def test_broken_entries_are_refused_with_their_sample(tmp_path, bad):
    path = write_dataset(tmp_path / "d", scenes=1, keyframes=1, extras={"s0k0": {"step_outs": [bad]}})
    dataset = KeyframeDataset(path)
    with pytest.raises(InputError, match=r"extras\.json: step_outs of sample s0k0"):
        sightings(dataset.root, dataset[0], CAMERAS, (4, 8))


def test_a_missing_mask_is_refused_with_its_file(tmp_path):
    extras = {"s0k0": {"step_outs": [entry(0, {"CAM_FRONT": 9})]}}
    dataset = KeyframeDataset(write_dataset(tmp_path / "d", scenes=1, keyframes=1, extras=extras))
    with pytest.raises(InputError, match=r"step_out/CAM_FRONT/s0k0\.png: is missing"):
        sightings(dataset.root, dataset[0], CAMERAS, (4, 8))


def test_world_states_lie_in_one_frame(root):
    """Scene 0 drives straight at 4 m/s."""
    dataset = KeyframeDataset(root)
    states = [dataset[index].find_world_state() for index in range(3)]
    assert [state.x_m for state in states] == pytest.approx([100.0, 102.0, 104.0])
    assert states[2].speed_mps == pytest.approx(4.0)


def test_the_command_gives_the_figures(tmp_path, root, vla):
    torch.manual_seed(0)
    file = tmp_path / "pruner.safetensors"
    save_pruner(file, ReconPruner(vla.family, vla.config.text_config), vla.encoder_fingerprint)
    arguments = ["score", str(root), "--vla", str(vla.path), "--pruner", str(file), "--temporal"]
    output = ["--json", str(tmp_path / "figures.json")]
    assert main([*arguments, "--temporal-max-gap-s", "0.75", "--temporal-memory", "0.3", *output]) == 0
    result = json.loads((tmp_path / "figures.json").read_text())["temporal"]
    assert result["settings"]["memory"] == 0.3 and result["state"] == {"new": 2, "used": 10}
    assert set(result["keep"]) == {"0.75", "0.5", "0.375", "0.25", "0.1875", "0.125"}


@pytest.mark.parametrize(
    "arguments,message",
    [(["--limit", "3"], "leave out --limit"), (["--temporal-memory", "1.5"], "--temporal-memory: 1.5 is not in")],
)
def test_options_that_do_not_fit_are_refused(tmp_path, root, vla, capsys, arguments, message):
    file = tmp_path / "pruner.safetensors"
    save_pruner(file, ReconPruner(vla.family, vla.config.text_config), vla.encoder_fingerprint)
    assert main(["score", str(root), "--vla", str(vla.path), "--pruner", str(file), "--temporal", *arguments]) == 1
    assert message in capsys.readouterr().err
