"""The scenario step-out: pedestrians who come out from behind something, and what is recorded of them."""

from __future__ import annotations

import json
import math
from contextlib import closing
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import sim_fakes

from fastdrive_node.cli import main
from fastdrive_node.errors import SimError, UsageError
from fastdrive_sim.bag import BagSpec, write_bag
from fastdrive_sim.dataset import DatasetSpec, plan_scenes, write_dataset
from fastdrive_sim.expert import FRONT_M
from fastdrive_sim.geometry import box_corners, to_ego
from fastdrive_sim.rig import DEFAULT_RIG, RIGS
from fastdrive_sim.roads import STEP_M, Route
from fastdrive_sim.scenarios.step_out import StepOut, StepOutLog, find_spots, is_hidden
from fastdrive_sim.sim import Simulation
from fastdrive_sim.sources import Sources
from fastdrive_sim.traffic import Pedestrian
from fastdrive_sim.types import EgoPose, Snapshot, Thing, Views

RIG = RIGS[DEFAULT_RIG]
SEEDS = (1, 4, 5, 6)
WIDTH, HEIGHT = 64, 36
SPEC = DatasetSpec(6, "val", seed=5, width=WIDTH, height=HEIGHT, scene_keyframes=3, scenario="step-out")


@pytest.fixture(scope="module")
def drives() -> list[tuple[Simulation, list[Snapshot]]]:
    found = []
    for seed in SEEDS:
        simulation = Simulation(seed, seconds=16, scenario="step-out")
        found.append((simulation, list(simulation.run())))
    return found


def hidden_pedestrians(simulation: Simulation) -> list[Pedestrian]:
    return [pedestrian for pedestrian in simulation.traffic.pedestrians if pedestrian.clear_m is not None]


def test_pedestrians_step_out_in_front_of_the_vehicle(drives):
    starts = [
        step_out.gap_m
        for _, snapshots in drives
        for before, now in pairwise(snapshots)
        for step_out, old in zip(now.observed, before.observed, strict=False)
        if step_out.instance == old.instance and step_out.crossing and not old.crossing
    ]
    assert len(starts) >= len(SEEDS)
    assert all(10 < gap < 45 for gap in starts)


def test_the_expert_hits_neither_pedestrian_nor_cover(drives):
    for simulation, snapshots in drives:
        covers = [thing for thing in simulation.world.things if thing.kind in ("truck", "bus")]
        assert covers
        for snapshot in snapshots[::2]:
            people = [thing for thing in snapshot.things if thing.kind == "pedestrian"]
            near = [cover for cover in covers if math.hypot(cover.x - snapshot.ego.x, cover.y - snapshot.ego.y) < 15]
            points = [[thing.x, thing.y] for thing in people]
            points += [point for cover in near for point in box_corners(cover)[::2, :2].tolist()]
            forward, left = to_ego(snapshot.ego, np.array(points).reshape(-1, 2)).T
            assert not ((forward > -1.0) & (forward < FRONT_M + 0.2) & (np.abs(left) < 1.1)).any()


def test_nobody_drives_ahead_and_nothing_stands_in_the_cover(drives):
    for simulation, snapshots in drives:
        first = snapshots[0]
        assert "vehicle_gap_m" not in first.ahead
        things = simulation.world.things
        assert len({thing.instance for thing in (*things, *first.things)}) == len(things) + len(first.things)
        for cover in (thing for thing in things if thing.kind in ("truck", "bus")):
            assert not inside(cover, np.array([(thing.x, thing.y) for thing in things if thing is not cover])).any()


def test_the_cover_stands_beside_the_road(drives):
    for simulation, _ in drives:
        for cover in (thing for thing in simulation.world.things if thing.kind in ("truck", "bus")):
            corners = box_corners(cover)[::2, :2]
            distance = np.linalg.norm(simulation.route.xy[None] - corners[:, None], axis=2).min()
            assert distance > 2.0


def test_a_cover_stands_in_the_line_of_sight_until_the_pedestrian_sets_off(drives):
    checked = 0
    for simulation, snapshots in drives:
        covers = [thing for thing in simulation.world.things if thing.kind in ("truck", "bus")]
        for before, now in pairwise(snapshots):
            setting_off = {each.instance for each in now.observed if each.crossing and each.gap_m > 10}
            setting_off -= {each.instance for each in before.observed if each.crossing}
            eye = to_world(before.ego, 1.7)
            for thing in (thing for thing in before.things if thing.instance in setting_off):
                line = eye + np.linspace(0, 1, 201)[:, None] * (np.array([thing.x, thing.y]) - eye)
                assert any(inside(cover, line).any() for cover in covers)
                checked += 1
    assert checked >= len(SEEDS)


