"""The command as people call it: help, usage errors, one-line failures."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from fastdrive_node.cli import main
from fastdrive_node.commands.replay import ReplayOptions, node_options
from tests.replay.bags import BagPlan, write_bag

FAKE_NODE = Path(__file__).resolve().parents[1] / "ros" / "fake_planner.py"


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["replay", "--help"])
    assert stopped.value.code == 0 and "fastdrive replay drive_bag" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["bag", "--backend", "abacus"]])
def test_wrong_usage_is_2(words):
    with pytest.raises(SystemExit) as stopped:
        main(["replay", *words])
    assert stopped.value.code == 2


@pytest.mark.parametrize("case", ["absent", "no_camera", "bad_map", "no_vla", "no_pruner"])
def test_a_failure_is_1_with_one_line_on_stderr(tmp_path, tiny_dir, case, capsys):
    words = [str(write_bag(tmp_path / "bag")), "--vla", str(tiny_dir)]
    if case == "absent":
        words[0] = str(tmp_path / "absent")
        expected = "absent: no such bag"
    if case == "no_camera":
        words[0] = str(write_bag(tmp_path / "bag5", BagPlan(without={"/CAM_BACK/image_raw"})))
        expected = "/CAM_BACK/image_raw of the simulator's topics is not in the bag"
    if case == "bad_map":
        (tmp_path / "map.yaml").write_text("cameras: {ROOF: /roof}\nodometry: /odom\n")
        words += ["--topics", str(tmp_path / "map.yaml")]
        expected = "cameras: CAM_FRONT is missing, and the model reads it; the map has ROOF"
    if case == "no_vla":
        words[2] = str(tmp_path / "no_vla")
        expected = "no_vla: no such VLA directory"
    if case == "no_pruner":
        words += ["--pruner", "reconprune"]
        expected = "reconprune: no such pruner file, and no pruner has this name"
    assert main(["replay", *words]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("fastdrive replay: ") and expected in line


def test_a_pruner_may_be_named_and_a_file_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = node_options(ReplayOptions(tmp_path, pruner=Path("divprune")), None)
    assert named.parameters["pruner"] == "divprune"
    of_file = node_options(ReplayOptions(tmp_path, pruner=Path("mine.safetensors")), None)
    assert of_file.parameters["pruner"] == str(tmp_path / "mine.safetensors")


def test_a_vla_with_a_missing_file_ends_with_the_nodes_reason(tmp_path, tiny_dir, capsys):
    pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e .[ros]")
    broken = shutil.copytree(tiny_dir, tmp_path / "vla")
    (broken / "tokenizer.json").unlink()
    assert main(["replay", str(write_bag(tmp_path / "bag")), "--vla", str(broken)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"the node ended with exit code 1: configure: /\S+tokenizer.json: missing", line), (
        "only the reason"
    )


def test_a_model_whose_answers_are_no_plans_is_refused_set_by_set_and_the_node_runs_on(
    tmp_path, tiny_dir, monkeypatch, capsys
):
    pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e .[ros]")
    monkeypatch.setattr("fastdrive_node.replay.session.NODE_COMMAND", (sys.executable, str(FAKE_NODE)))
    monkeypatch.setenv("FAKE_PLANNER_REFUSES", "1")
    words = [
        str(write_bag(tmp_path / "bag", BagPlan(sets=2))),
        "--lockstep",
        "--vla",
        str(tiny_dir),
        "--drop",
        "0",
        "--json",
        "-",
    ]
    assert main(["replay", *words]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["sets"], figures["plans"], figures["refused"], figures["dropped"]) == (2, 0, 2, 0)
    assert figures["refusals"] and all(reason.startswith("answer: ") for reason in figures["refusals"])
