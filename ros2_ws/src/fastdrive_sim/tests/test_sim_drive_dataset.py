"""Datasets of the closed loop's scenarios: seeds, disturbances, labels, and what is ahead."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import sim_fakes

from fastdrive_node.cli import main
from fastdrive_node.errors import SimError, UsageError
from fastdrive_sim.dataset import write_dataset
from fastdrive_sim.drive.agents import gaps_in_lane
from fastdrive_sim.drive.disturbance import MAX_OFFSET_M, DisturbedTracker, random_start
from fastdrive_sim.drive.expert import Expert
from fastdrive_sim.drive.families import FAMILIES
from fastdrive_sim.drive.loop import drive
from fastdrive_sim.drive.planners import expert_planner
from fastdrive_sim.drive.recorder import LEAD_IN, StateRecorder, is_drivable
from fastdrive_sim.drive.simulation import DriveDatasetSpec, DriveSimulation
from fastdrive_sim.drive.suite import SUITES, TRAINING_SEEDS, scenarios
from fastdrive_sim.drive.tracking import Reference, Tracker
from fastdrive_sim.drive.types import DriveRow, EgoStep, Other
from fastdrive_sim.drive.vehicle import VehicleModel
from fastdrive_sim.geometry import to_ego
from fastdrive_sim.roads import Straight, route_of

BEND = list(FAMILIES).index("bend")
SPEC = DriveDatasetSpec(12, "train", seed=3, width=64, height=36, scene_keyframes=12)


@pytest.fixture(scope="module")
def recording():
    return DriveSimulation(BEND).choose(20, 2)


def test_families_are_drawn_evenly_and_no_suite_has_a_training_seed():
    drawn = [DriveSimulation(seed) for seed in range(len(FAMILIES))]
    assert [each.family for each in drawn] == list(FAMILIES)
    assert min(each.scenario_seed(number) for each in drawn for number in range(12)) >= TRAINING_SEEDS
    assert all(key.seed < TRAINING_SEEDS for suite in SUITES for key in scenarios(suite, (), None, 0))
    with pytest.raises(UsageError, match="--seed 999999999: seeds from 1000000000 on are"):
        scenarios("standard", (), None, TRAINING_SEEDS - 1)


def test_a_seed_gives_one_recording(recording):
    again, other = (DriveSimulation(seed).choose(20, 2) for seed in (BEND, BEND + len(FAMILIES)))
    assert [each.ego for each in again.snapshots] == [each.ego for each in recording.snapshots]
    assert [each.step for each in again.keyframes] == [each.step for each in recording.keyframes]
    assert other.about != recording.about


def test_the_first_keyframe_has_a_history_and_the_states_are_off_the_lane(recording):
    assert len(recording.keyframes) == 20 and min(each.step for each in recording.keyframes) >= LEAD_IN
    assert np.allclose(np.diff([each.time_s for each in recording.snapshots]), 0.05)
    offsets = [abs(each.entries["lane_offset_m"]) for each in recording.keyframes]
    assert max(offsets) > 0.1


def disturbed(seed: int) -> StateRecorder:
    scene, rng = FAMILIES["junction"].scene(TRAINING_SEEDS + seed), np.random.default_rng(seed)
    recorder = StateRecorder(expert_planner(), 2)
    drive(scene, recorder, DriveRow("expert"), start=random_start(scene, rng), tracker=DisturbedTracker(scene, rng))
    return recorder


def test_disturbances_push_the_vehicle_off_and_the_expert_brings_it_back():
    offsets = np.abs([each.entries["lane_offset_m"] for seed in range(3) for each in disturbed(seed).keyframes])
    assert 0.4 < offsets.max() < MAX_OFFSET_M + 0.5
    assert (offsets < 0.15).mean() > 0.3


@pytest.fixture(scope="module")
def off_lane():
    """A scene on a straight road, and the vehicle 0.6 m left of its lane's middle, turned 5 degrees away from it."""
    scene = FAMILIES["cut-in"].scene(TRAINING_SEEDS)
    x, y, yaw = scene.route.at(scene.start_s, 0.6)
    start = scene.start()
    return scene, replace(start, x=x, y=y, yaw=yaw + math.radians(5.0), speed=8.0)


def test_a_label_begins_along_the_heading_and_leads_back_into_the_lane(off_lane):
    scene, ego = off_lane
    label = Expert(scene).label(ego)
    lefts = [scene.route.project(x, y, scene.start_s + 4.0 * index)[1] for index, (x, y) in enumerate(label, 1)]
    assert lefts[0] > 0.55 and abs(lefts[-1]) < 0.25 and min(lefts) > -0.1
    plan, _ = Expert(scene).plan(ego)
    assert is_drivable(label, ego) and not is_drivable(plan, ego)  # the plan leaves the heading to the controller