def straight_route(length_m: float = 300.0) -> Route:
    s = np.arange(0.0, length_m + STEP_M, STEP_M)
    return Route(np.column_stack([s, np.zeros_like(s)]), np.zeros_like(s), np.zeros_like(s), ())


def test_places_are_found_where_the_cover_hides_the_pedestrian():
    route = straight_route()
    spots = find_spots(np.random.default_rng(0), route, 10.0, count(1))
    assert len(spots) >= 4 and all(is_hidden(spot, route) for spot in spots)
    for spot in spots:
        away = replace(spot.cover, y=spot.cover.y + math.copysign(6.0, spot.offset))
        behind = replace(spot.cover, x=spot.s + 6.0)
        assert not is_hidden(replace(spot, cover=away), route)
        assert not is_hidden(replace(spot, cover=behind), route)


def to_world(ego: EgoPose, forward: float) -> np.ndarray:
    return np.array([ego.x + forward * math.cos(ego.yaw), ego.y + forward * math.sin(ego.yaw)])


def inside(cover: Thing, points: np.ndarray) -> np.ndarray:
    local = np.abs(to_ego(EgoPose(cover.x, cover.y, cover.yaw, 0.0), points))
    return (local < np.array(cover.size[:2]) / 2).all(axis=1)


def test_a_driver_minds_a_pedestrian_once_it_is_out():
    walker = Pedestrian(1, (0, 0, 0), s=50.0, offset=-3.4, across=1.5, trigger_m=20.0, clear_m=-2.2)
    walker.step(35.0, 0.4)
    assert walker.crossing and not walker.blocks()
    walker.step(35.0, 0.6)
    assert walker.blocks()


def test_other_worlds_stay_as_they_are():
    """The scenario draws from random numbers of its own and adds to what the seed gives."""
    plain, other = Simulation(7, seconds=6), Simulation(7, seconds=6, scenario="step-out")
    assert np.array_equal(plain.route.xy, other.route.xy) and plain.driver.pose == other.driver.pose
    assert plain.world.surfaces[0].color == other.world.surfaces[0].color
    assert not hidden_pedestrians(plain) and hidden_pedestrians(other)
    assert {thing.instance for thing in other.world.things} - {thing.instance for thing in plain.world.things}
    assert all(snapshot.observed == () for snapshot in plain.run(hz=2))


def test_a_drive_is_a_function_of_its_seed():
    runs = [[s.observed for s in Simulation(seed, seconds=5, scenario="step-out").run(hz=2)] for seed in (4, 4, 5)]
    assert runs[0] == runs[1] != runs[2]


def test_default_data_sets_know_nothing_of_scenarios():
    """Their arguments, scene names and worlds are those of datasets that were written before there were any."""
    spec = DatasetSpec(80, "val", seed=101)
    assert "scenario" not in spec.arguments()
    assert [(plan.name, plan.world_seed) for plan in plan_scenes(spec)] == [
        ("sim101-val-0000", 1233984662128182),
        ("sim101-val-0001", 2647973945748655),
    ]


def test_scenarios_share_no_world_and_no_name():
    plans = [plan_scenes(DatasetSpec(80, "val", seed=101, scenario=name)) for name in ("default", "step-out")]
    assert not {plan.name for plan in plans[0]} & {plan.name for plan in plans[1]}
    assert not {plan.world_seed for plan in plans[0]} & {plan.world_seed for plan in plans[1]}


@pytest.mark.parametrize("spec", [DatasetSpec, BagSpec])
def test_an_unknown_scenario_is_refused(spec):
    with pytest.raises(UsageError, match="--scenario rain: give one of default, step-out"):
        spec(**({"keyframes": 1} if spec is DatasetSpec else {"seconds": 1, "hz": 2}), seed=1, scenario="rain")


def views_of(*boxes: tuple[int, int, int]) -> Views:
    """Views in which ``boxes`` (camera, instance, pixels) are seen."""
    instance = np.zeros((len(RIG), HEIGHT, WIDTH), np.uint16)
    for camera, number, pixels in boxes:
        instance[camera].reshape(-1)[:pixels] = number
    return Views(np.zeros((*instance.shape, 3), np.uint8), instance.astype(np.uint8), instance)


def snapshot_of(*step_outs: StepOut) -> Snapshot:
    return Snapshot(0.0, EgoPose(0, 0, 0, 5), (), "straight", np.zeros((2, 2)), observed=step_outs)


