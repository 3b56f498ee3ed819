"""``fastdrive sim`` as a user meets it."""

from __future__ import annotations

import json
from functools import partial

import pytest
import sim_fakes

from fastdrive_node.cli import main
from fastdrive_sim import bag, dataset
from fastdrive_sim.bag import write_bag
from fastdrive_sim.dataset import write_dataset


@pytest.fixture
def fakes(monkeypatch):
    monkeypatch.setattr(dataset, "write_dataset", partial(write_dataset, factory=sim_fakes.fake_sources))
    monkeypatch.setattr(bag, "write_bag", partial(write_bag, factory=sim_fakes.fake_sources))


def test_dataset_prints_only_json_on_standard_output(fakes, tmp_path, capfd):
    arguments = ["--keyframes", "3", "--seed", "1", "--size", "64x36", "--scene-keyframes", "1", "--workers", "1"]
    assert main(["sim", "dataset", str(tmp_path / "data"), *arguments, "--json", "-"]) == 0
    out, err = capfd.readouterr()
    figures = json.loads(out)
    assert (figures["scenes"], figures["keyframes"], figures["images"]) == (3, 3, 18)
    assert "keyframe" in err


def test_bag_writes_its_counts_to_a_file(fakes, tmp_path):
    arguments = ["--seconds", "1", "--hz", "2", "--seed", "1", "--size", "64x36", "--storage", "sqlite3"]
    assert main(["sim", "bag", str(tmp_path / "bag"), *arguments, "--json", str(tmp_path / "bag.json")]) == 0
    assert json.loads((tmp_path / "bag.json").read_text())["topics"]["/odom"] == 20
    assert (tmp_path / "bag" / "bag.db3").exists()


def test_an_error_is_one_line_and_exit_code_1(fakes, tmp_path, capsys):
    arguments = ["--seconds", "1", "--hz", "2", "--seed", "1"]
    assert main(["sim", "bag", str(tmp_path), *arguments]) == 1
    assert capsys.readouterr().err == f"fastdrive sim: {tmp_path}: exists already; give a new folder\n"


@pytest.mark.parametrize("arguments", [["--size", "280"], ["--size", "0x-1"], ["--workers", "0"], ["--split", "dev"]])
def test_wrong_usage_exits_2(tmp_path, arguments):
    with pytest.raises(SystemExit) as exit_info:
        main(["sim", "dataset", str(tmp_path / "data"), "--keyframes", "1", "--seed", "1", *arguments])
    assert exit_info.value.code == 2


def test_an_argument_that_is_out_of_range_exits_2(tmp_path, capsys):
    assert main(["sim", "dataset", str(tmp_path / "data"), "--keyframes", "0", "--seed", "1"]) == 2
    assert main(["sim", "bag", str(tmp_path / "bag"), "--seconds", "-1", "--hz", "2", "--seed", "1"]) == 2
    assert "--keyframes 0: give 1 or more" in capsys.readouterr().err


def test_splits_that_stay_empty_are_named(fakes, tmp_path, capsys):
    small = ["--seed", "1", "--size", "64x36", "--workers", "1", "--keyframes", "2"]
    assert main(["sim", "dataset", str(tmp_path / "data"), *small]) == 0
    assert "of 1 scenes none is for val and test" in capsys.readouterr().err
    assert main(["sim", "dataset", str(tmp_path / "named"), *small, "--split", "val"]) == 0
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("command", [["sim", "dataset"], ["sim", "bag"]])
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main([*command, "--help"])
    assert exit_info.value.code == 0
    assert "example: fastdrive sim" in capsys.readouterr().out
