"""The dispatcher, and what holds for every command: exit codes, one line for an error, help."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastdrive_node import __version__, cli
from fastdrive_node.cli import CommandParser, build_parser, find_commands, main
from fastdrive_node.ros.parameters import PARAMETERS
from fastdrive_node.types import PruningRatio

ROOT = Path(cli.__file__).resolve().parents[1]
CHECKOUT = [ROOT, ROOT / "training", ROOT / "export", ROOT / "ros2_ws/src/fastdrive_sim"]

# Arguments of each command with a file that is not there (of sim: an output that cannot be written).
ABSENT = {
    "replay": "absent",
    "plan": "absent.png absent.png absent.png absent.png absent.png absent.png",
    "bench": "--vla absent",
    "vla init": "absent OUT --template tiny",
    "vla check": "absent",
    "vla parse": "absent absent.jsonl",
    "annotate": "absent OUT",
    "train": "absent.yaml",
    "train-report": "absent",
    "calibrate": "absent",
    "score": "absent",
    "evaluate": "absent",
    "evaluate-report": "absent",
    "evaluate-answers": "absent.jsonl --dataset absent",
    "view-weights": "absent",
    "camera-geometry": "absent",
    "metrics": "absent.json",
    "export build": "--vla absent --out OUT",
    "export inspect": "absent.onnx",
    "export verify": "absent.onnx",
    "sim dataset": "FILE --keyframes 1 --seed 1",
    "sim bag": "FILE --seconds 1 --hz 2 --seed 1",
    "sim drive": "--vla absent --out OUT",
}
OUT_OF_RANGE = [
    ("replay absent --rate 0", "--rate"),
    ("replay absent --loop 0", "--loop"),
    ("replay absent --drop 1", "--drop"),
    ("replay absent --engine absent.onnx", "--engine"),
    ("replay absent --backend onnxruntime", "--engine"),
    ("plan absent.png --drop 1.5", "--drop"),
    ("plan absent.png --engine absent.onnx", "--engine"),
    ("plan absent.png --backend onnxruntime", "--engine"),
    ("vla init absent OUT --template unknown", "--template"),
    ("vla init absent OUT --template tiny --max-pixels 1", "--max-pixels"),
    ("bench --drop nan", "--drop"),
    ("bench --runs 0", "--runs"),
    ("annotate absent OUT --limit 0", "--limit"),
    ("annotate absent OUT --shard 4/4", "--shard"),
    ("calibrate absent --limit 0", "--limit"),
    ("score absent --limit 0", "--limit"),
    ("score absent --picture-count 0", "--picture-count"),
    ("evaluate absent --limit 0", "--limit"),
    ("evaluate-report absent --drop 1.5", "--drop"),
    ("evaluate-report absent --worst -1", "--worst"),
    ("view-weights absent --drop -0.1", "--drop"),
    ("view-weights absent --trials 0", "--trials"),
    ("export build --out OUT --optimization-level 9", "--optimization-level"),
    ("export build --out OUT --part language --max-keep 9", "--max-keep"),
    ("export build --out OUT --max-keep 0", "--max-keep"),
    ("export verify absent.onnx --drop 1", "--drop"),
    ("export verify absent.onnx --sets 0", "--sets"),
    ("sim dataset OUT --seed 1 --keyframes 0", "--keyframes"),
    ("sim dataset OUT --seed -1 --keyframes 1", "--seed"),
    ("sim dataset OUT --seed 1 --keyframes 1 --hz 3", "--hz"),
    ("sim dataset OUT --seed 1 --keyframes 1 --workers 0", "--workers"),
    ("sim bag OUT --seed 1 --hz 2 --seconds -1", "--seconds"),
    ("sim bag OUT --seed 1 --hz 2 --seconds 1 --size 8x8", "--size"),
]


def leaves(commands: dict, *path: str) -> list[str]:
    """The full names of all commands that do something."""
    return [
        leaf
        for name, (_, target) in commands.items()
        for leaf in ([" ".join((*path, name))] if isinstance(target, str) else leaves(target, *path, name))
    ]


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Runs a command line in an empty folder; gives its exit code and standard error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").touch()

    def run(line: str) -> tuple[int, str]:
        try:
            code = main(line.split())
        except SystemExit as end:
            code = end.code
        return code, capsys.readouterr().err

    return run


def test_all_commands_are_covered_here():
    assert sorted(leaves(find_commands())) == sorted(ABSENT)


@pytest.mark.parametrize("name", ABSENT)
def test_a_missing_file_is_one_line_that_names_it(call, name):
    code, error = call(f"{name} {ABSENT[name]}")
    reasons = [line for line in error.splitlines() if line.startswith(f"fastdrive {name.split()[0]}: ")]
    assert code == 1 and len(reasons) == 1 and "Traceback" not in error
    assert "Error:" not in reasons[0], "an error that is meant for developers"
    assert any(word in reasons[0] for word in ABSENT[name].split() if not word.startswith("-"))


@pytest.mark.parametrize("name", ABSENT)
def test_an_unknown_option_is_wrong_usage(call, name):
    code, error = call(f"{name} {ABSENT[name]} --no-such-option")
    assert code == 2 and "unrecognized arguments: --no-such-option" in error
    assert f"usage: fastdrive {name} " in error


@pytest.mark.parametrize("name", ABSENT)
def test_a_bad_choice_is_wrong_usage(call, name):
    call(f"{name} --help")
    for option in options_with_choices(name):
        code, error = call(f"{name} {option} nonsense")
        assert code == 2 and f"argument {option}: invalid " in error


def options_with_choices(name: str) -> list[str]:
    parser = build_parser()
    for word in name.split():
        parser = parser._subparsers._group_actions[0].choices[word]
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    return [action.option_strings[0] for action in parser._actions if action.choices and action.option_strings]


@pytest.mark.parametrize(("line", "option"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_wrong_usage_that_names_the_option(call, line, option):
    code, error = call(line)
    assert code == 2 and option in error.splitlines()[-1] and "Traceback" not in error


@pytest.mark.parametrize("name", [*ABSENT, "export", "sim", ""])
def test_help_exits_with_0(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([*name.split(), "--help"])
    assert end.value.code == 0
    assert "example" in capsys.readouterr().out


def test_a_traceback_is_shown_with_debug_alone(call):
    assert "Traceback" not in call("train absent.yaml")[1]
    code, error = call("train absent.yaml --debug")
    assert code == 1 and "Traceback" in error


def python(*arguments: str, path: list[Path]) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def test_help_lists_every_command_in_a_checkout_where_nothing_is_installed():
    """Without site-packages there is no metadata, and neither torch nor numpy to import."""
    shown = python("-S", "-m", "fastdrive_node.cli", "--help", path=CHECKOUT)
    assert all(f"    {name.split()[0]}" in shown for name in ABSENT)


def test_help_imports_no_torch():
    code = "import sys; from fastdrive_node.cli import build_parser; build_parser(); print('torch' in sys.modules)"
    assert python("-c", code, path=CHECKOUT).strip() == "False"


def test_another_distribution_adds_commands_by_its_entry_point(tmp_path):
    (tmp_path / "lidar_tools.py").write_text('COMMANDS = {"lidar": ("points to images", "lidar_tools")}\n')
    metadata = tmp_path / "lidar_tools-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: lidar_tools\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[fastdrive.commands]\nlidar_tools = lidar_tools\n")
    shown = python("-S", "-m", "fastdrive_node.cli", "--help", path=[*CHECKOUT, tmp_path])
    assert "points to images" in shown


def test_a_package_that_is_not_there_adds_nothing(tmp_path):
    shown = python("-S", "-m", "fastdrive_node.cli", "--help", path=[ROOT])
    assert "replay" in shown and "sim " not in shown


def test_a_command_of_a_distribution_that_is_not_there_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr(cli, "find_commands", lambda: {"lidar": ("points to images", "lidar_tools")})
    assert main(["sim", "drive", "--help"]) == 1
    text = capsys.readouterr().err
    assert "'fastdrive_sim' is missing; install it with: make install-test" in text and text.count("\n") == 1


def test_without_a_command_the_help_is_shown(capsys):
    assert main([]) == 2
    assert "replay" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"fastdrive {__version__}\n"


def test_a_command_whose_dependency_is_missing_names_the_package(monkeypatch, capsys):
    monkeypatch.setattr(CommandParser, "module", None)
    monkeypatch.setattr(cli, "find_commands", lambda: {"lidar": ("points to images", "package_that_is_not_there")})
    assert main(["lidar"]) == 1
    assert "the Python package 'package_that_is_not_there' is missing; install it with" in capsys.readouterr().err


@pytest.mark.parametrize("value", [-0.1, 0.951, 1.5, float("nan"), "half"])
def test_a_pruning_ratio_is_in_0_to_95_percent(value):
    with pytest.raises(ValueError, match=r"half|not in \[0, 0.95\]"):
        PruningRatio(value)


@pytest.mark.parametrize(("drop", "kept"), [(0.0, 192), (0.5, 96), ("0.75", 48), (0.95, 9)])
def test_a_pruning_ratio_says_how_many_tokens_are_kept(drop, kept):
    assert PruningRatio(drop).keep_count(192) == kept


@pytest.mark.parametrize("command", [["plan", "a.jpg"], ["bench"], ["replay", "bag"]])
def test_commands_take_the_pruning_ratios_of_the_node(command, capsys):
    largest = PARAMETERS["drop"]["maximum"]
    parser = build_parser()
    assert parser.parse_args([*command, "--drop", str(largest)]).drop == largest
    assert main_exit([*command, "--drop", str(largest + 0.01)]) == 2
    assert f"is not in [0, {largest}]" in capsys.readouterr().err
    assert main_exit([command[0], "--help"]) == 0
    assert f"[0, {largest}]" in capsys.readouterr().out


def main_exit(words: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(words)
    return ended.value.code
