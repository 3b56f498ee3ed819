"""The record of a closed-loop run on disk."""

import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastdrive_node.errors import InputError
from fastdrive_node.types import KeptTokens
from fastdrive_sim.drive.kept import masks_by_camera, with_kept
from fastdrive_sim.drive.storage import check_file, hash_run, join_hashes, lines, load_run, save_run
from fastdrive_sim.drive.types import (
    Collision,
    DriveRow,
    EgoStep,
    Lane,
    Light,
    Other,
    PlanStep,
    RunRecord,
    RunStep,
    StaticMap,
    corners,
)

EGO = EgoStep(1 / 3, 2.0, 0.1, 5.0, 0.2, 0.01, 0.02)
CAR = Other(7, "car", 12.0, 3.0, 0.0, 4.5, 1.9, 3.0)


def make_run(seed: int = 3) -> RunRecord:
    square = corners(0, 0, 0, 10, 8)
    light = Light(4, "red", ((1.0, 2.0), (3.0, 4.0)), ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0)))
    map_ = StaticMap(square, 0.5, 20.0, (square,), (Lane(square, square[:2], True),), (square,), (CAR,), 12.0)
    steps = (RunStep(0.0, EGO, (CAR,), (light,), "left", 0.0, -1, 0.0), RunStep(0.1, EGO, (), (), "left", 0.5, 0, 0.1))
    plan = PlanStep(0.0, "planned", "", 0.0, np.array([[1.0, 0.1], [2.0, 0.2]]), np.array([0.5, 1.0]), EGO, "", 5, 10)
    hit = Collision(0.1, CAR, False, 5.0, 2.5, "front", EGO)
    return RunRecord(
        "lead", seed, DriveRow("none"), map_, steps, (plan, PlanStep(0.5, "refused", "no")), (hit,), "collision",
        expert_progress_m=np.array([0.0, 1 / 3]),
    )  # fmt: skip


def test_a_run_is_read_as_it_was_written(tmp_path):
    run = make_run()
    save_run(tmp_path / "run.jsonl", run)
    read = load_run(tmp_path / "run.jsonl")
    assert list(lines(read)) == list(lines(run))
    assert read.steps == run.steps
    assert read.plans[0].xy.tolist() == run.plans[0].xy.tolist()
    assert read.collisions == run.collisions


def test_the_hash_depends_on_the_runs_and_not_on_their_order():
    one, two, three = (hash_run(make_run(number)) for number in (1, 2, 3))
    assert join_hashes([one, two]) == join_hashes([two, one]) != join_hashes([one, three])


def test_the_hash_has_the_name_of_a_pruners_file_and_not_its_folder():
    run = make_run()
    here, there, other = (
        hash_run(replace(run, row=DriveRow(pruner, 0.5)))
        for pruner in ("/here/own.safetensors", "/there/is/own.safetensors", "/here/other.safetensors")
    )
    assert here == there != other


@pytest.mark.parametrize("pruner", ["none", "prune2drive-input", "expert", "constant-velocity"])
def test_the_hash_of_a_row_without_a_pruners_file_is_that_of_its_lines(pruner):
    run = replace(make_run(), row=DriveRow(pruner))
    assert hash_run(run) == hashlib.sha256("\n".join(lines(run)).encode()).hexdigest()


AGAIN = r"delete it, and it is driven again with the same --out$"


@pytest.mark.parametrize("text", ["", "[]", '{"type": "run", "format": 99}', "not JSON", "\xff"])
@pytest.mark.parametrize(
    ("read", "advice"), [(load_run, AGAIN), (lambda path: load_run(path, earlier=True), "or drive it again$")]
)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, text, read, advice):
    path = tmp_path / "run.jsonl"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=rf"run\.jsonl: .*; .*{advice}"):
        read(path)


def check(path: Path) -> None:
    check_file(path, "none", "lead", 3)


@pytest.mark.parametrize("read", [load_run, check])
def test_a_file_that_was_cut_off_at_the_end_of_a_line_is_refused(tmp_path, read):
    path = tmp_path / "run.jsonl"
    save_run(path, make_run())
    read(path)
    whole = path.read_text().splitlines(keepends=True)
    assert [json.loads(line)["type"] for line in whole] == ["run", "step", "step", "plan", "plan", "end"]
    for number in range(1, len(whole)):
        path.write_text("".join(whole[:number]))
        with pytest.raises(InputError, match=rf"run\.jsonl: .*cut off, or an earlier version wrote it.*{AGAIN}"):
            read(path)
    path.write_text("".join(whole)[:-8])
    with pytest.raises(InputError, match=r"run\.jsonl: .*JSONDecodeError"):
        read(path)


@pytest.mark.parametrize("read", [load_run, check, lambda path: load_run(path, earlier=True)])
@pytest.mark.parametrize("missing", [1, 2, 3, 4])
def test_a_file_that_lacks_a_step_or_plan_is_refused(tmp_path, read, missing):
    path = tmp_path / "run.jsonl"
    save_run(path, make_run())
    whole = path.read_text().splitlines()
    path.write_text("\n".join(whole[:missing] + whole[missing + 1 :]))
    kind = "step" if missing < 3 else "plan"
    with pytest.raises(InputError, match=rf"run\.jsonl: .*it has 1 {kind}s, by its last line 2\); "):
        read(path)


