"""The node in a process of its own as the planner of a closed loop."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sim_fakes
from sim_rescore_motion import differing

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e .[ros]")

from fastdrive_node.errors import FastDriveError, SimError
from fastdrive_node.replay.session import Session
from fastdrive_node.types import CAMERAS
from fastdrive_sim.drive import node_session, realtime
from fastdrive_sim.drive.command import DRIVING_VLA, DriveOptions, _settings
from fastdrive_sim.drive.families import FAMILIES
from fastdrive_sim.drive.loop import drive, with_expert
from fastdrive_sim.drive.node_planner import CameraRig, NodePlanner
from fastdrive_sim.drive.node_session import make_planner, open_node, open_planner
from fastdrive_sim.drive.planners import TickAnswer, expert_planner
from fastdrive_sim.drive.run_bag import read_run_lines, write_run_bag
from fastdrive_sim.drive.runner import DriveSettings, Driving
from fastdrive_sim.drive.scene import DriveScene
from fastdrive_sim.drive.storage import lines
from fastdrive_sim.drive.suite import ScenarioKey
from fastdrive_sim.drive.summary import summarize
from fastdrive_sim.drive.types import COLLIDED, COMPLETED, EXPERT, FAILED, OFF_ROAD, PLANNED, DriveRow, RunRecord

ROW = DriveRow("fake", 0.5)
BEND = ScenarioKey("bend", 1)
OFF_THE_ROAD = (OFF_ROAD, COLLIDED)  # the planner of the test goes straight on, into a tree or a house


def settings(out: Path, **more) -> DriveSettings:
    command = (sys.executable, str(Path(__file__).with_name("sim_drive_node.py")))
    return DriveSettings(out, "", CAMERAS, (32, 24), node_command=command, renderer=sim_fakes.FakeRenderer, **more)


def text(run: RunRecord) -> list[str]:
    return list(lines(run))


def short_drive(planner: NodePlanner, row: DriveRow, seconds: float = 2.5, family: str = "bend") -> RunRecord:
    scene = FAMILIES[family].scene(1)
    scene.timeout_s = seconds
    return drive(scene, planner, row)


@pytest.fixture(scope="module")
def way(tmp_path_factory) -> Iterator[Path]:
    """The file that says what the node's planner does; a test that changes it sets it back."""
    path = tmp_path_factory.mktemp("way") / "way"
    path.write_text("plan")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIM_DRIVE_NODE", str(path))
        yield path


@pytest.fixture
def back_to_plan(way) -> Iterator[Path]:
    yield way
    way.write_text("plan")


@pytest.fixture(scope="module")
def node(tmp_path_factory, way) -> Iterator[tuple[CameraRig, Session]]:
    """One node for all tests that drive in lockstep and leave it alive."""
    with open_node(settings(tmp_path_factory.mktemp("node")), ROW) as opened:
        yield opened


@pytest.fixture(scope="module")
def driving(tmp_path_factory, way) -> Iterator[Driving]:
    with Driving(settings(tmp_path_factory.mktemp("drive")), ROW) as driving:
        yield driving


@pytest.fixture(scope="module")
def two_runs(driving) -> list[RunRecord]:
    """The same scenario twice on one node, which was another way between."""
    return [driving.run(key) for key in (BEND, ScenarioKey("bend", 2), BEND)]


# Tests with nodes of their own come first: a node that waits for the others costs time of its own.


def test_a_node_that_cannot_be_started_is_told(tmp_path):
    broken = replace(settings(tmp_path), node_command=(sys.executable, "-c", "raise SystemExit('no model here')"))
    with pytest.raises(FastDriveError, match="no model here"), Driving(broken, ROW) as driving:
        driving.run(BEND)


def test_in_real_time_plans_come_into_use_after_their_exposure(tmp_path, way):
    with open_planner(settings(tmp_path, realtime=True), ROW) as planner:
        run = short_drive(planner, ROW)
    delays = [plan.used_from_s - plan.time_s for plan in run.plans if plan.used_from_s is not None]
    assert len(delays) >= 3 and min(delays) > 0


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> dict[str, RunRecord]:
    """Runs of the node with models/tiny_drive, by family; the first one ends after 1.5 s."""
    from fastdrive_sim.render import Renderer

    try:
        Renderer(16, 16).close()
    except SimError as error:
        pytest.skip(str(error))
    vla = _settings(DriveOptions(tmp_path_factory.mktemp("shipped"))).vla
    assert Path(vla) == Path(__file__).parents[4] / DRIVING_VLA
    row = DriveRow("reconpruner", 0.5)
    runs = {}
    with open_planner(DriveSettings(tmp_path_factory.mktemp("drive"), vla, CAMERAS, (224, 112)), row) as planner:
        runs["stopped-lead"] = short_drive(planner, row, 1.5, "stopped-lead")
        for family in ("bend", "road-works"):
            run = drive(FAMILIES[family].scene(0), planner, row)
            expert = drive(FAMILIES[family].scene(0), expert_planner(), DriveRow(EXPERT))
            runs[family] = with_expert(run, expert)
    return runs