def test_the_vehicle_can_follow_a_label(off_lane):
    scene, ego = off_lane
    label = Expert(scene).label(ego)
    model, tracker = VehicleModel(ego), Tracker()
    tracker.reference = Reference.of_plan(ego, 0.0, label, 0.5 * np.arange(1, 7))
    states = [model.step(tracker.control(model.state, 0.01 * step)) for step in range(300)]
    driven = np.array([(state.x, state.y) for state in states[49::50]])
    assert np.linalg.norm(driven - label, axis=1).max() < 0.3


STANDS, STUCK = (0.0, 0.5, 1.0, 1.5, 2.0, 5.0, 8.0), (0.0, 0.5, 1.0, 1.5, 2.0, 4.0, 6.0, 8.0)


@pytest.mark.parametrize("accel, times", [(0.0, STANDS), (1.5, STUCK)])
def test_a_vehicle_that_stands_gives_few_keyframes(monkeypatch, accel, times):
    way = accel * (0.5 * np.arange(1, 7)[:, None]) ** 2 / 2

    def label(_: Expert, ego: EgoStep) -> np.ndarray:
        return np.array([ego.x, ego.y]) + way * (math.cos(ego.yaw), math.sin(ego.yaw))

    monkeypatch.setattr(Expert, "label", label)
    recorder, scene = StateRecorder(expert_planner(), 2), FAMILIES["bend"].scene(TRAINING_SEEDS)
    recorder.begin(scene)
    for step in range(20 * 8 + 1):
        recorder.watch(replace(scene.start(), speed=0.0), step / 20)
    assert tuple((each.step - LEAD_IN) / 20 for each in recorder.keyframes) == times
    recorder.leave_out_after(2.9)
    assert len(recorder.keyframes) == 5 and recorder.recording(slice(None)).counts["standing_keyframes"] == 5


ROUTE = route_of([Straight(120.0)])


@pytest.mark.parametrize(
    "kind, left, yaw, speed, counts",
    [
        ("car", 0.0, 0.0, 5.0, True),
        ("car", 3.5, math.pi, 5.0, False),  # oncoming
        ("cyclist", 1.0, 0.0, 4.0, True),
        ("truck", -2.8, 0.0, 0.0, False),  # parked beside the lane
        ("pedestrian", -3.0, math.pi / 2, 1.4, True),
        ("pedestrian", 3.0, math.pi / 2, 1.4, False),  # past the lane
        ("pedestrian", -3.0, math.pi / 2, 0.0, False),  # waits
        ("pedestrian", -3.0, 0.0, 1.4, False),  # walks along the road
    ],
)
def test_what_is_ahead_is_in_the_lane_or_about_to_be(kind, left, yaw, speed, counts):
    length, width = (0.4, 0.6) if kind == "pedestrian" else (4.0, 1.8)
    near, far = (Other(1, kind, *ROUTE.at(s, left)[:2], yaw, length, width, speed) for s in (30.0, 45.0))
    name = "pedestrian_gap_m" if kind == "pedestrian" else "vehicle_gap_m"
    gap = 20.0 if kind == "pedestrian" else 18.0
    assert gaps_in_lane(ROUTE, 10.0, [far, near]) == ({name: pytest.approx(gap, abs=0.01)} if counts else {})
    assert gaps_in_lane(ROUTE, 31.0, [near]) == {}


def test_a_scene_of_a_dataset_is_labelled_by_the_expert(tmp_path):
    write_dataset(tmp_path / "d", SPEC, 0, sim_fakes.fake_sources, False)
    extras = json.loads((tmp_path / "d" / "extras.json").read_text())
    ((name, scene),) = json.loads((tmp_path / "d" / "sim.json").read_text())["scenes"].items()
    recording = DriveSimulation(scene["world_seed"]).choose(12, 2)
    assert scene["scenario_seed"] >= TRAINING_SEEDS and scene["family"] in FAMILIES and "drive" in name
    for entry, keyframe in zip(extras.values(), recording.keyframes, strict=True):
        ego = recording.snapshots[keyframe.step].ego
        assert keyframe.future is not None
        assert np.allclose(entry["future_xy"], to_ego(ego, keyframe.future), atol=1e-3)
        assert entry["lane_offset_m"] == keyframe.entries["lane_offset_m"] and "light" in entry["ahead"]
        past = recording.snapshots[keyframe.step - 10].ego
        assert np.allclose(entry["history"][0][1:3], to_ego(ego, np.array([past.x, past.y])), atol=1e-3)


