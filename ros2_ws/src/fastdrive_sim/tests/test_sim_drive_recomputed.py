"""NC, DAC, TLC, NeuroNCAP and route completion, computed again from a run's file and bag by other means.

This reads the lines of the file, or of the run's bag, as plain JSON, and uses OpenCV's geometry and nothing of
``drive.scoring``: contacts are found in the steps, not taken from the record's list.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache

import cv2
import numpy as np
import pytest

from fastdrive_sim.drive.families import FAMILIES
from fastdrive_sim.drive.loop import drive
from fastdrive_sim.drive.planners import constant_velocity_planner, expert_planner
from fastdrive_sim.drive.run_bag import read_run_lines, write_run_bag
from fastdrive_sim.drive.scoring.scores import RunScores, score_run
from fastdrive_sim.drive.storage import load_run, save_run
from fastdrive_sim.drive.types import DriveRow

CASES = [
    ("stopped-lead", 0, "constant-velocity"),
    ("road-works", 1, "constant-velocity"),
    ("bend", 0, "constant-velocity"),
    ("red-light", 1, "constant-velocity"),
    ("junction", 0, "constant-velocity"),
    ("cut-in", 1, "constant-velocity"),
    ("hidden-pedestrian", 0, "expert"),
]
FURNITURE = {"barrier", "traffic_cone", "lamp_post", "traffic_sign", "tree", "building"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The file of a case; driven once."""
    folder = tmp_path_factory.mktemp("runs")

    @cache
    def made(family: str, seed: int, row: str):
        planner = expert_planner() if row == "expert" else constant_velocity_planner()
        run = drive(FAMILIES[family].scene(seed), planner, DriveRow(row))
        run = replace(run, expert_progress_m=np.array([step.progress_m for step in run.steps]))
        path = folder / f"{row}-{family}-{seed}.jsonl"
        save_run(path, run)
        return path

    return made


