"""``fastdrive sim drive`` from its arguments to its files; expert and constant velocity alone, without a node."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from sim_fakes import DyingNodes

from fastdrive_node.cli import main
from fastdrive_node.cluster import Cluster
from fastdrive_node.errors import InputError, UsageError
from fastdrive_sim.drive import runner
from fastdrive_sim.drive.command import DriveOptions, drive_suite, print_table
from fastdrive_sim.drive.runner import worker_pool
from fastdrive_sim.drive.storage import hash_run, join_hashes, load_run


@pytest.fixture(scope="module")
def drive(tmp_path_factory) -> tuple[DriveOptions, dict]:
    options = DriveOptions(tmp_path_factory.mktemp("drive") / "out", families=("bend",), runs=2, pruners=())
    return options, drive_suite(options)


def test_a_drive_writes_its_figures_and_a_file_for_each_run(drive):
    options, figures = drive
    assert json.loads((options.out / "summary.json").read_text()) == figures
    assert [row["pruner"] for row in figures["rows"]] == ["expert", "constant-velocity"]
    assert figures["rows"][0]["collision_rate"] == 0.0
    assert [(run["family"], run["seed"]) for run in figures["runs"]] == [("bend", 0), ("bend", 1)] * 2
    files = sorted(str(path.relative_to(options.out)) for path in options.out.rglob("*.jsonl"))
    assert files == [f"runs/{row}/bend-{seed}.jsonl" for row in ("constant-velocity", "expert") for seed in (0, 1)]


def test_the_runs_of_other_rows_have_the_experts_progress(drive):
    options, _ = drive
    expert, other = (load_run(options.out / "runs" / row / "bend-0.jsonl") for row in ("expert", "constant-velocity"))
    assert other.expert_progress_m.tolist() == [step.progress_m for step in expert.steps]


def test_the_same_seeds_have_the_same_hash_with_more_workers_too(drive, tmp_path):
    options, figures = drive
    again = drive_suite(replace(options, out=tmp_path / "again", workers=2))
    assert again["deterministic_hash"] == figures["deterministic_hash"]
    paths = sorted((options.out / "runs").rglob("*.jsonl"))
    assert join_hashes(hash_run(load_run(path)) for path in paths) == figures["deterministic_hash"]


def test_workers_of_a_cluster_drive_the_same_runs_and_write_no_file(drive, tmp_path, monkeypatch):
    options, figures = drive
    handed = []

    def elsewhere(make, chunks, cluster):
        for chunk in pickle.loads(pickle.dumps(chunks)):
            driven = list(pickle.loads(pickle.dumps(make))()([chunk]))
            handed.append((str(chunk), len(list(tmp_path.rglob("*.jsonl")))))
            yield from pickle.loads(pickle.dumps(driven))

    @contextmanager
    def joined(address, device):
        assert (address, device) == ("local:2", "cpu")
        yield Cluster(address, device, workers=2, cpus=1, gpus=0)

    monkeypatch.setattr(runner, "map_items", elsewhere)
    monkeypatch.setattr("fastdrive_sim.drive.command.open_cluster", joined)
    again = drive_suite(replace(options, out=tmp_path / "again", ray="local:2"))
    assert again["deterministic_hash"] == figures["deterministic_hash"]
    rows = ["expert, bend 0", "expert, bend 1", "constant-velocity, bend 0", "constant-velocity, bend 1"]
    assert handed == [(row, files) for files, row in enumerate(rows)]


def test_two_workers_of_a_local_ray_drive_the_same_runs(drive, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e .[cluster]")
    options, figures = drive
    again = drive_suite(replace(options, out=tmp_path / "again", ray="local:2"))
    assert again["deterministic_hash"] == figures["deterministic_hash"]


def test_a_cluster_has_its_own_number_of_workers(tmp_path, capsys):
    assert main(["sim", "drive", "--out", str(tmp_path), "--ray", "local:2", "--workers", "2"]) == 2
    assert "--workers 2: with --ray the cluster has the workers; use --ray local:N" in capsys.readouterr().err
    assert main(["sim", "drive", "--out", str(tmp_path / "new"), "--pruners", "", "--ray", "here"]) == 2
    assert "--ray here: use auto, local, local:2" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_command(how):
    code = """
import os, time
from fastdrive_sim.drive.runner import worker_pool
if __name__ == "__main__":
    with worker_pool(2) as pool:
        print(*pool.map(eval, ["__import__('time').sleep(0.5) or __import__('os').getpid()"] * 2), flush=True)
        waiting = [pool.submit(time.sleep, 300) for _ in range(2)]
        waiting[0].result()
