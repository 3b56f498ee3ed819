"""Answers of another program: their layouts, the keyframes they belong to, and their figures."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fastdrive_node.cli import main
from fastdrive_node.errors import InputError
from fastdrive_node.families.spec import text_answer
from fastdrive_node.families.templates import TEMPLATES
from fastdrive_node.planning.answer_format import answer_text
from fastdrive_node.planning.pairs import pairs_of
from fastdrive_training.data.adapters import open_source
from fastdrive_training.evaluation.recorded_answers import match, outcome, read_recorded
from tests.training.evaluation.planning_scenes import add_object, edit_table
from tests.training.tiny_nuscenes import write_dataset

IMPROMPTU = TEMPLATES["impromptu-1v"]().spec
SPEED = 4.0


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "d", scenes=1, keyframes=9, speed=SPEED)


@pytest.fixture(scope="module")
def source(root):
    return open_source(root, all_splits=True)


def written(path: np.ndarray) -> str:
    """A path of the rear axle in Impromptu-VLA's words and frame."""
    spec = text_answer(IMPROMPTU)
    return answer_text(pairs_of(path, spec.pairs, spec.interval_s, IMPROMPTU.frame, IMPROMPTU.origin_m), spec)


def straight(speed: float = SPEED) -> np.ndarray:
    return np.stack([speed * 0.5 * np.arange(1, 7), np.zeros(6)], axis=1)


def file_of(folder, rows, array=False):
    path = folder / "answers.jsonl"
    path.write_text(json.dumps(rows) if array else "\n".join(map(json.dumps, rows)) + "\n")
    return path


def judged(folder, root, rows, *more, array=False):
    out = folder / "figures.json"
    arguments = ["evaluate-answers", str(file_of(folder, rows, array)), "--dataset", str(root), "--json", str(out)]
    assert main([*arguments, *map(str, more)]) == 0
    figures = json.loads(out.read_text())
    return figures, {row["name"]: row for row in figures["rows"]}


def sharegpt(text: str, images=()) -> dict:
    turns = [{"role": "user", "content": "Your task ..."}, {"role": "assistant", "content": text}]
    return {"messages": turns, "images": list(images)}


