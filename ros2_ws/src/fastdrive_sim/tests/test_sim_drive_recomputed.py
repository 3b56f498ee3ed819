"""The scores of runs that the summary reports, computed again from the runs' bags by other means (``sim_rescore``).

Beside the rows that need no node, planners that drive badly: each score has other values than its best one.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from sim_rescore_motion import differing

from fastdrive_sim.drive.command import DriveOptions, drive_suite
from fastdrive_sim.drive.families import FAMILIES
from fastdrive_sim.drive.loop import LoopSettings, drive, with_expert
from fastdrive_sim.drive.planners import InProcessPlanner, expert_planner
from fastdrive_sim.drive.run_bag import read_run_lines, write_run_bag
from fastdrive_sim.drive.scene import DriveScene
from fastdrive_sim.drive.scoring.scores import score_run
from fastdrive_sim.drive.storage import load_run, save_run
from fastdrive_sim.drive.summary import summarize
from fastdrive_sim.drive.types import CONSTANT_VELOCITY, EXPERT, DriveRow, EgoStep

Key = tuple[str, str, int]  # row, family, seed
FROM_A_DRIVE = ("bend", "cut-in", "junction", "red-light", "road-works")
KNOWN: list[Key] = [(row, family, 0) for row in (EXPERT, CONSTANT_VELOCITY) for family in FROM_A_DRIVE]

# Offset from the lane's middle, m to the left, and speed in m/s, by planning tick.
MANNERS: dict[str, Callable[[int], tuple[float, float]]] = {
    "wrong-way": lambda tick: (3.6 if tick > 3 else 0.0, 4.5),
    "off-road": lambda tick: (-2.5 if 4 < tick < 9 else 0.0, 8.0),
    "swerving": lambda tick: (1.0 if tick % 4 < 2 else -1.0, 11.0),
    "jerky": lambda tick: (0.0, 12.0 if tick % 4 < 2 else 0.0),
    "weaving": lambda tick: (0.7 if tick % 12 < 6 else -0.6, 7.0),
    "seldom": lambda tick: (0.0, 8.0),
}
SELDOM = LoopSettings(plan_s=1.0)  # no two plans are 0.5 s apart
BAD: list[Key] = [
    *((name, "overtaken", 1) for name in MANNERS),
    ("swerving", "bend", 1),
    ("wrong-way", "cyclist", 2),
]
TERMS = ("nc", "dac", "ddc", "tlc", "ep", "ttc", "lk", "hc", "ec")
TOTALS = ("epdms_style", "neuroncap", "hd_score", "route_completion")


def planner_with(manner: Callable[[int], tuple[float, float]]) -> InProcessPlanner:
    """Plans along the route, at an offset and a speed that do not depend on anything else."""
    times_s = 0.5 * np.arange(1, 7)

    def make(scene: DriveScene) -> Callable[[EgoStep], tuple[np.ndarray, np.ndarray]]:
        ticks = count()

        def plan(ego: EgoStep) -> tuple[np.ndarray, np.ndarray]:
            left, speed = manner(next(ticks))
            along, _ = scene.route.project(ego.x, ego.y, scene.ego_s)
            return np.array([scene.route.at(along + speed * after, left)[:2] for after in times_s]), times_s

        return plan

    return InProcessPlanner(make)


@pytest.fixture(scope="module")
def reported(tmp_path_factory) -> dict[Key, tuple[dict, Path]]:
    """For each run its entry in the summary, and its bag."""
    out = tmp_path_factory.mktemp("drive")
    figures = drive_suite(DriveOptions(out, families=FROM_A_DRIVE, runs=1, pruners=(), bags="state"))
    found = {
        key: (entry, out / "bags" / key[0] / f"{key[1]}-{key[2]}")
        for entry in figures["runs"]
        if (key := (entry["row"], entry["family"], entry["seed"]))
    }
    experts = {
        (family, seed): drive(FAMILIES[family].scene(seed), expert_planner(), DriveRow(EXPERT))
        for family, seed in {key[1:] for key in BAD}
    }
    for name, family, seed in BAD:
        settings = SELDOM if name == "seldom" else LoopSettings()
        run = drive(FAMILIES[family].scene(seed), planner_with(MANNERS[name]), DriveRow(name), settings)
        run = with_expert(run, experts[family, seed])
        bag = out / "bags" / name / f"{family}-{seed}"
        write_run_bag(run, bag)
        found[name, family, seed] = summarize([run])["runs"][0], bag
    return found


@pytest.mark.parametrize("key", [*KNOWN, *BAD], ids=lambda key: "-".join(map(str, key)))
def test_scores_from_the_bag_are_those_reported(reported, key):
    entry, bag = reported[key]
    assert differing(entry, read_run_lines(bag)) == {}


def test_every_score_has_several_values_over_the_runs(reported):
    """The comparison above would be empty if every run scored the same."""
    values = {name: {entry[name] for entry, _ in reported.values()} for name in (*TERMS, *TOTALS)}
    assert values["nc"] == values["ddc"] == {0.0, 0.5, 1.0}
    assert values["dac"] == values["tlc"] == {0.0, 1.0}
    assert None in values["ec"]
    for name in ("ep", "ttc", "lk", "hc", "ec", *TOTALS):
        assert len(values[name]) >= 4, name
        assert len([value for value in values[name] if value is not None and 0.0 < value < 1.0]) >= 2, name


def test_a_run_read_back_has_the_scores_that_it_had_before(tmp_path):
    run = drive(FAMILIES["bend"].scene(0), planner_with(MANNERS["jerky"]), DriveRow("jerky"))
    run = with_expert(run, run)
    save_run(tmp_path / "again.jsonl", run)
    assert score_run(load_run(tmp_path / "again.jsonl")) == score_run(run)
