"""Datasets of the states that a planner has reached in a drive."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import sim_fakes

from fastdrive_node.cli import main
from fastdrive_node.errors import InputError, UsageError
from fastdrive_sim import dataset
from fastdrive_sim.dataset import write_dataset
from fastdrive_sim.drive.expert import Expert
from fastdrive_sim.drive.families import FAMILIES
from fastdrive_sim.drive.loop import drive
from fastdrive_sim.drive.planners import constant_velocity_planner, expert_planner
from fastdrive_sim.drive.recorder import LEAD_IN
from fastdrive_sim.drive.redrive import away_from_road, redrive
from fastdrive_sim.drive.run_dataset import RecordedRun, run_dataset_spec
from fastdrive_sim.drive.scene import pose_of
from fastdrive_sim.drive.storage import lines, load_run, save_run
from fastdrive_sim.drive.types import COLLIDED, OFF_ROAD, DriveRow, RunRecord

SEED = 20  # not of the suites
PATH = Path("none/bend-20.jsonl")


def driven(family: str, planner, seed: int = SEED) -> RunRecord:
    return drive(FAMILIES[family].scene(seed), planner, DriveRow("none"))


@pytest.fixture(scope="module")
def late() -> RunRecord:
    """The expert with a latency: other plans in use than at their ticks."""
    return driven("bend", expert_planner(0.3))


@pytest.fixture(scope="module")
def drives(tmp_path_factory, late) -> Path:
    """The folder of a drive with one run of a node."""
    out = tmp_path_factory.mktemp("drive")
    for row, run in (("none", late), ("expert", late), ("reconpruner@0.5", replace(late, row=DriveRow("recon", 0.5)))):
        (out / "runs" / row).mkdir(parents=True)
        save_run(out / "runs" / row / f"bend-{SEED}.jsonl", run)
    return out


def test_a_run_of_the_file_is_driven_again_as_it_was(late, drives):
    recorder = redrive(load_run(drives / "runs/none/bend-20.jsonl"), PATH, 2)
    then = {round(step.time_s, 6): step.ego for step in late.steps}
    for keyframe in recorder.keyframes:
        snapshot = recorder.driven[keyframe.step - LEAD_IN]
        assert pose_of(then[round(snapshot.time_s, 6)]) == snapshot.ego
    assert len(recorder.keyframes) >= len(late.plans) - 2
    first = recorder.keyframes[0]
    scene = FAMILIES["bend"].scene(SEED)
    assert first.step == LEAD_IN and first.future is not None
    assert np.array_equal(first.future, Expert(scene).label(scene.start()))


def test_a_run_that_cannot_be_driven_again_is_refused(late):
    step = late.steps[30]
    moved = replace(step, ego=replace(step.ego, x=step.ego.x + 1e-9))
    with pytest.raises(InputError, match=r"another run from 3 s on \(vehicle\); it was driven by another version"):
        redrive(replace(late, steps=(*late.steps[:30], moved, *late.steps[31:])), PATH, 2)
    red = replace(step, others=(*step.others, *step.others[:1]), command="left")
    with pytest.raises(InputError, match=r"from 3 s on \(others or lights\)"):
        redrive(replace(late, steps=(*late.steps[:30], red, *late.steps[31:])), PATH, 2)
    with pytest.raises(InputError, match="the scenario is not the one of this version"):
        redrive(replace(late, parameters={**late.parameters, "limit": 1.0}), PATH, 2)
    with pytest.raises(InputError, match="of the family moose, which this version does not have"):
        redrive(replace(late, family="moose"), PATH, 2)


def test_keyframes_end_with_the_run_that_failed_and_with_a_contact(late):
    failed = redrive(replace(late, steps=late.steps[:41]), PATH, 2)
    assert [round(each.step - LEAD_IN) for each in failed.keyframes] == list(range(0, 81, 10))
    hit = driven("stopped-lead", constant_velocity_planner())
    assert hit.ending == COLLIDED
    keyframes = redrive(hit, PATH, 2).keyframes
    assert 0 < (keyframes[-1].step - LEAD_IN) / 20 < hit.collisions[0].time_s


def test_keyframes_beside_the_road_are_left_out():
    run = driven("bend", constant_velocity_planner(), 26)
    assert run.ending == OFF_ROAD
    away = [away_from_road(run, step.ego.x, step.ego.y) for step in run.steps]
    assert away[0] == 0.0 and away[-1] > 2.0
    recorder = redrive(run, PATH, 2)
    poses = [recorder.driven[each.step - LEAD_IN].ego for each in recorder.keyframes]
    assert poses and max(away_from_road(run, pose.x, pose.y) for pose in poses) <= 2.0
    assert len(poses) < len(run.steps) // 5


def test_the_rows_of_a_node_are_taken_or_those_asked_for(drives):
    spec = run_dataset_spec(drives, width=64, height=36)
    assert [Path(run.path).parent.name for run in spec.runs] == ["none", "reconpruner@0.5"]
    assert len({plan.name for plan in spec.scenes()}) == 2 and {plan.split for plan in spec.scenes()} == {"train"}
    assert [len(run_dataset_spec(drives, ["expert"]).runs), run_dataset_spec(drives, split="val").split] == [1, "val"]
    with pytest.raises(UsageError, match=r"--row nine: not in the drive; give one of expert, none, reconpruner@0\.5"):
        run_dataset_spec(drives, ["nine"])
    with pytest.raises(InputError, match="no runs of a drive in it"):
        run_dataset_spec(drives / "runs")


def test_a_dataset_does_not_depend_on_what_is_known_of_kept_tokens(late, tmp_path):
    digests = []
    for name, kept in (("known", {"FRONT": np.eye(2, dtype=bool)}), ("unknown", {})):
        plans = tuple(replace(plan, kept=kept, kept_tokens=2, total_tokens=4) for plan in late.plans)
        file = tmp_path / name / "runs" / PATH
        file.parent.mkdir(parents=True)
        save_run(file, replace(late, plans=plans))
        assert ('"type":"kept"' in file.read_text()) == bool(kept)
        digests += [run.digest for run in run_dataset_spec(tmp_path / name, width=64, height=36).runs]
    assert digests[0] == digests[1]


def test_a_run_of_an_earlier_version_gives_the_same_dataset(late, drives, tmp_path):
    file = tmp_path / "runs" / PATH
    file.parent.mkdir(parents=True)
    file.write_text("".join(f"{line}\n" for line in lines(late)))
    (file.parent / ".bend-21.99.partial.jsonl").write_text("of a worker that was killed")
    (run,) = run_dataset_spec(tmp_path).runs
    (now,) = run_dataset_spec(drives, ["none"]).runs
    assert run.digest == now.digest
    keyframes = [RecordedRun(Path(each.path)).choose(9, 2).keyframes for each in (run, now)]
    assert len(keyframes[0]) == len(keyframes[1]) == 9


def test_runs_of_the_suites_are_refused(tmp_path, late):
    (tmp_path / "runs" / "none").mkdir(parents=True)
    save_run(tmp_path / "runs" / "none" / "bend-15.jsonl", late)
    with pytest.raises(UsageError, match=r"none/bend-15\.jsonl is of the standard suite, which is for evaluation"):
        run_dataset_spec(tmp_path)


def test_the_command_writes_the_states_of_a_drive(monkeypatch, tmp_path, drives, late):
    sources = sim_fakes.Sources(sim_fakes.FakeSimulation, sim_fakes.FakeRenderer)
    monkeypatch.setattr(dataset, "write_dataset", lambda out, spec, workers: write(out, spec, 0, lambda: sources))
    arguments = ["sim", "dataset", str(tmp_path / "d"), "--from-drive", str(drives), "--row", "none", "--size", "64x36"]
    arguments += ["--other-speeds", "2"]
    assert main([*arguments, "--json", str(tmp_path / "d.json")]) == 0
    counts = json.loads((tmp_path / "d.json").read_text())
    sim = json.loads((tmp_path / "d" / "sim.json").read_text())
    extras = json.loads((tmp_path / "d" / "extras.json").read_text())
    (scene,) = sim["scenes"].values()
    assert (scene["family"], scene["scenario_seed"], scene["row"]) == ("bend", SEED, "none")
    recording = RecordedRun(drives / "runs/none/bend-20.jsonl").choose(99, 2)
    assert all(len(each["other_speeds"]) <= 2 for each in extras.values() if "other_speeds" in each)
    assert sum("other_speeds" in each for each in extras.values()) > len(extras) // 2
    assert counts["keyframes"] == len(extras) == len(recording.keyframes)
    assert sim["arguments"]["other_speeds"] == 2
    assert sim["arguments"]["runs"] == 1 and len(sim["arguments"]["runs_sha256"]) == 64
    assert main([*arguments, "--json", str(tmp_path / "again.json")]) == 0
    assert json.loads((tmp_path / "again.json").read_text())["keyframes_per_s"] is None


write = partial(write_dataset, progress=False)


def test_what_the_runs_decide_cannot_be_given(drives, tmp_path, capsys):
    assert main(["sim", "dataset", str(tmp_path / "d"), "--from-drive", str(drives), "--seed", "1"]) == 2
    assert "--seed: the runs decide this; leave it out with --from-drive" in capsys.readouterr().err
    assert main(["sim", "dataset", str(tmp_path / "d"), "--keyframes", "3", "--seed", "1", "--row", "none"]) == 2
    assert main(["sim", "dataset", str(tmp_path / "d"), "--keyframes", "3"]) == 2
    assert "--seed: is needed; give a number" in capsys.readouterr().err
