"""What a new rig and a new scenario need: one entry each."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import sim_fakes
from rosbags.rosbag2 import Reader

from fastdrive_node.cli import main
from fastdrive_node.errors import UsageError
from fastdrive_sim.bag import BagSpec, write_bag
from fastdrive_sim.dataset import DatasetSpec, write_dataset
from fastdrive_sim.nuscenes_schema import VERSION
from fastdrive_sim.rig import DEFAULT_RIG, RIGS, camera
from fastdrive_sim.scenarios import SCENARIOS, Scenario, SceneLog
from fastdrive_sim.sim import Simulation

SPEC = DatasetSpec(keyframes=2, seed=1, split="test", width=64, height=36, scene_keyframes=2)


@pytest.fixture
def seven_cameras(monkeypatch) -> list[str]:
    rear = camera("CAM_BACK_HIGH", (0.0, 0.0, 2.2), 180.0, 900.0, (800.0, 450.0))
    monkeypatch.setitem(RIGS, "seven", (*RIGS[DEFAULT_RIG], rear))
    return [each.name for each in RIGS["seven"]]


def test_a_dataset_holds_every_camera_of_its_rig(seven_cameras, tmp_path):
    spec = replace(SPEC, rig="seven")
    counts = write_dataset(tmp_path / "d", spec, 0, sim_fakes.fake_sources, progress=False)
    assert counts["images"] == 2 * 7
    sensors = json.loads((tmp_path / "d" / VERSION / "sensor.json").read_text())
    assert [row["channel"] for row in sensors] == seven_cameras
    assert len(list((tmp_path / "d" / "masks" / "CAM_BACK_HIGH").iterdir())) == 2
    assert json.loads((tmp_path / "d" / "sim.json").read_text())["arguments"]["rig"] == "seven"


def test_a_bag_holds_every_camera_of_its_rig(seven_cameras, tmp_path):
    write_bag(
        tmp_path / "b", BagSpec(1.0, 2.0, seed=3, width=64, height=36, rig="seven"), sim_fakes.fake_sources, False
    )
    with Reader(tmp_path / "b") as reader:
        assert {f"/{name}/image_raw" for name in seven_cameras} <= set(reader.topics)


def test_the_default_rig_and_scenario_are_not_among_the_arguments_of_a_dataset():
    assert not {"rig", "scenario"} & set(SPEC.arguments())


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=f"--rig bus: give one of {DEFAULT_RIG}"):
        replace(SPEC, rig="bus")
    with pytest.raises(UsageError, match="--scenario rain: give one of default, step-out"):
        replace(SPEC, scenario="rain")


def test_the_options_take_every_entry(capsys):
    for name in ("dataset", "bag"):
        with pytest.raises(SystemExit):
            main(["sim", name, "--help"])
        shown = capsys.readouterr().out
        assert all(each in shown for each in (*RIGS, *SCENARIOS))


class FogLog(SceneLog):
    def add(self, snapshot, views):
        (density,) = snapshot.observed
        return {"fog": density}, {"fog": np.full(views.label.shape, 7, np.uint8)}

    def counts(self):
        return {"foggy_scenes": 1}


class FogScenario(Scenario):
    summary = "nobody sees far"

    def prepare(self, world, traffic, seed, limit, seconds, ids):
        return replace(world, haze=1.0), traffic

    def observe(self, traffic, ego_s):
        return (0.5,)

    def open_log(self, rig):
        return FogLog()


class FoggySimulation(sim_fakes.FakeSimulation):
    def snapshot(self, time_s):
        return replace(super().snapshot(time_s), observed=(0.5,))


def test_a_scenario_changes_the_world_and_adds_to_snapshots(monkeypatch):
    monkeypatch.setitem(SCENARIOS, "fog", FogScenario())
    simulation = Simulation(seed=3, seconds=1.0, scenario="fog")
    assert simulation.world.haze == 1.0
    assert next(simulation.run(0.0)).observed == (0.5,)


def test_a_scenario_adds_entries_images_and_counts_to_a_dataset(monkeypatch, tmp_path):
    monkeypatch.setitem(SCENARIOS, "fog", FogScenario())
    sources = sim_fakes.Sources(FoggySimulation, sim_fakes.FakeRenderer)
    counts = write_dataset(tmp_path / "d", replace(SPEC, scenario="fog"), 0, lambda: sources, progress=False)
    extras = json.loads((tmp_path / "d" / "extras.json").read_text())
    assert counts["foggy_scenes"] == 1 and [each["fog"] for each in extras.values()] == [0.5, 0.5]
    image = next((tmp_path / "d" / "fog" / "CAM_FRONT").iterdir())
    assert (cv2.imread(str(image), cv2.IMREAD_UNCHANGED) == 7).all()
    record = json.loads((tmp_path / "d" / "sim.json").read_text())
    assert record["arguments"]["scenario"] == "fog"
    assert [scene["foggy_scenes"] for scene in record["scenes"].values()] == [1]