LAYOUTS = {
    "text": lambda text: {"text": text},
    "predict": lambda text: {"prompt": "...", "predict": text, "label": "other"},
    "messages": sharegpt,
    "conversations": lambda text: {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": text}]},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("array", [False, True], ids=["lines", "array"])
def test_every_layout_gives_the_answers_text(tmp_path, layout, array):
    rows = [LAYOUTS[layout](f"answer {number}") | {"id": f"s0k{number}"} for number in range(3)]
    found = read_recorded(file_of(tmp_path, rows, array))
    assert [each.text for each in found] == ["answer 0", "answer 1", "answer 2"]
    assert [each.name for each in found] == ["s0k0", "s0k1", "s0k2"]


def test_answers_in_the_lidars_frame_are_judged_in_the_vehicles(tmp_path, root):
    rows = [{"text": written(straight()), "id": "s0k0"}, {"text": written(straight(SPEED + 1)), "id": "s0k1"}]
    figures, by_name = judged(tmp_path, root, rows)
    assert (figures["answers"], figures["unreadable"], figures["keyframes"]) == (2, 0, 9)
    # exact at 0.5 ... 3 s, and 0.5 m more at each step
    assert by_name["answers"]["l2_at_t"]["3s"] == pytest.approx(3.0 / 2, abs=0.01)
    assert by_name["answers"]["l2_avg_to_t"]["1s"] == pytest.approx((0.5 + 1.0) / 2 / 2, abs=0.01)
    assert by_name["constant-velocity"]["l2_avg_to_t"]["avg"] == pytest.approx(0, abs=1e-6)
    assert by_name["answers"]["scored"] == 2


def test_any_collision_counts_vehicles_alone(tmp_path):
    root = write_dataset(tmp_path / "d", scenes=1, keyframes=9, speed=SPEED)
    add_object(root, "thing", {f"s0k{index}": (109.0, 52.8, 0.0) for index in range(9)})
    plan = straight() + np.stack([np.zeros(6), [0, 0, 0, 0.6, 2.0, 2.5]], axis=1)
    rows = [{"waypoints": plan.tolist(), "sample_token": "s0k0"}]
    row = judged(tmp_path, root, rows)[1]["answers"]
    assert row["collision_any"]["3s"] == row["collision_st_p3"]["3s"] * 6 / 2 == 1
    edit_table(root, "category", lambda table: table[0].update(name="movable_object.barrier"))
    row = judged(tmp_path, root, rows)[1]["answers"]
    assert row["collision_any"]["3s"] == row["collision_uniad"]["3s"] == 0 and row["collision_st_p3"]["3s"] > 0


def test_lists_of_numbers_are_paths_of_the_rear_axle(tmp_path, root):
    _, by_name = judged(tmp_path, root, [{"waypoints": straight().tolist(), "sample_token": "s0k2"}])
    assert by_name["answers"]["l2_at_t"]["avg"] == pytest.approx(0, abs=1e-6)


def test_unreadable_answers_are_counted_and_scored_as_zeros_on_demand_only(tmp_path, root):
    rows = [{"text": written(straight()), "id": "s0k0"}, {"text": "I would stop here.", "id": "s0k1"}]
    rows.append({"waypoints": [[1, 2]], "id": "s0k2"})
    figures, by_name = judged(tmp_path, root, rows)
    assert figures["unreadable"] == 2 and len(figures["reasons"]) == 2
    assert by_name["answers"]["scored"] == 1
    assert by_name["answers"]["l2_at_t"]["3s"] == pytest.approx(0, abs=0.02)
    figures, by_name = judged(tmp_path, root, rows, "--zeros")
    assert figures["unreadable"] == 2 and by_name["answers"]["scored"] == 3
    assert by_name["answers"]["l2_at_t"]["3s"] == pytest.approx(2 / 3 * 3 * SPEED, abs=0.02)


def test_the_questions_name_the_keyframes_by_their_images(tmp_path, root, source):
    images = {token: name for name, token in source.keyframe_of_image.items()}
    questions = tmp_path / "questions.json"
    questions.write_text(json.dumps([sharegpt("", [f"somewhere/{images[token]}"]) for token in ("s0k2", "s0k0")]))
    answers = [{"predict": written(straight())}, {"predict": written(straight())}]
    figures, by_name = judged(tmp_path, root, answers, "--questions", questions)
    assert figures["answers"] == 2 and by_name["answers"]["scored"] == 2
    assert match(read_recorded(file_of(tmp_path, answers)), source, read_recorded(questions)) == [2, 0]


def test_keyframes_without_a_future_are_left_out(tmp_path, root):
    figures, by_name = judged(tmp_path, root, [{"text": written(straight()), "id": f"s0k{k}"} for k in range(9)])
    assert figures["without_future"] == 6 and by_name["answers"]["scored"] == 3


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"text": "a"}], "line 1: names no keyframe; give sample_token, token, id or images"),
        ([{"text": "a", "id": "elsewhere"}], "line 1: elsewhere: no keyframe of"),
        ([{"text": "a", "id": "s0k1"}, {"text": "b", "id": "s0k1"}], "line 2: keyframe s0k1 has an answer already"),
    ],
)
def test_an_answer_must_have_a_keyframe_of_its_own(tmp_path, source, rows, told):
    with pytest.raises(InputError, match=told):
        match(read_recorded(file_of(tmp_path, rows)), source)


@pytest.mark.parametrize("content", ["", "not json\n", "[1, 2]\n", '{"text": "a"}\n3\n'])
def test_a_file_that_holds_no_answers_is_refused(tmp_path, content):
    path = tmp_path / "answers.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=r"answers\.jsonl"):
        read_recorded(path)


def test_as_many_questions_as_answers_are_needed(tmp_path, source):
    answers = read_recorded(file_of(tmp_path, [{"text": "a", "id": "s0k0"}]))
    with pytest.raises(InputError, match="2 questions for 1 answers"):
        match(answers, source, answers * 2)


@pytest.mark.parametrize(
    "waypoints", ["far", [[0, 0]] * 5, [[0, 0, 0]] * 6, [[0, float("nan")]] * 6, [[1e300, 0]] * 6, [[[0]]]]
)
def test_paths_that_are_none_are_unreadable(tmp_path, waypoints):
    (answer,) = read_recorded(file_of(tmp_path, [{"waypoints": waypoints, "id": "s0k0"}]))
    assert outcome(answer, IMPROMPTU).plan_m is None
