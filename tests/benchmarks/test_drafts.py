"""Forwards that drafted answers take: by tokens alone, and from other first drafts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.studies import drafts, first_drafts
from fastdrive_node.families.spec import spec_json
from fastdrive_node.families.templates import TEMPLATES
from fastdrive_node.types import EgoHistory, EgoState
from tests.real_tokenizer import qwen_tokenizer

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
BAG, TRUTH = SHARED / "nuscenes_scene0103_mcap", SHARED / "scene0103" / "scene0103_gt.json"
TOPICS = ROOT / "config" / "topics_nuscenes.yaml"
SCENE = ["--bag", str(BAG), "--topics", str(TOPICS), "--truth", str(TRUTH)]


@pytest.fixture(scope="module")
def impromptu(tmp_path_factory) -> Path:
    """A VLA directory with Qwen's tokenizer and no weights."""
    folder = tmp_path_factory.mktemp("vlas") / "impromptu-1v"
    folder.mkdir()
    template = TEMPLATES["impromptu-1v"]()
    (folder / "vla.json").write_text(json.dumps(spec_json(template.spec)))
    (folder / "prompt.txt").write_text(template.prompt)
    qwen_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.skipif(not TRUTH.exists(), reason="scene-0103 (../shared/data) is not on this machine")
def test_forwards_of_the_recorded_scene_are_the_committed_ones(impromptu, tmp_path):
    drafts.main(["tokens", "--vla", str(impromptu), *SCENE, "--json", str(tmp_path / "f.json")])
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures == json.loads((ROOT / "benchmarks" / "results" / "draft_tokens_recorded.json").read_text())
    assert figures["points"] == [6, 5, 4, 3]


@pytest.mark.skipif(not TRUTH.exists(), reason="scene-0103 (../shared/data) is not on this machine")
def test_a_scene_with_other_futures_is_refused(impromptu, tmp_path):
    truth = json.loads(TRUTH.read_text())
    truth["frames"] = truth["frames"][:3]
    mask = tmp_path / truth["drivable"]["file"]
    mask.touch()
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    with pytest.raises(SystemExit, match=r"truth.json: frames: 3, but .* has 4 with odometry"):
        drafts.main(["tokens", "--vla", str(impromptu), *SCENE[:-1], str(tmp_path / "truth.json")])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["tokens", "--vla", "x"], "give either --dataset, or --bag and --truth"),
        (["tokens", "--vla", "x", "--bag", "b"], "--bag and --truth: one of them is missing"),
        (["model", "--bag", "b", "--truth", "t"], "--bag: only tokens takes one"),
        (["tokens", "--dataset", "d"], "--vla: tokens needs a VLA directory"),
    ],
)
def test_arguments_that_do_not_fit_are_told(given, told, capsys):
    with pytest.raises(SystemExit):
        drafts.parse_arguments(given)
    assert told in capsys.readouterr().err


def test_a_previous_plan_goes_on_from_the_vehicle():
    plan = np.array([[2.0, 0.0], [4.0, 0.0], [6.0, 1.0]])
    then, now = EgoState(0, 10, 5, math.pi / 2, 4), EgoState(0, 10.5, 7.25, math.pi, 4)
    np.testing.assert_allclose(first_drafts.moved(plan, then, now), [[0, -2], [1, -4], [2, -6]], atol=1e-12)


def keyframe(speed: float, factor: float, previous: float | None = None) -> first_drafts.DraftedKeyframe:
    """Straight on, with an answer and a previous plan of so many times the constant turn."""
    missing: Any = None
    history = EgoHistory((EgoState(0, 0, 0, 0, speed), EgoState(0, -speed / 2, 0, 0, speed)))
    turn = np.stack([speed * np.arange(1, 4) * 0.5, np.zeros(3)], axis=1)
    before = None if previous is None else previous * turn
    return first_drafts.DraftedKeyframe(history, missing, missing, missing, factor * turn, turn, before)


def test_a_linear_head_drafts_what_its_answers_differ_by():
    fitted = [keyframe(speed, 1.2) for speed in np.linspace(1, 20, 60)]
    drafted = first_drafts.LinearHead(fitted, both=False).draft(keyframe(8.5, 1.0))
    np.testing.assert_allclose(drafted, 1.2 * keyframe(8.5, 1.0).turn_m, atol=0.2)
    assert abs(drafted[-1, 0] - keyframe(8.5, 1.0).turn_m[-1, 0]) > 2


def test_the_draft_that_was_nearer_before_is_chosen():
    keyframes = [keyframe(5, 1.0), keyframe(5, 1.5, 1.4), keyframe(5, 1.0, 1.4), keyframe(5, 1.0, 1.4)]
    chosen = first_drafts.drafts_of(keyframes, keyframes)["chosen"]
    assert [draft[0, 0] / 2.5 for draft in chosen] == pytest.approx([1, 1, 1.4, 1])
