"""How the runs of a drive are given to workers and nodes, and what is done where one of these fails."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path
from threading import Thread, main_thread

import pytest
from sim_fakes import DyingNodes

from fastdrive_node.errors import FastDriveError
from fastdrive_node.files import package_share_file
from fastdrive_node.types import CAMERAS
from fastdrive_sim.drive import runner
from fastdrive_sim.drive.command import DRIVING_VLA, DriveOptions, _driven, _settings, drive_suite
from fastdrive_sim.drive.families import FAMILIES
from fastdrive_sim.drive.loop import drive, with_expert
from fastdrive_sim.drive.planners import constant_velocity_planner, expert_planner
from fastdrive_sim.drive.runner import (
    DEATHS,
    Chunk,
    DriveSettings,
    drive_all,
    drive_runs,
    keep_run,
    run_path,
    runs_left,
    worker_pool,
)
from fastdrive_sim.drive.storage import load_run, save_run
from fastdrive_sim.drive.suite import ScenarioKey
from fastdrive_sim.drive.summary import ScoredRun
from fastdrive_sim.drive.types import CONSTANT_VELOCITY, EXPERT, FAILED, DriveRow, RunRecord

ROWS = [DriveRow(f"pruner{number}", 0.5) for number in range(8)]
SCENARIOS = tuple(ScenarioKey("bend", seed) for seed in range(6))


def settings(out: Path) -> DriveSettings:
    return DriveSettings(out, "", CAMERAS, (32, 24))


def begins_or_fails(settings: DriveSettings, chunk: Chunk) -> None:
    """In place of ``drive_chunk``, in a worker: the others take a long time, and the first row then has no node."""
    (settings.out / chunk.row.name).touch()
    if chunk.row == ROWS[0]:
        while not (settings.out / ROWS[1].name).exists():
            time.sleep(0.01)
        raise FastDriveError("the node ended with exit code 3: no model here")
    time.sleep(60)
    (settings.out / f"{chunk.row.name} done").touch()


def test_an_error_of_a_worker_is_told_before_the_others_are_done(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "drive_chunk", begins_or_fails)
    before = set(active_children())
    with pytest.raises(FastDriveError, match="no model here"), worker_pool(2) as pool:
        drive_all(settings(tmp_path), dict.fromkeys(ROWS, SCENARIOS[:1]), 2, pool)
    begun = {path.name for path in tmp_path.glob("pruner*") if " " not in path.name}
    assert ROWS[0].name in begun and len(begun) <= 3  # the one that failed, and at most one for each worker since
    assert not list(tmp_path.glob("* done")), "it waited for a run in progress"
    assert set(active_children()) <= before, "a worker goes on"


def waits(settings: DriveSettings, chunk: Chunk) -> None:
    """In place of ``drive_chunk``, in a worker."""
    (settings.out / chunk.row.name).touch()
    time.sleep(30)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where this process was started with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_the_workers_and_what_waits_for_them(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "drive_chunk", waits)
    before, begun = set(active_children()), []

    def interrupt() -> None:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.05)
        for worker in set(active_children()) - before:
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGINT)  # as a terminal does; the command decides
        time.sleep(0.5)
        begun.extend(tmp_path.iterdir())
        signal.pthread_kill(main_thread().ident or 0, signal.SIGINT)

    Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt), worker_pool(2) as pool:
        drive_all(settings(tmp_path), dict.fromkeys(ROWS, SCENARIOS[:1]), 2, pool)
    assert len(begun) == 2, "a worker ended its run by itself"
    assert len(list(tmp_path.iterdir())) <= 3 and set(active_children()) <= before


def test_a_pruners_file_in_another_folder_has_the_same_hash_and_its_drive_goes_on(tmp_path, monkeypatch):
    node_session = pytest.importorskip("fastdrive_sim.drive.node_session", reason="rclpy is not installed")
    monkeypatch.setattr(node_session, "open_planner", lambda *_: nullcontext(constant_velocity_planner()))
    found = []
    for name in ("here", "there"):
        file = tmp_path / name / "own.safetensors"
        file.parent.mkdir()
        shutil.copy(package_share_file(f"{DRIVING_VLA}/reconpruner.safetensors"), file)
        options = DriveOptions(tmp_path / name / "out", families=("bend",), runs=2, pruners=(str(file),))
        found.append(drive_suite(options))
        run = options.out / "runs" / "own@0.5" / "bend-1.jsonl"
        assert load_run(run).row.pruner == str(file)
        before = run.stat().st_mtime_ns
        assert drive_suite(options)["deterministic_hash"] == found[-1]["deterministic_hash"]
        assert run.stat().st_mtime_ns == before, "it was driven again"
    assert found[0]["deterministic_hash"] == found[1]["deterministic_hash"]
    assert [row["pruner"] for row in found[0]["rows"]][2] == str(tmp_path / "here" / "own.safetensors")


def driven(monkeypatch, out: Path, dies_in: set[int]) -> tuple[DyingNodes, list[RunRecord]]:
    """The nodes, and the runs that they drove."""
    nodes = DyingNodes(dies_in)
    monkeypatch.setattr(runner, "constant_velocity_planner", nodes.start)
    return nodes, list(drive_runs(settings(out), Chunk(DriveRow(CONSTANT_VELOCITY), SCENARIOS)))


def test_after_three_ends_of_the_node_in_a_row_the_other_runs_are_not_tried(tmp_path, monkeypatch):
    nodes, runs = driven(monkeypatch, tmp_path, {1, 2, 3})
    assert (nodes.begun, nodes.started) == (1 + DEATHS, DEATHS)
    ended, not_tried = "the node ended with exit code 3", "not tried: the node ended in 3 runs before it"
    assert [run.seed for run in runs] == [scenario.seed for scenario in SCENARIOS]
    assert [run.reason for run in runs] == ["", ended, ended, ended, not_tried, not_tried]
    assert [run.ending == FAILED for run in runs] == [False, True, True, True, True, True]
    assert [len(run.steps) for run in runs[4:]] == [0, 0]


def test_ends_of_the_node_that_are_not_in_a_row_do_not_stop_the_others(tmp_path, monkeypatch):
    nodes, runs = driven(monkeypatch, tmp_path, {0, 1, 3, 4})
    assert (nodes.begun, nodes.started) == (6, 5)  # the last end was followed by one run more
    assert [run.ending == FAILED for run in runs] == [True, True, False, True, True, False]


def test_a_run_that_was_not_tried_has_a_file_and_is_tried_when_the_drive_goes_on(tmp_path, monkeypatch):
    row, given = DriveRow(CONSTANT_VELOCITY), settings(tmp_path)
    drive_all(given, {DriveRow(EXPERT): SCENARIOS}, 1, None)
    for run in driven(monkeypatch, tmp_path, {1, 2, 3})[1]:
        keep_run(given, run)
    last = runner.run_path(tmp_path, row, SCENARIOS[-1])
    assert load_run(last).reason.startswith("not tried") and len(load_run(last).expert_progress_m) > 10
    monkeypatch.setattr(runner, "constant_velocity_planner", DyingNodes(set()).start)
    assert runs_left(given, [DriveRow(EXPERT), row], SCENARIOS) == {row: [*SCENARIOS[1:]]}
    drive_all(given, runs_left(given, [row], SCENARIOS), 1, None)
    assert load_run(last).ending != FAILED


def test_what_a_call_drove_through_the_node_is_counted(tmp_path):
    settings = _settings(DriveOptions(tmp_path, families=("bend",)))
    runs, expert = [], drive(FAMILIES["bend"].scene(0), expert_planner(0.0), DriveRow(EXPERT))
    for row, changed_ns in ((DriveRow("none"), 9), (DriveRow("random", 0.5), 10), (DriveRow(EXPERT), 11)):
        record = with_expert(replace(expert, row=row), expert)
        file = run_path(tmp_path, row, ScenarioKey("bend", 0))
        file.parent.mkdir(parents=True)
        save_run(file, record)
        os.utime(file, ns=(changed_ns, changed_ns))
        runs.append(ScoredRun.of(record))
    ticks = runs[0].scores.ticks
    assert ticks > 10
    assert _driven(settings, runs, 10, 4.0) == {"runs": 1, "ticks": ticks, "seconds": 4.0, "ticks_per_s": ticks / 4}
    assert _driven(settings, runs, 12, 4.0) == {"runs": 0, "ticks": 0}
    in_real_time = replace(settings, realtime=True)  # the wall clock sets the pace
    assert _driven(in_real_time, runs, 10, 4.0) == {"runs": 1, "ticks": ticks}