class ReadAgain:
    """A run as the dictionaries of its lines."""

    def __init__(self, texts: list[str]):
        lines = [json.loads(text) for text in texts]
        self.head = lines[0]
        self.steps = [line for line in lines if line["type"] == "step"]
        self.map = self.head["map"]
        shape = self.head["vehicle"]
        self.length, self.width = shape["length_m"], shape["width_m"]
        self.middle = self.length / 2 - shape["rear_overhang_m"]

    def ego_box(self, ego):
        x = ego["x"] + self.middle * math.cos(ego["yaw"])
        y = ego["y"] + self.middle * math.sin(ego["yaw"])
        return (x, y), (self.length, self.width), math.degrees(ego["yaw"])

    def touches(self, ego, other) -> bool:
        (x, y), size, degrees = self.ego_box(ego)  # near the origin: OpenCV has single precision
        box = (other["x"] - x, other["y"] - y), (other["length"], other["width"]), math.degrees(other["yaw"])
        return cv2.rotatedRectangleIntersection(((0.0, 0.0), size, degrees), box)[0] != cv2.INTERSECT_NONE

    def corners(self, ego):
        (x, y), size, degrees = self.ego_box(ego)
        return cv2.boxPoints(((0.0, 0.0), size, degrees)) + np.array([x, y])

    def is_in(self, point, polygon) -> bool:
        shape = np.array(polygon, np.float64) - point
        return cv2.pointPolygonTest(shape.astype(np.float32).reshape(-1, 1, 2), (0.0, 0.0), False) >= 0

    def drivable_area(self) -> float:
        return float(
            all(
                any(self.is_in(corner, polygon) for polygon in self.map["drivable"])
                for step in self.steps
                for corner in self.corners(step["ego"])
            )
        )

    def contacts(self):
        """Each thing that is touched: the step, the thing, and whether it stands for the whole run."""
        seen = set()
        for step in self.steps:
            things = [(other, False) for other in step["others"]] + [(each, True) for each in self.map["obstacles"]]
            for thing, stands in things:
                far = math.hypot(thing["x"] - step["ego"]["x"], thing["y"] - step["ego"]["y"]) > 30
                if not far and thing["instance"] not in seen and self.touches(step["ego"], thing):
                    seen.add(thing["instance"])
                    yield step, thing, stands

    def no_collision(self) -> float:
        values = [1.0]
        for step, thing, stands in self.contacts():
            ego = step["ego"]
            if ego["speed"] <= 0.05:
                continue
            if not stands and thing["speed"] > 0.05 and not self._is_hit_actively(ego, thing):
                continue
            values.append(0.5 if thing["kind"] in FURNITURE else 0.0)
        return min(values)

    def _is_hit_actively(self, ego, thing) -> bool:
        to = math.atan2(thing["y"] - ego["y"], thing["x"] - ego["x"]) - ego["yaw"]
        if math.cos(to) < math.cos(math.radians(150)):
            return False
        front = dict(ego, x=ego["x"] + (self.length - 0.01) * math.cos(ego["yaw"]))  # a strip of 1 cm at the bumper
        front["y"] = ego["y"] + (self.length - 0.01) * math.sin(ego["yaw"])
        if self.touches(front, thing):
            return True
        corners = self.corners(ego)
        in_lanes = [[self.is_in(corner, lane["polygon"]) for corner in corners] for lane in self.map["lanes"]]
        several = sum(any(found) for found in in_lanes) > 1 and not any(all(found) for found in in_lanes)
        off = not all(any(self.is_in(corner, area) for area in self.map["drivable"]) for corner in corners)
        return several or off or any(self.is_in(corners.mean(axis=0), box) for box in self.map["junctions"])

    def neuroncap(self) -> float:
        for step, thing, _ in self.contacts():
            if thing["kind"] != "traffic_cone":
                ego = step["ego"]
                velocity = ego["speed"] * np.exp(1j * ego["yaw"]) - thing["speed"] * np.exp(1j * thing["yaw"])
                return 4 * max(0.0, 1 - abs(velocity) / self.steps[0]["ego"]["speed"])
        return 5.0

    def red_light(self) -> float:
        """0 where the front bumper's middle goes over a stop line at red."""
        ahead = self.length / 2 + self.middle
        for before, after in zip(self.steps, self.steps[1:], strict=False):
            for light in after["lights"]:
                (rx, ry), (lx, ly) = light["stop_line"]
                crossed = []
                for step in (before, after):
                    x = step["ego"]["x"] + ahead * math.cos(step["ego"]["yaw"])
                    y = step["ego"]["y"] + ahead * math.sin(step["ego"]["yaw"])
                    crossed.append((lx - rx) * (y - ry) - (ly - ry) * (x - rx) < 0)
                if light["state"] == "red" and crossed == [False, True]:
                    return 0.0
        return 1.0

    def route_completion(self) -> float:
        line = np.array(self.map["route"])
        arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
        places = [np.hypot(*(line - (step["ego"]["x"], step["ego"]["y"])).T).argmin() for step in self.steps]
        return float(np.clip(arc[max(places)] / self.map["goal_m"], 0, 1))


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_scores_from_the_file_are_those_reported(files, case):
    path = files(*case)
    check(score_run(load_run(path)), ReadAgain(path.read_text().splitlines()))


def test_scores_from_the_bag_are_those_reported(files, tmp_path):
    path = files(*CASES[1])
    write_run_bag(load_run(path), tmp_path / "bag")
    check(score_run(load_run(path)), ReadAgain(read_run_lines(tmp_path / "bag")))


def check(scores: RunScores, again: ReadAgain) -> None:
    assert scores.dac == again.drivable_area()
    assert scores.nc == again.no_collision()
    assert scores.tlc == again.red_light()
    assert scores.neuroncap == pytest.approx(again.neuroncap(), abs=1e-6)
    assert scores.route_completion == pytest.approx(again.route_completion(), abs=0.01)


def test_the_cases_have_collisions_completions_and_losses(files):
    """The comparison above would be empty if every run scored the same."""
    scores = [score_run(load_run(files(*case))) for case in CASES]
    assert {each.nc for each in scores} >= {0.0, 1.0}
    assert {each.tlc for each in scores} == {0.0, 1.0}
    assert min(each.route_completion for each in scores) < 0.5 < max(each.route_completion for each in scores)


def test_a_run_read_back_has_the_scores_that_it_had_before(files, tmp_path):
    run = load_run(files(*CASES[1]))
    save_run(tmp_path / "again.jsonl", run)
    assert score_run(load_run(tmp_path / "again.jsonl")) == score_run(run)
