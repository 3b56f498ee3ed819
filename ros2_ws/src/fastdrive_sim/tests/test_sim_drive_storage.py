"""The record of a closed-loop run on disk."""

import numpy as np
import pytest

from fastdrive_node.errors import InputError
from fastdrive_sim.drive.storage import hash_run, join_hashes, lines, load_run, save_run
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


@pytest.mark.parametrize("text", ["", "[]", '{"type": "run", "format": 99}', "not JSON"])
def test_a_damaged_file_is_named(tmp_path, text):
    path = tmp_path / "run.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=r"run\.jsonl"):
        load_run(path)


def test_corners_begin_at_the_front_left():
    assert corners(1, 2, np.pi / 2, 4, 2).round(6).tolist() == [[0, 4], [0, 0], [2, 0], [2, 4]]