def follow(*keyframes: tuple[bool, int]) -> list[int | None]:
    """keyframes_since_visible of one pedestrian of which (crossing, pixels) are given."""
    log = StepOutLog(RIG)
    entries = [log.add(snapshot_of(StepOut(9, crossing, 20.0)), views_of((0, 9, n))) for crossing, n in keyframes]
    return [each["step_outs"][0]["keyframes_since_visible"] for each, _ in entries]


def test_a_pedestrian_appears_in_the_first_keyframe_that_sees_it():
    assert follow((False, 0), (True, 0), (True, 30), (True, 40), (True, 0), (True, 20)) == [None, None, 0, 1, 2, 3]


def test_one_that_was_in_sight_before_appears_not():
    assert follow((True, 30), (True, 30)) == [None, None]
    assert follow((False, 0), (False, 30), (True, 30)) == [None, None, None]
    assert follow((False, 30), (True, 0), (True, 30)) == [None, None, 0]


def test_a_few_pixels_are_no_sight():
    assert follow((True, 0), (True, 0), (True, 1)) == [None, None, 0]  # 1 of 64 x 36 is more than 2 in 10 000
    log = StepOutLog(RIG)
    large = Views(*(np.zeros((6, 300, 400), kind) for kind in (np.uint8, np.uint8, np.uint16)))
    log.add(snapshot_of(StepOut(9, True, 20.0)), large)
    large.instance[2, 0, :23] = 9
    assert log.add(snapshot_of(StepOut(9, True, 20.0)), large)[0]["step_outs"][0]["keyframes_since_visible"] is None
    large.instance[2, 0, :24] = 9
    entry = log.add(snapshot_of(StepOut(9, True, 20.0)), large)[0]["step_outs"][0]
    assert entry["keyframes_since_visible"] == 0 and entry["pixels"] == {"CAM_BACK_RIGHT": 24}


def test_pixels_carry_the_number_of_their_pedestrian():
    log = StepOutLog(RIG)
    both = snapshot_of(StepOut(9, True, 20.0), StepOut(300, True, 9.0))
    log.add(both, views_of())
    entries, images = log.add(both, views_of((0, 9, 30), (3, 300, 12)))
    numbers = images["step_out"]
    assert [entry["number"] for entry in entries["step_outs"]] == [1, 2]
    assert (numbers[0] == 1).sum() == 30 and (numbers[3] == 2).sum() == 12 and (numbers > 0).sum() == 42


class HidingSimulation(sim_fakes.FakeSimulation):
    """One pedestrian, instance 9, sets off after a second."""

    def __init__(self, seed: int, seconds: float, scenario: str = "default") -> None:
        super().__init__(seed, seconds)
        self._scenario = scenario

    def snapshot(self, time_s: float) -> Snapshot:
        snapshot = super().snapshot(time_s)
        if self._scenario != "step-out":
            return snapshot
        step_outs = (StepOut(9, time_s >= 3.4, 12.5),)
        return Snapshot(**{**snapshot.__dict__, "observed": step_outs})


class HidingRenderer(sim_fakes.FakeRenderer):
    """Shows instance 9 in the right front camera from 3.5 s on."""

    def render(self, snapshot: Snapshot) -> Views:
        views = super().render(snapshot)
        if snapshot.time_s >= 3.5:
            views.instance[1, 10:20, 5:9] = 9
        return views


def hiding_sources() -> Sources:
    return Sources(HidingSimulation, HidingRenderer)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("step_out") / "dataset"
    return out, write_dataset(out, SPEC, 0, hiding_sources, progress=False)


def test_extras_say_when_the_pedestrian_becomes_visible(dataset):
    out, counts = dataset
    entries = [value["step_outs"][0] for value in json.loads((out / "extras.json").read_text()).values()]
    assert [entry["keyframes_since_visible"] for entry in entries] == [None, 0, 1] * 2
    assert [entry["crossing"] for entry in entries] == [False, True, True] * 2
    assert entries[1]["pixels"] == {"CAM_FRONT_RIGHT": 40} and entries[0]["pixels"] == {}
    assert entries[1]["gap_m"] == 12.5
    assert counts["step_outs"] == 2
    sim = json.loads((out / "sim.json").read_text())
    assert sim["arguments"]["scenario"] == "step-out"
    assert [scene["step_outs"] for scene in sim["scenes"].values()] == [1, 1]