def test_a_file_of_an_earlier_version_is_read_where_that_is_asked_for(tmp_path):
    path = tmp_path / "run.jsonl"
    save_run(path, make_run())
    path.write_text("".join(f"{line}\n" for line in lines(make_run())))
    assert hash_run(load_run(path, earlier=True)) == hash_run(make_run())
    path.write_text("".join(f"{line}\n" for line in [*lines(make_run())][:3]))  # step 1 follows the first plan
    with pytest.raises(InputError, match="its steps name plans that it does not have: it has 0"):
        load_run(path, earlier=True)


def test_a_file_of_another_run_is_told(tmp_path):
    path = tmp_path / "lead-4.jsonl"
    save_run(path, make_run())
    for asked in (("none", "lead", 4), ("none", "bend", 3), ("random@0.5", "lead", 3)):
        text = "is of another run, none, lead 3, not of {}, {} {}; ".format(*asked)
        with pytest.raises(InputError, match=rf"lead-4\.jsonl: the file {text}{AGAIN}"):
            check_file(path, *asked)


FRONT, BACK = np.eye(2, 3, dtype=bool), np.array([[True, True], [True, False]])  # 5 of 10 tokens


def kept_run(**masks: np.ndarray) -> RunRecord:
    first, *others = make_run().plans
    return replace(make_run(), plans=(replace(first, kept=masks), *others))


def test_kept_tokens_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "run.jsonl"
    save_run(path, pickle.loads(pickle.dumps(kept_run(FRONT=FRONT, BACK=BACK))))  # as it comes from a worker
    first, refused = with_kept(load_run(path), path).plans
    assert {name: mask.tolist() for name, mask in first.kept.items()} == {
        "FRONT": FRONT.tolist(),
        "BACK": BACK.tolist(),
    }
    assert refused.kept == {}


def test_the_hash_does_not_depend_on_what_is_known_of_kept_tokens(tmp_path):
    path, run = tmp_path / "run.jsonl", kept_run(FRONT=FRONT, BACK=BACK)
    save_run(path, run)
    assert hash_run(run) == hash_run(make_run()) == hash_run(load_run(path)) == hash_run(with_kept(run, path))


def test_a_file_of_an_earlier_version_says_nothing_of_kept_tokens(tmp_path):
    path = tmp_path / "run.jsonl"
    save_run(path, make_run())
    assert "kept" not in [json.loads(line)["type"] for line in path.read_text().splitlines()]
    assert [plan.kept for plan in with_kept(load_run(path), path).plans] == [{}, {}]


@pytest.mark.parametrize(
    ("damage", "detail"),
    [
        (lambda values: values["plans"].pop(), "plans: 1"),
        (lambda values: values["plans"].__setitem__(0, "AAAAAA=="), "4 bytes for 10 tokens"),
        (lambda values: values["plans"].__setitem__(0, "//8="), "10 of 10 kept, the plan has 5 of 10"),
        (lambda values: values["plans"].__setitem__(0, 7), "TypeError"),
        (lambda values: values["plans"].__setitem__(0, "no base64!"), "base64"),
        (lambda values: values["cameras"].update(FRONT=[2, -3]), "rows and columns"),
        (lambda values: values["cameras"].update(FRONT=[2, 1 << 40]), "more than"),
        (lambda values: values["cameras"].update(FRONT=[float("inf"), 3]), "rows and columns"),
        (lambda values: values["cameras"].update(FRONT=["2", 3]), "rows and columns"),
        (lambda values: values["cameras"].update(FRONT=6), "TypeError"),
        (lambda values: values.update(cameras=[]), "AttributeError"),
        (lambda values: values.pop("plans"), "KeyError"),
        (None, "JSONDecodeError"),
    ],
)
def test_damaged_kept_tokens_are_told_and_the_run_can_be_scored_all_the_same(tmp_path, damage, detail):
    path = tmp_path / "run.jsonl"
    save_run(path, kept_run(FRONT=FRONT, BACK=BACK))
    *text, kept, end = path.read_text().splitlines()
    values = json.loads(kept)
    if damage is not None:
        damage(values)
    last = json.dumps(values, separators=(",", ":")) if damage is not None else kept[:-9]
    path.write_text("\n".join([*text, last, end]))
    run = load_run(path)
    assert hash_run(run) == hash_run(make_run())
    with pytest.raises(InputError, match=rf"run\.jsonl: its kept tokens are damaged \(.*{detail}") as told:
        with_kept(run, path)
    assert "\n" not in str(told.value)


def test_a_missing_file_is_named_when_its_kept_tokens_are_read():
    with pytest.raises(InputError, match="gone"):
        with_kept(make_run(), Path("gone"))


def test_kept_tokens_of_a_record_are_those_of_its_cameras_at_t0():
    indices = np.array([0, 5, 7, 11])
    kept = KeptTokens(indices, None, (4, 1, 3), current=(2, 3))  # two cameras, an earlier image of each
    masks = masks_by_camera(kept, ("FRONT", "BACK"))
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        "FRONT": [[False, True, False]],
        "BACK": [[False, False, True]],
    }
    assert masks_by_camera(kept, ("FRONT",)) == {}
    assert masks_by_camera(None, ("FRONT", "BACK")) == {}


def test_corners_begin_at_the_front_left():
    assert corners(1, 2, np.pi / 2, 4, 2).round(6).tolist() == [[0, 4], [0, 0], [2, 0], [2, 4]]