def test_the_shipped_vla_drives(shipped):
    run = shipped["stopped-lead"]
    assert [plan.outcome for plan in run.plans] == ["planned"] * 4
    assert [(plan.kept_tokens, plan.total_tokens) for plan in run.plans] == [(96, 192)] * 4
    assert [{name: mask.shape for name, mask in plan.kept.items()} for plan in run.plans] == [
        dict.fromkeys(CAMERAS, (4, 8))
    ] * 4
    assert [sum(mask.sum() for mask in plan.kept.values()) for plan in run.plans] == [96] * 4
    assert run.steps[-1].progress_m > 8.0  # it starts at 10 m/s, 70 m behind a vehicle that stands
    assert max(abs(step.ego.steer) for step in run.steps) < 0.2


@pytest.mark.parametrize("family", ["bend", "road-works"])
def test_scores_from_the_bag_of_a_run_of_the_shipped_vla_are_those_reported(shipped, family, tmp_path):
    write_run_bag(shipped[family], tmp_path / "bag")
    entry = summarize([shipped[family]])["runs"][0]
    assert entry["ticks"] > 10 and 0.0 < entry["ec"] < 1.0 and 0.0 < entry["hd_score"] < 1.0
    assert differing(entry, read_run_lines(tmp_path / "bag")) == {}


def test_in_real_time_the_shipped_vla_is_charged_the_age_of_its_plans(tmp_path, monkeypatch):
    monkeypatch.setattr(realtime, "MAX_LAG_S", 1e9)  # however slow the machine is
    row, scene = DriveRow("reconpruner", 0.5), FAMILIES["stopped-lead"].scene(1)
    drawn = settings(tmp_path, realtime=True)
    drawn = replace(drawn, vla=_settings(DriveOptions(tmp_path)).vla, size=(224, 112), node_command=None)
    with open_planner(drawn, row) as planner:
        run = drive(scene, EndingPlanner(planner, scene, answers=4), row)
    assert run.ending == COMPLETED, run.reason
    for plan in run.plans:
        assert (plan.used_from_s is not None) == (plan.outcome == PLANNED)
        assert plan.used_from_s is None or 0 < plan.used_from_s - plan.time_s < plan.times_s[-1] - plan.time_s
    used = [plan for plan in run.plans if plan.used_from_s is not None]
    assert used and [plan.time_s for plan in used] == sorted({plan.time_s for plan in used}), (
        "an older plan replaced a newer one"
    )
    for step in run.steps:
        plan = run.plans[step.plan] if step.plan >= 0 else None
        assert step.plan_age_s == (0.0 if plan is None else pytest.approx(step.time_s - plan.time_s))
        assert plan is None or (plan.used_from_s is not None and plan.used_from_s <= step.time_s)


class EndingPlanner:
    """A planner whose run is at its goal after so many answers."""

    def __init__(self, planner: NodePlanner, scene: DriveScene, answers: int):
        self.begin, self.watch, self.offer = planner.begin, planner.watch, planner.offer
        self._planner, self._scene, self._left = planner, scene, answers

    def collect(self, time_s: float) -> list[TickAnswer]:
        found = self._planner.collect(time_s)
        self._left -= len(found)
        if self._left <= 0:
            self._scene.goal_m = 0.0
        return found


@pytest.mark.parametrize("row", [DriveRow("none"), DriveRow("random", 0.25)])
def test_pruner_and_ratio_of_a_row_win_over_the_parameter_file(tmp_path, monkeypatch, row):
    asked = {}

    @contextmanager
    def open_session(rig, options, values, lockstep):
        asked.update(options.parameters, file=options.parameter_file)
        yield None

    monkeypatch.setattr(node_session, "open_session", open_session)
    file = tmp_path / "node.yaml"
    with open_node(settings(tmp_path, parameter_file=file), row):
        pass
    assert asked == {"vla": "", "pruner": row.pruner, "drop": row.drop, "file": file}


