"""The scenarios of the closed loop, and what the expert and constant velocity make of them."""

from __future__ import annotations

import numpy as np
import pytest

from fastdrive_node.errors import FastDriveError, UsageError
from fastdrive_sim.drive.contact import overlap
from fastdrive_sim.drive.families import FAMILIES
from fastdrive_sim.drive.loop import REFUSALS_S, drive
from fastdrive_sim.drive.planners import InProcessPlanner, Tick, TickAnswer, constant_velocity_planner, expert_planner
from fastdrive_sim.drive.storage import lines
from fastdrive_sim.drive.suite import rows, scenarios
from fastdrive_sim.drive.types import COLLIDED, COMPLETED, FAILED, REFUSED, DriveRow, ego_corners, other_corners

ROW = DriveRow("expert")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_gives_one_scenario_and_nobody_starts_in_the_ego_vehicle(family):
    scene, again, other = (FAMILIES[family].scene(seed) for seed in (3, 3, 4))
    assert scene.parameters == again.parameters != other.parameters
    assert scene.others() == again.others()
    assert scene.map().obstacles == again.map().obstacles
    ego = ego_corners(scene.start(), scene.vehicle)
    things = (*scene.others(), *scene.map().obstacles)
    assert not [thing for thing in things if overlap(ego, other_corners(thing))]
    assert scene.route.length > scene.start_s + scene.goal_m + 20
    assert FAMILIES[family].summary


def test_there_are_twelve_families_or_more_and_200_standard_runs():
    assert len(FAMILIES) >= 12
    assert len(scenarios("standard", (), None, 0)) >= 200
    assert len(scenarios("smoke", (), None, 0)) == len(FAMILIES)


@pytest.mark.parametrize("family", ["stopped-lead", "cut-in", "unprotected-turn", "road-works"])
def test_the_expert_completes_what_constant_velocity_does_not(family):
    scene = FAMILIES[family]
    expert = drive(scene.scene(1), expert_planner(), ROW)
    assert (expert.ending, expert.collisions) == (COMPLETED, ())
    assert drive(scene.scene(1), constant_velocity_planner(), DriveRow("constant-velocity")).ending != COMPLETED


def test_a_run_is_the_same_again_and_a_latency_changes_it():
    runs = [drive(FAMILIES["bend"].scene(2), expert_planner(latency), ROW) for latency in (0.0, 0.0, 0.3)]
    assert list(lines(runs[0])) == list(lines(runs[1])) != list(lines(runs[2]))
    used = [(plan.used_from_s, plan.time_s) for plan in runs[2].plans]
    assert {round(use - exposed, 6) for use, exposed in used if use is not None} == {0.3} and len(used) > 10


def test_others_react_to_the_ego_vehicle():
    scene = FAMILIES["dense-traffic"].scene(0)
    run = drive(scene, InProcessPlanner(lambda scene: lambda ego: (np.full((6, 2), (ego.x, ego.y)), TIMES), 0.0), ROW)
    behind = min(run.steps[-1].others, key=lambda other: np.hypot(other.x - run.steps[-1].ego.x, other.y))
    assert run.ending != COLLIDED and behind.speed < 0.5  # it stands behind a vehicle that does not drive


TIMES = 0.5 * np.arange(1, 7)


class Refusing:
    """Refuses every set, or raises."""

    def __init__(self, error: FastDriveError | None = None):
        self.error = error
        self.answers: list[TickAnswer] = []

    def begin(self, scene) -> None: ...

    def watch(self, ego, time_s) -> None: ...

    def offer(self, ego, time_s) -> None:
        if self.error is not None:
            raise self.error
        self.answers.append(TickAnswer(Tick(time_s, ego), REFUSED, "answer: no plan in it"))

    def collect(self, time_s) -> list[TickAnswer]:
        done, self.answers = self.answers, []
        return done


def test_a_planner_that_refuses_every_set_makes_the_run_fail_with_the_reason():
    run = drive(FAMILIES["bend"].scene(0), Refusing(), DriveRow("none"))
    assert run.ending == FAILED and "answer: no plan in it" in run.reason
    assert run.steps[-1].time_s == REFUSALS_S and run.steps[-1].ego.speed == 0.0


def test_a_run_whose_plans_all_come_too_late_fails_and_says_so():
    run = drive(FAMILIES["bend"].scene(0), constant_velocity_planner(4.0), DriveRow("none"))
    assert run.ending == FAILED and run.reason.startswith(f"no plan in use in {REFUSALS_S:g} s; plans came after their")


def test_a_planner_that_breaks_down_makes_the_run_fail_with_the_reason():
    run = drive(FAMILIES["bend"].scene(0), Refusing(FastDriveError("the node ended\nwith 3")), DriveRow("none"))
    assert (run.ending, run.reason) == (FAILED, "the node ended with 3")


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"--family stoped-lead: unknown; did you mean stopped-lead\?"):
        scenarios("smoke", ["stoped-lead"], None, 0)
    with pytest.raises(UsageError, match="--suite all: give one of standard, smoke"):
        scenarios("all", [], None, 0)


def test_a_family_that_is_named_twice_counts_once():
    assert [key.seed for key in scenarios("smoke", ["bend", "bend"], 2, 0)] == [0, 1]


def test_rows_are_pruners_by_ratios_by_faults_and_the_references():
    names = [row.name for row in rows(["none", "reconpruner"], [0.25, 0.5], [("frozen", 0.5)], 0.0)]
    assert DriveRow("/data/mine.safetensors", 0.5).name == "mine@0.5"
    with pytest.raises(UsageError, match=r"two rows are called mine@0\.5"):
        rows(["/a/mine.safetensors", "/b/mine.safetensors"], [0.5], [], 0.0)
    assert names == [
        "expert",
        "constant-velocity",
        "none",
        "reconpruner@0.25",
        "reconpruner@0.5",
        "none+frozen:0.5",
        "reconpruner@0.25+frozen:0.5",
        "reconpruner@0.5+frozen:0.5",
    ]
