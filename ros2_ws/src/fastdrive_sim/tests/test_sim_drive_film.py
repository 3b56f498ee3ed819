"""Pictures of a recorded run. Needs OpenGL on EGL."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from fastdrive_node.cli import main
from fastdrive_node.errors import SimError
from fastdrive_sim.drive.families import FAMILIES
from fastdrive_sim.drive.film import Film
from fastdrive_sim.drive.loop import drive
from fastdrive_sim.drive.planners import constant_velocity_planner
from fastdrive_sim.drive.storage import save_run
from fastdrive_sim.drive.types import DriveRow, RunRecord


@pytest.fixture(scope="module")
def run() -> RunRecord:
    from fastdrive_sim.render import Renderer

    try:
        Renderer(16, 16).close()
    except SimError as error:
        pytest.skip(str(error))
    return drive(FAMILIES["stopped-lead"].scene(1), constant_velocity_planner(), DriveRow("constant-velocity"))


def test_what_the_camera_saw_in_the_run_is_seen_again(run):
    last = run.steps[-1]
    (hit,) = run.collisions
    with Film(run) as film:
        things = {thing.instance: thing for thing in film.snapshot(last).things}
        near, empty = film.frame(last), film.frame(replace(last, others=()))
    assert (things[hit.other.instance].x, things[hit.other.instance].y) == (hit.other.x, hit.other.y)
    assert near.shape == (384, 1024, 3)
    assert np.abs(near[150:300, 200:440].astype(int) - empty[150:300, 200:440]).mean() > 10  # a vehicle fills the view


def test_tokens_that_the_plan_in_use_did_not_keep_are_gray(run):
    mask = np.zeros((4, 8), bool)
    mask[:, 4:] = True
    plan = replace(run.plans[0], kept={"CAM_FRONT": mask}, kept_tokens=16, total_tokens=32)
    step = replace(run.steps[0], plan=0)
    with Film(replace(run, plans=(plan,))) as film:
        marked, early = film.frame(step), film.frame(replace(step, plan=-1))
    left, right = np.s_[60:, :310], np.s_[60:, 330:630]  # below the text, without the outline
    spread = np.ptp(marked[left].astype(int), axis=2)
    assert spread.max() == 0 and np.ptp(early[left].astype(int), axis=2).max() > 10
    assert (marked[right] == early[right]).all()


def test_with_all_tokens_kept_the_image_is_as_the_camera_saw_it(run):
    plan = replace(run.plans[0], kept={"CAM_FRONT": np.ones((4, 8), bool)}, kept_tokens=32, total_tokens=32)
    step = replace(run.steps[0], plan=0)
    with Film(replace(run, plans=(plan,))) as film:
        assert (film.frame(step)[60:, :640] == film.render(step)[0][60:]).all()


def test_show_marks_the_kept_tokens_of_the_file_and_goes_on_without_damaged_ones(run, tmp_path: Path, capsys):
    mask = np.eye(4, 8, dtype=bool)
    plan = replace(run.plans[0], kept={"CAM_FRONT": mask}, kept_tokens=4, total_tokens=32)
    file = tmp_path / "run.jsonl"
    save_run(file, replace(run, steps=tuple(replace(step, plan=0) for step in run.steps[:2]), plans=(plan,)))

    def colors() -> float:
        main(["sim", "drive", "--show", str(file), "--out", str(tmp_path / "videos"), "--json", "-"])
        told = capsys.readouterr()
        assert ("its kept tokens are damaged" in told.err) == ("AAAA" in file.read_text())
        sheet = cv2.imread(json.loads(told.out)["sheet"])
        return float(np.ptp(sheet[30:, :320].astype(int), axis=2).mean())

    marked = colors()
    file.write_text(file.read_text().replace('"plans":["', '"plans":["AAAA'))
    assert colors() > 2 * marked


def test_show_writes_a_video_and_a_sheet(run, tmp_path: Path, capsys):
    save_run(tmp_path / "run.jsonl", replace(run, steps=run.steps[-4:]))
    main(["sim", "drive", "--show", str(tmp_path / "run.jsonl"), "--out", str(tmp_path / "videos"), "--json", "-"])
    figures = json.loads(capsys.readouterr().out)
    video = cv2.VideoCapture(figures["video"])
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == 4
    assert cv2.imread(figures["sheet"]).shape == (192, 1024, 3)


def test_a_run_that_cannot_be_shown_is_told_in_one_line(tmp_path: Path, capsys):
    run = drive(FAMILIES["bend"].scene(1), constant_velocity_planner(), DriveRow("none"))
    file = tmp_path / "run.jsonl"

    def shown(damaged: RunRecord, lines_left: int | None = None) -> str:
        save_run(file, damaged)
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:lines_left]))
        assert main(["sim", "drive", "--show", str(file), "--out", str(tmp_path / "videos")]) == 1
        return capsys.readouterr().err

    told = shown(replace(run, steps=(), plans=(), ending="failed", reason="not tried: why"))
    assert told == "fastdrive sim: none, bend 1: the run has no steps (not tried: why); there is nothing to show\n"
    assert not list((tmp_path / "videos").iterdir())
    told = shown(run, lines_left=1 + len(run.steps))
    assert told.startswith(f"fastdrive sim: {file}: ") and "its steps name plans that it does not have" in told
    assert told.count("\n") == 1


def test_a_family_that_is_not_known_any_more_is_told(run):
    with pytest.raises(SimError, match="old-family"):
        Film(replace(run, family="old-family"))