def test_a_keyframe_is_labelled_at_other_speeds_too():
    scene = FAMILIES["stopped-lead"].scene(TRAINING_SEEDS)
    recorder = StateRecorder(expert_planner(), 2, other_speeds=4)
    drive(scene, recorder, DriveRow("expert"))
    most, differs = 1.1 * scene.limit, 0
    for keyframe in recorder.keyframes[:12]:
        ego = recorder.driven[keyframe.step - LEAD_IN].ego
        assert keyframe.future is not None
        own_m = float(np.hypot(*to_ego(ego, keyframe.future)[-1]))
        found = keyframe.entries["other_speeds"]
        speeds = [each["speed_mps"] for each in found]
        assert 2 <= len(found) <= 4 and speeds == sorted(speeds) and max(speeds) <= most
        for each in found:
            (first_m, left_m), *rest = each["future_xy"]
            assert len(rest) == 5 and abs(left_m) < 0.2 and each["yaw_rate_radps"] == pytest.approx(0.0, abs=0.05)
            assert first_m == pytest.approx(0.5 * each["speed_mps"], abs=0.8)  # a second at most of 2 to 6 m/s2
            differs += abs(float(np.hypot(*each["future_xy"][-1])) - own_m) > 1.0
    assert differs > 20


def test_datasets_without_other_speeds_are_the_same_as_before(recording):
    again = DriveSimulation(BEND, other_speeds=2).choose(20, 2)
    for one, other in zip(recording.keyframes, again.keyframes, strict=True):
        assert "other_speeds" not in one.entries and "other_speeds" in other.entries
        assert one.step == other.step and np.array_equal(one.future, other.future)
    assert "other_speeds" not in SPEC.arguments() and replace(SPEC, other_speeds=2).arguments()["other_speeds"] == 2


def test_other_speeds_need_the_experts_labels(tmp_path, capsys):
    arguments = ["sim", "dataset", str(tmp_path / "d"), "--keyframes", "3", "--seed", "1", "--other-speeds"]
    assert main([*arguments, "2"]) == 2
    assert "--other-speeds: only the expert gives them; add --scenario drive" in capsys.readouterr().err
    assert main([*arguments, "17", "--scenario", "drive"]) == 2
    assert "--other-speeds 17: give 0 to 16" in capsys.readouterr().err


def test_scenes_are_of_the_families_that_are_asked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "fastdrive_sim.dataset.write_dataset",
        lambda out, spec, workers: write_dataset(out, spec, 0, sim_fakes.fake_sources, False),
    )
    arguments = ["sim", "dataset", str(tmp_path / "d"), "--seed", "3", "--keyframes", "36", "--size", "64x36"]
    arguments += ["--split", "train", "--scenario", "drive", "--scene-keyframes", "12"]
    arguments += ["--family", "bend", "--family", "cyclist", "--json", str(tmp_path / "d.json")]
    assert main(arguments) == 0
    sim = json.loads((tmp_path / "d" / "sim.json").read_text())
    assert {scene["family"] for scene in sim["scenes"].values()} <= {"bend", "cyclist"} and len(sim["scenes"]) == 3
    assert main(arguments) == 0  # the folder is known again
    assert json.loads((tmp_path / "d.json").read_text())["keyframes_per_s"] is None
    without = [each for each in arguments if each not in ("--family", "bend", "cyclist")]
    assert main(without) == 1
    assert "was begun with family ['bend', 'cyclist'] (now none)" in capsys.readouterr().err
    assert main([*arguments, "--family", "bent"]) == 2
    assert "--family bent: unknown; did you mean bend?" in capsys.readouterr().err
    assert main(["sim", "dataset", str(tmp_path / "e"), "--seed", "3", "--keyframes", "4", "--family", "bend"]) == 2
    assert "--family: families are those of --scenario drive" in capsys.readouterr().err


def test_too_many_keyframes_a_scene_are_refused(monkeypatch):
    monkeypatch.setattr("fastdrive_sim.drive.simulation.TRIES", 1)
    with pytest.raises(SimError, match=r"--scene-keyframes 300: a scenario of bend has \d+ at most"):
        DriveSimulation(BEND).choose(300, 2)


def test_a_bag_of_it_is_refused(tmp_path, capsys):
    arguments = ["--scenario", "drive", "--seconds", "1", "--hz", "2", "--seed", "1"]
    assert main(["sim", "bag", str(tmp_path / "bag"), *arguments]) == 2
    assert "--scenario drive: bags of these come from `fastdrive sim drive --bags`" in capsys.readouterr().err
