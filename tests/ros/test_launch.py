"""The launch file: arguments to parameters, remappings and environment."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("launch_ros.actions", reason="launch_ros comes with a ROS 2 installation, not with the wheels")

from launch import LaunchContext
from launch.actions import SetEnvironmentVariable
from launch_ros.actions import Node

from fastdrive_node.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
NUSCENES = str(ROOT / "config" / "topics_nuscenes.yaml")


@pytest.fixture(scope="module")
def file():
    spec = importlib.util.spec_from_file_location("fastdrive_launch", ROOT / "launch" / "fastdrive.launch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def given(file, **arguments) -> dict[str, str]:
    return {**{name: default for name, (default, _) in file.ARGUMENTS.items()}, **arguments}


def actions(file, **arguments) -> list:
    context = LaunchContext()
    context.launch_configurations.update(given(file, **arguments))
    return file.start(context)


def test_every_argument_is_declared_with_its_default(file):
    declared = {entity.name for entity in file.generate_launch_description().entities if hasattr(entity, "name")}
    assert declared == set(file.ARGUMENTS)


def test_arguments_win_over_the_parameter_file_only_where_given(file):
    assert file.overrides(given(file)) == {"use_sim_time": False}
    values = file.overrides(
        given(file, vla="/models/v", drop="0.75", image_transport="compressed", use_sim_time="True")
    )
    assert values == {"vla": "/models/v", "drop": 0.75, "image_transport": "compressed", "use_sim_time": True}


def test_the_engine_is_given_by_two_arguments(file):
    values = file.overrides(given(file, vision_backend="onnxruntime", engine="/engines/vision.onnx"))
    assert values == {"use_sim_time": False, "vision_backend": "onnxruntime", "engine": "/engines/vision.onnx"}
    values = file.overrides(given(file, language_engine="/engines/language.onnx"))
    assert values == {"use_sim_time": False, "language_engine": "/engines/language.onnx"}


@pytest.mark.parametrize("code", [0, 1])
def test_build_only_builds_and_starts_nothing(file, monkeypatch, code):
    commands = []
    monkeypatch.setattr(
        file.subprocess, "run", lambda words: commands.append(words) or SimpleNamespace(returncode=code)
    )
    arguments = {"build_only": "true", "vision_backend": "tensorrt", "engine": "/engines/vision.plan", "vla": "/v"}
    if code:
        with pytest.raises(InputError, match="failed with exit code 1"):
            actions(file, **arguments)
    else:
        assert actions(file, **arguments) == []
    assert " ".join(commands[0][3:]) == "export build --backend tensorrt --precision fp32 --out /engines --vla /v"


def test_topics_come_from_the_map_and_single_arguments_win(file):
    pairs = dict(file.remappings(given(file, topics=NUSCENES, cam_back="/rear/image", command="/route/command")))
    assert pairs["~/input/cam_front/image"] == "/CAM_FRONT/image_rect_compressed"
    assert pairs["~/input/cam_back/image"] == "/rear/image"
    assert pairs["~/input/odometry"] == "/odom" and pairs["~/input/command"] == "/route/command"
    assert file.remappings(given(file)) == []


def test_the_fast_dds_profile_is_set_by_default_and_can_be_turned_off(file, monkeypatch):
    from fastdrive_node.ros import transport

    for name in transport.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(transport, "has_shared_memory", lambda: True)
    found = [type(action) for action in actions(file)]
    assert found == [SetEnvironmentVariable, SetEnvironmentVariable, Node]
    assert [type(action) for action in actions(file, fastdds_profile="")] == [Node]


def test_rviz_is_started_when_asked(file):
    assert len([action for action in actions(file, rviz="true") if isinstance(action, Node)]) == 2


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"build_only": "true"}, "build_only: give engine:=FILE"),
        (
            {"build_only": "true", "vision_backend": "tensorrt", "engine": "/engines/a.plan"},
            "what is built is named vision.plan",
        ),
        ({"drop": "lots"}, "drop: 'lots' is no number"),
        ({"use_sim_time": "maybe"}, "use_sim_time: 'maybe' is neither true nor false"),
        ({"topics": "/absent.yaml"}, "/absent.yaml: cannot be read"),
        ({"params_file": "/absent.yaml"}, "/absent.yaml: not readable"),
        ({"fastdds_profile": "/absent.xml"}, "/absent.xml: no such Fast DDS profile"),
    ],
)
def test_a_wrong_argument_is_named(file, arguments, reason):
    with pytest.raises(InputError, match=reason):
        actions(file, **arguments)