def test_masks_of_the_pedestrian_are_written_where_it_is_seen(dataset):
    out, _ = dataset
    extras = json.loads((out / "extras.json").read_text())
    files = sorted(path.relative_to(out / "step_out") for path in (out / "step_out").rglob("*.png"))
    seen = [token for token, value in extras.items() if value["step_outs"][0]["keyframes_since_visible"] is not None]
    assert files == sorted(Path("CAM_FRONT_RIGHT") / f"{token}.png" for token in seen)
    mask = cv2.imread(str(out / "step_out" / files[0]), cv2.IMREAD_UNCHANGED)
    assert mask.dtype == np.uint8 and mask.shape == (HEIGHT, WIDTH) and (mask[10:20, 5:9] == 1).all()
    assert (mask > 0).sum() == 40


def test_a_default_data_set_has_none_of_it(tmp_path):
    spec = DatasetSpec(3, "val", seed=5, width=WIDTH, height=HEIGHT, scene_keyframes=3)
    counts = write_dataset(tmp_path / "dataset", spec, 0, hiding_sources, progress=False)
    extras = json.loads((tmp_path / "dataset" / "extras.json").read_text())
    assert "step_outs" not in counts and all("step_outs" not in value for value in extras.values())
    assert not (tmp_path / "dataset" / "step_out").exists()


def test_going_on_with_another_scenario_is_refused(dataset, tmp_path):
    with pytest.raises(SimError, match=r"scene_keyframes 3 \(now 4\)"):
        spec = DatasetSpec(6, "val", seed=5, width=WIDTH, height=HEIGHT, scene_keyframes=4, scenario="step-out")
        write_dataset(dataset[0], spec, 0, hiding_sources, False)
    default = DatasetSpec(3, "val", seed=5, width=WIDTH, height=HEIGHT, scene_keyframes=3)
    write_dataset(tmp_path / "dataset", default, 0, hiding_sources, progress=False)
    other = DatasetSpec(3, "val", seed=5, width=WIDTH, height=HEIGHT, scene_keyframes=3, scenario="step-out")
    with pytest.raises(SimError, match=r"scenario default \(now step-out\)"):
        write_dataset(tmp_path / "dataset", other, 0, hiding_sources, progress=False)


def test_a_bag_is_of_its_scenario(tmp_path):
    asked = []

    class Listening(sim_fakes.FakeSimulation):
        def __init__(self, seed: int, seconds: float, scenario: str = "default") -> None:
            asked.append(scenario)
            super().__init__(seed, seconds)

    for name in ("default", "step-out"):
        spec = BagSpec(1.0, 2.0, seed=3, width=WIDTH, height=HEIGHT, scenario=name)
        write_bag(tmp_path / name, spec, lambda: Sources(Listening, sim_fakes.FakeRenderer), progress=False)
    assert asked == ["default", "step-out"]


def test_the_flag_reaches_data_set_and_bag(tmp_path, monkeypatch):
    seen = []
    for name in ("dataset", "bag"):
        write = f"fastdrive_sim.{name}.write_{name}"
        monkeypatch.setattr(write, lambda out, spec, **_: seen.append(spec.scenario) or {})
    arguments = ["--seed", "1", "--scenario", "step-out"]
    assert main(["sim", "dataset", str(tmp_path / "d"), "--keyframes", "1", *arguments]) == 0
    assert main(["sim", "bag", str(tmp_path / "b"), "--seconds", "1", "--hz", "2", *arguments]) == 0
    assert main(["sim", "dataset", str(tmp_path / "e"), "--keyframes", "1", "--seed", "1"]) == 0
    assert seen == ["step-out", "step-out", "default"]
    with pytest.raises(SystemExit):
        main(["sim", "bag", str(tmp_path / "b"), "--seconds", "1", "--hz", "2", "--seed", "1", "--scenario", "rain"])


def test_the_cameras_see_nothing_of_a_pedestrian_before_it_steps_out(drives):
    """With the real renderer. Needs OpenGL on EGL."""
    from fastdrive_sim.render import Renderer

    try:
        renderer = Renderer(112, 64)
    except SimError as error:
        pytest.skip(str(error))
    simulation, snapshots = drives[2]
    starts = {}
    for index, snapshot in enumerate(snapshots):
        for step_out in snapshot.observed:
            if step_out.crossing and step_out.gap_m > 10:
                starts.setdefault(step_out.instance, index)
    with closing(renderer):
        renderer.load(simulation.world)
        for instance, index in starts.items():
            if index > 0:
                waiting = renderer.render(snapshots[index - 1]).instance == instance
                assert waiting.sum() <= 2
                walking = [renderer.render(snapshots[index + step]).instance == instance for step in (20, 30, 40)]
                assert max(seen.sum() for seen in walking) > 5
    assert starts
