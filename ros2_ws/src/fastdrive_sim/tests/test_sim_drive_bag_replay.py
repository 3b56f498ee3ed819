"""Bags of driven runs through the node, by ``fastdrive replay``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import sim_fakes

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e .[ros]")

from fastdrive_node.commands.replay import ReplayOptions, replay
from fastdrive_node.errors import SimError
from fastdrive_node.geometry import to_parent_frame
from fastdrive_node.types import CAMERAS
from fastdrive_sim.bag import EPOCH_NS
from fastdrive_sim.drive import film
from fastdrive_sim.drive.command import DRIVING_VLA, DriveOptions, drive_suite
from fastdrive_sim.drive.families import FAMILIES
from fastdrive_sim.drive.loop import drive
from fastdrive_sim.drive.node_session import open_planner, rig_of
from fastdrive_sim.drive.run_bag import write_run_bag
from fastdrive_sim.drive.runner import DriveSettings
from fastdrive_sim.drive.storage import load_run
from fastdrive_sim.drive.types import DriveRow

ROOT = Path(__file__).resolve().parents[4]
SIZE = (224, 112)


def replayed(bag: Path, folder: Path, command: tuple[str, ...] | None = None, **options) -> tuple[dict, list[dict]]:
    """The figures and the plans."""
    chosen = ReplayOptions(bag, lockstep=True, json=str(folder / "summary.json"), **options)
    figures = replay(chosen, command, CAMERAS)
    return figures, [json.loads(line) for line in Path(figures["plans_file"]).read_text().splitlines()]


def test_every_set_of_a_drives_bag_is_planned_the_first_ones_with_the_past_that_the_bag_has(tmp_path, monkeypatch):
    monkeypatch.setattr(film, "Renderer", sim_fakes.FakeRenderer)
    out = tmp_path / "out"
    drive_suite(DriveOptions(out, families=("cut-in",), runs=1, pruners=(), bags="cameras", size=(32, 24)))
    run = load_run(out / "runs" / "constant-velocity" / "cut-in-0.jsonl")
    node = (sys.executable, str(ROOT / "tests" / "ros" / "fake_planner.py"))
    figures, plans = replayed(out / "bags" / "constant-velocity" / "cut-in-0", tmp_path, node)
    assert (figures["sets"], figures["plans"], figures["refused"]) == (len(run.plans), len(run.plans), 0)
    assert [plan["t0_ns"] for plan in plans] == [EPOCH_NS + round(plan.time_s * 1e9) for plan in run.plans]
    known = [int(plan["text"].split(", ")[1].split()[0]) for plan in plans]  # states, every 0.5 s up to t0
    assert len(plans) > 7 and known == [min(number, 7) for number in range(1, len(plans) + 1)]


def test_a_vla_that_reads_no_past_plans_again_what_it_planned_in_the_run(tmp_path):
    try:
        film.Renderer(16, 16).close()
    except SimError as error:
        pytest.skip(str(error))
    vla, row, scene = ROOT / DRIVING_VLA, DriveRow("none"), FAMILIES["stopped-lead"].scene(1)
    scene.timeout_s = 1.5
    with open_planner(DriveSettings(tmp_path, str(vla), CAMERAS, SIZE), row) as planner:
        run = drive(scene, planner, row)
    write_run_bag(run, tmp_path / "run", rig_of(CAMERAS), SIZE)
    _, plans = replayed(tmp_path / "run", tmp_path, vla=vla, pruner=Path("none"))
    assert len(plans) == len(run.plans) == 4
    for plan, own in zip(plans, run.plans, strict=True):
        assert own.ego is not None
        xy = to_parent_frame(np.array(plan["waypoints"]), own.ego.x, own.ego.y, own.ego.yaw)
        assert xy == pytest.approx(own.xy, abs=1e-6)