"""
    command = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None
    workers = {int(pid) for pid in command.stdout.readline().split()}
    command.send_signal(how)
    command.wait(10)
    end_by = time.monotonic() + 30
    while time.monotonic() < end_by and any(map(_is_alive, workers)):
        time.sleep(0.05)
    assert workers and not any(map(_is_alive, workers))


@pytest.mark.parametrize(("given", "threads"), [(None, "0"), ("2", "2")])
def test_the_rasteriser_of_a_worker_has_no_threads_of_its_own_unless_told(monkeypatch, given, threads):
    monkeypatch.delenv("LP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("LP_NUM_THREADS", given)
    with worker_pool(2) as pool:
        assert pool is not None
        assert pool.submit(os.getenv, "LP_NUM_THREADS").result() == threads


def _is_alive(pid: int) -> bool:
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_run_that_has_a_file_is_not_driven_again(drive):
    options, figures = drive
    path = options.out / "runs" / "expert" / "bend-0.jsonl"
    before = path.stat().st_mtime_ns
    assert drive_suite(options)["rows"] == figures["rows"]
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["cut", "of another scenario"])
def test_a_file_that_was_changed_is_neither_scored_nor_driven_over(drive, tmp_path, damage):
    options = replace(drive[0], out=shutil.copytree(drive[0].out, tmp_path / "out"), runs=3)
    folder = options.out / "runs" / "constant-velocity"
    path = folder / "bend-0.jsonl"
    if damage == "cut":
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-5]))
    else:
        shutil.copy(folder / "bend-1.jsonl", path)
    with pytest.raises(InputError, match=rf"{path}: .*; delete it, and it is driven again with the same --out"):
        drive_suite(options)
    assert not list(options.out.rglob("bend-2.jsonl")), "it drove before it looked"
    path.unlink()
    assert drive_suite(replace(options, runs=2))["deterministic_hash"] == drive[1]["deterministic_hash"]


def test_a_folder_of_a_drive_with_other_settings_is_refused(drive):
    with pytest.raises(InputError, match=r"\(settings\.json: plan_hz: 2\.0 there, 5\.0 now\); give a new --out"):
        drive_suite(replace(drive[0], plan_hz=5.0))


def test_ctrl_c_says_what_is_kept(tmp_path, monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastdrive_sim.drive.command.drive_suite", interrupted)
    assert main(["sim", "drive", "--out", str(tmp_path)]) == 1
    told = f"fastdrive sim: interrupted: what was driven is kept in {tmp_path}; the same --out and options go on\n"
    assert capsys.readouterr().err == told


def test_a_parameter_file_belongs_to_the_drive(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: no such parameter file; correct --params"):
        DriveOptions(tmp_path / "out", params=tmp_path / "none.yaml")
    params = tmp_path / "node.yaml"
    params.write_text("fastdrive: {ros__parameters: {max_plan_age_s: 1.0}}")
    options = DriveOptions(tmp_path / "out", families=("bend",), runs=1, pruners=(), params=params)
    drive_suite(options)
    params.write_text("fastdrive: {ros__parameters: {max_plan_age_s: 1.5}}")
    with pytest.raises(
        InputError, match=r"node_parameters: .*max_plan_age_s: 1\.0}} there, .*max_plan_age_s: 1\.5}} now"
    ):
        drive_suite(options)
    params.write_text("fastdrive: {ros__parameters: {max_plan_age: 1.5}}")
    with pytest.raises(InputError, match=r"node\.yaml: .*max_plan_age: no such parameter; did you mean max_plan_age_s"):
        drive_suite(replace(options, out=tmp_path / "other"))


@pytest.mark.parametrize(("failures", "tries"), [(0, 1), (1, 2), (5, 2)])
def test_a_run_that_failed_is_tried_once_more_when_the_drive_goes_on(tmp_path, monkeypatch, failures, tries):
    nodes = DyingNodes(set(range(failures)))
    monkeypatch.setattr(runner, "constant_velocity_planner", nodes.start)
    options = DriveOptions(tmp_path / "out", families=("bend",), runs=1, pruners=())
    rates = [drive_suite(options)["rows"][1]["failed_rate"] for _ in range(3)]
    assert nodes.begun == tries
    assert rates == [float(failures > 0), float(failures > 1), float(failures > 1)]


def test_the_bag_of_a_run_that_was_driven_again_is_written_anew(drive, tmp_path):
    options = replace(drive[0], out=shutil.copytree(drive[0].out, tmp_path / "out"), runs=1, bags="state")
    drive_suite(options)
    run, bag = options.out / "runs" / "expert" / "bend-0.jsonl", options.out / "bags" / "expert" / "bend-0"
    first = bag.stat().st_ino, bag.stat().st_mtime_ns
    drive_suite(options)
    assert (bag.stat().st_ino, bag.stat().st_mtime_ns) == first
    run.touch()
    drive_suite(options)
    assert bag.stat().st_mtime_ns >= run.stat().st_mtime_ns


def test_the_table_says_which_rows_cannot_be_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "constant_velocity_planner", DyingNodes({0}).start)
    figures = drive_suite(DriveOptions(tmp_path / "out", families=("bend",), runs=2, pruners=()))
    console = Console(record=True, width=120)  # as where the output is no terminal
    print_table(figures, console)
    text = console.export_text()
    assert re.search(r"expert +│ +2 +│ +0 ", text) and re.search(r"constant-velocity +│ +2 +│ +1 ", text)
    assert "not comparable: constant-velocity: 1 of 2 runs failed" in text and "not comparable: expert" not in text


def test_the_table_has_a_line_for_each_row_and_the_reasons_of_failures(drive):
    figures = drive[1]
    failed = {**figures["runs"][0], "reason": "the node ended with exit code 3"}
    console = Console(record=True, width=200)
    print_table({**figures, "runs": [failed, failed]}, console)
    text = console.export_text()
    assert re.search(r"expert .* 2 .* 0\.000", text) and "constant-velocity" in text
    assert "failed 2x: the node ended with exit code 3" in text


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"plan_hz": 3.0}, "--plan-hz 3"),
        ({"plan_hz": 0.0}, "--plan-hz 0"),
        ({"realtime": True, "latencies_s": (0.1,)}, "--realtime"),
    ],
)
def test_values_out_of_range_are_refused(values, text):
    with pytest.raises(UsageError, match=text):
        DriveOptions(Path("out"), **values)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--family", "bends"],
        ["--suite", "all"],
        ["--fault", "frozen"],
        ["--drop", "2"],
        ["--seed", "-1"],
        ["--size", "0x0"],
        ["--size", "64x0"],
        ["--pruners", "nonsense"],
    ],
)
def test_wrong_arguments_are_told_before_anything_starts(tmp_path, capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(main(["sim", "drive", "--out", str(tmp_path / "out"), *arguments]))
    assert ended.value.code == 2
    assert arguments[1] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