def test_a_drive_that_is_killed_leaves_no_node_behind(tmp_path, way):
    code = (
        "import sys, test_sim_drive_node as t; from pathlib import Path\n"
        "with t.open_planner(t.settings(Path(sys.argv[1])), t.ROW): print('ready', flush=True); sys.stdin.read()"
    )
    here = Path(__file__).parent
    drive = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=here, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert drive.stdout is not None and drive.stdout.readline() == "ready\n"
    nodes = Path(f"/proc/{drive.pid}/task/{drive.pid}/children").read_text().split()
    drive.kill()
    drive.communicate()
    deadline = time.monotonic() + 20
    while (left := [node for node in nodes if Path(f"/proc/{node}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert nodes and left == []


def test_the_vehicle_follows_the_nodes_plans(two_runs):
    run = two_runs[0]
    assert run.ending in OFF_THE_ROAD
    assert [(plan.outcome, plan.used_from_s) for plan in run.plans] == [("planned", plan.time_s) for plan in run.plans]
    assert [plan.time_s for plan in run.plans] == [0.5 * index for index in range(len(run.plans))]
    assert run.plans[0].total_tokens == 192 and run.plans[0].kept_tokens == 96
    first = run.plans[0]
    assert [int(first.kept[name].sum()) for name in CAMERAS] == [32, 32, 32, 0, 0, 0]  # the first half of all tokens
    assert first.ego is not None and first.times_s.tolist() == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    at = next(step for step in run.steps if step.time_s == 0.5).ego
    assert (at.x, at.y) == pytest.approx(tuple(first.xy[0]), abs=0.3)


def test_a_run_on_a_node_that_has_driven_before_is_the_same_bit_for_bit(two_runs):
    assert text(two_runs[0]) == text(two_runs[2]) != text(two_runs[1])


def test_a_node_that_refuses_every_set_ends_the_run_with_the_reason(driving, back_to_plan):
    back_to_plan.write_text("refuse")
    run = driving.run(BEND)
    assert not driving.broken
    assert run.ending == FAILED and "no <PLANNING> tag" in run.reason
    assert {plan.outcome for plan in run.plans} == {"refused"}


def test_a_node_that_ends_makes_its_run_fail_and_the_next_run_gets_another(driving, back_to_plan):
    back_to_plan.write_text("die")
    run = driving.run(BEND)
    assert driving.broken
    back_to_plan.write_text("plan")
    assert driving.run(BEND).ending in OFF_THE_ROAD
    assert run.ending == FAILED and "the node ended with exit code 3" in run.reason
    assert [plan.time_s for plan in run.plans] == [0.0, 0.5, 1.0]


def test_a_latency_is_charged_and_a_plan_that_is_too_old_is_refused(node, tmp_path):
    used, reasons = [], []
    for latency_s in (0.3, 1.1):
        row = DriveRow("fake", 0.5, latency_s=latency_s)
        planner = make_planner(settings(tmp_path), row, *node)
        planner.max_plan_age_s = 1.0
        run = short_drive(planner, row)
        used.append([(plan.outcome, plan.used_from_s) for plan in run.plans if plan.outcome != "superseded"])
        reasons.append([plan.reason for plan in run.plans])
    assert used[0][:2] == [("planned", 0.3), ("planned", 0.8)], reasons[0]
    assert {outcome for outcome, _ in used[1]} == {"refused"}


@pytest.mark.parametrize(
    ("fault", "severity", "expected"),
    [
        ("dropped", 1.0, {("refused", None)}),
        ("latency", 1.0, {("planned", 0.5), ("late", None)}),
        ("speed-scale", 2.0, {("planned", 0.0)}),
    ],
)
def test_a_fault_reaches_the_node(node, tmp_path, fault, severity, expected):
    row = DriveRow("fake", 0.5, fault, severity)
    run = short_drive(make_planner(settings(tmp_path), row, *node), row)
    delays = {
        (plan.outcome, None if plan.used_from_s is None else round(plan.used_from_s - plan.time_s, 3))
        for plan in run.plans
    }
    assert delays <= expected and len(run.plans) > 3
    if fault == "dropped":
        assert all("missing" in plan.reason for plan in run.plans)
    if fault == "speed-scale":  # the planner of the test goes straight on at the speed that it is told
        first = run.plans[0]
        assert first.ego is not None
        assert np.hypot(*(first.xy[0] - (first.ego.x, first.ego.y))) == pytest.approx(first.ego.speed, rel=1e-3)
