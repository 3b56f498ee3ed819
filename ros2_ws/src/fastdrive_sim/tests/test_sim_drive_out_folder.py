"""A drive's folder: which drive it is of, and which of its runs are of the pruner's file of today."""

from __future__ import annotations

import json
import os
import shutil
import time

import pytest

from fastdrive_node.errors import InputError
from fastdrive_node.families.spec import default_vla_dir
from fastdrive_sim.drive.command import DriveOptions, _identity, _settings
from fastdrive_sim.drive.out_folder import SETTINGS, claim, pruner_files
from fastdrive_sim.drive.runner import _is_done
from fastdrive_sim.drive.types import DriveRow


def claim_for(vla, out, *pruners):
    """Claim a folder for rows with these pruners."""
    options = DriveOptions(out, families=("bend",), runs=1, pruners=(), vla=vla)
    rows = [DriveRow(pruner, 0.5) for pruner in pruners]
    return claim(out, _identity(options, _settings(options)), pruner_files(vla, rows))


@pytest.fixture
def vla(tmp_path):
    return shutil.copytree(default_vla_dir(), tmp_path / "vla")


def test_another_model_in_the_same_folder_is_another_drive(vla, tmp_path):
    out = tmp_path / "out"
    claim_for(vla, out)
    claim_for(vla, out)
    (vla / "model.safetensors").write_bytes(b"trained again")
    with pytest.raises(InputError, match=r"other settings \(settings\.json: vla_files: \w{16} there, \w{16} now"):
        claim_for(vla, out)


@pytest.mark.parametrize(
    ("then", "now", "told"),
    [
        ({"size": [1, 2]}, {"size": [1, 3]}, "size: [1, 2] there, [1, 3] now"),
        ({}, {"node_parameters": "a: 1"}, "node_parameters: none there, a: 1 now"),
        ({"node_parameters": "a: 1"}, {}, "node_parameters: a: 1 there, none now"),
        ({"actuators": {"a": 1, "b": 2}}, {"actuators": {"a": 1, "b": 3}}, "actuators.b: 2 there, 3 now"),
        ({"node_parameters": "a:\n  b: 1\n"}, {"node_parameters": "a:\n  b: 2\n"}, "b: 1 there, b: 2 now"),
        ({"node_parameters": "a" * 200}, {}, f"node_parameters: {'a' * 77}... there, none now"),
    ],
)
def test_the_setting_that_differs_is_named_with_both_values(tmp_path, then, now, told):
    claim(tmp_path, {"plan_hz": 2.0, **then}, {})
    with pytest.raises(InputError) as error:
        claim(tmp_path, {"plan_hz": 2.0, **now}, {})
    assert f"{told}); give a new --out, or the settings of this one" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"pruners": 1}', '{"pruners": {"a": {}}}', '{"pruners": {"a": {"file": "x", "since_ns": "1"}}}'],
)
def test_settings_that_are_not_those_of_a_drive_are_told(vla, tmp_path, text):
    (tmp_path / SETTINGS).write_text(text)
    with pytest.raises(InputError, match=r"settings\.json: not readable as JSON of a drive"):
        claim_for(vla, tmp_path)


def test_a_pruner_that_is_added_to_the_vla_is_no_other_drive(vla, tmp_path):
    claim_for(vla, tmp_path / "out", "none", "random")
    (vla / "reconpruner_plan.safetensors").write_bytes(b"another")
    assert claim_for(vla, tmp_path / "out", "reconpruner-plan") == {"reconpruner-plan": 0}


def test_the_file_of_a_named_pruner_is_the_one_in_the_vla_directory(tmp_path):
    files = {
        "reconpruner": "reconpruner.safetensors",
        "reconpruner-plan": "reconpruner_plan.safetensors",
        "reconpruner-even50": "reconpruner.safetensors",
        "prune2drive": "prune2drive.json",
        "ring-view": "camera_geometry.json",
        "tokenpacker": "tokenpacker.safetensors",
    }
    without = ("none", "random", "expert", "constant-velocity")
    found = pruner_files(tmp_path, [DriveRow(name, 0.5) for name in (*files, *without)])
    assert found == {name: tmp_path / file for name, file in files.items()}
    own = tmp_path / "elsewhere" / "own.safetensors"
    assert pruner_files(tmp_path, [DriveRow(str(own), 0.5)]) == {"own": own}


@pytest.mark.parametrize("how", ["changed", "deleted", "of another folder"])
def test_runs_of_another_pruner_file_are_driven_again_whatever_its_time(vla, tmp_path, how):
    out, run, pruner = tmp_path / "out", tmp_path / "bend-0.jsonl", tmp_path / "own.safetensors"
    pruner.write_bytes(b"first")
    before = claim_for(vla, out, str(pruner))
    run.touch()
    assert before == {"own": 0} and _is_done(run, before["own"])
    assert claim_for(vla, out, str(pruner)) == before
    if how == "of another folder":
        pruner = tmp_path / "more" / "own.safetensors"
        pruner.parent.mkdir()
    if how == "deleted":
        pruner.unlink()
    else:
        pruner.write_bytes(b"second")
        os.utime(pruner, ns=(1, 1))  # as a copy with its time
    time.sleep(0.01)  # the files' clock is coarse
    since = claim_for(vla, out, str(pruner))
    assert not _is_done(run, since["own"])
    assert claim_for(vla, out, str(pruner)) == since, "once"
    later = since["own"] + 1
    os.utime(run, ns=(later, later))
    assert _is_done(run, since["own"])
    assert list(json.loads((out / SETTINGS).read_text())["pruners"]) == ["own"]


def test_a_failure_on_an_older_pruner_does_not_use_up_the_second_try(tmp_path):
    run, first = (tmp_path / name for name in ("bend-0.jsonl", "bend-0.jsonl.failed"))
    for time_ns, file in ((10, first), (12, run)):
        file.write_text('{"ending": "failed"}\n')
        os.utime(file, ns=(time_ns, time_ns))
    assert not _is_done(run, 11)
    assert _is_done(run, 10)
