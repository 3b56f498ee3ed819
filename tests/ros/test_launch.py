"""The launch file: arguments to parameters, remappings and environment."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

pytest.importorskip("ament_index_python", reason="ROS 2 is not installed: pip install -e .[ros]")

from launch import LaunchContext
from launch.actions import SetEnvironmentVariable, Shutdown
from launch_ros.actions import Node

from fastdrive_node.errors import InputError
from fastdrive_node.types import CAMERAS

ROOT = Path(__file__).resolve().parents[2]
NUSCENES = str(ROOT / "config" / "topics_nuscenes.yaml")


def loaded(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "launch" / f"{name}.launch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def file():
    return loaded("fastdrive")


def given(file, **arguments) -> dict[str, str]:
    return {**{name: default for name, (default, _) in file.ARGUMENTS.items()}, **arguments}


def actions(file, **arguments) -> list:
    context = LaunchContext()
    context.launch_configurations.update(given(file, **{"vla": "tiny", **arguments}))
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
    arguments = given(file, topics=NUSCENES, cam_back="/rear/image", command="/route/command")
    pairs = dict(file.remappings(arguments, CAMERAS))
    assert pairs["~/input/cam_front/image"] == "/CAM_FRONT/image_rect_compressed"
    assert pairs["~/input/cam_back/image"] == "/rear/image"
    assert pairs["~/input/odometry"] == "/odom" and pairs["~/input/command"] == "/route/command"
    assert file.remappings(given(file), CAMERAS) == []
    assert file.remappings(given(file, cam_front="/front"), CAMERAS) == [("~/input/cam_front/image", "/front")]


def vla_with(tmp_path, cameras: list[str]) -> str:
    content = json.loads((ROOT / "models" / "tiny" / "vla.json").read_text())
    (tmp_path / "vla.json").write_text(json.dumps({**content, "cameras": cameras}))
    return str(tmp_path)


def topics_with(tmp_path, cameras: list[str]) -> str:
    path = tmp_path / "topics.yaml"
    path.write_text(yaml.safe_dump({"cameras": {name: f"/{name}/image" for name in cameras}, "odometry": "/odom"}))
    return str(path)


def test_cameras_of_any_name_and_number_come_from_the_topic_map(file, tmp_path):
    cameras = ["wide", *(f"Tele_{index}" for index in range(7))]
    arguments = {"vla": vla_with(tmp_path, cameras), "topics": topics_with(tmp_path, [*cameras, "spare"])}
    assert len([action for action in actions(file, **arguments) if isinstance(action, Node)]) == 1
    pairs = dict(file.remappings(given(file, **arguments), file.cameras_of(arguments["vla"])))
    assert len(pairs) == 9 and pairs["~/input/tele_6/image"] == "/Tele_6/image"


def test_a_topic_map_that_lacks_a_camera_of_the_vla_is_refused(file, tmp_path):
    arguments = {"vla": vla_with(tmp_path, ["wide", "tele"]), "topics": topics_with(tmp_path, ["wide", "Tele"])}
    with pytest.raises(InputError, match=r"cameras: tele is missing, and the model reads it; .*Tele"):
        actions(file, **arguments)


def test_a_topic_for_a_camera_that_the_vla_lacks_is_refused(file, tmp_path):
    with pytest.raises(InputError, match="cam_back: the VLA has no camera CAM_BACK; it reads wide"):
        actions(file, vla=vla_with(tmp_path, ["wide"]), cam_back="/rear")


def test_the_vla_of_the_parameter_file_has_the_cameras(file, tmp_path):
    path = tmp_path / "parameters.yaml"
    path.write_text(yaml.safe_dump({"/**": {"ros__parameters": {"vla": vla_with(tmp_path, ["wide"])}}}))
    with pytest.raises(InputError, match="it reads wide"):
        actions(file, params_file=str(path), cam_back="/rear", vla="")


def test_the_fast_dds_profile_is_set_by_default_and_can_be_turned_off(file, monkeypatch):
    from fastdrive_node.ros import transport

    for name in transport.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(transport, "has_shared_memory", lambda: True)
    found = [type(action) for action in actions(file)]
    assert found == [SetEnvironmentVariable, SetEnvironmentVariable, Node]
    assert [type(action) for action in actions(file, fastdds_profile="")] == [Node]


def test_the_profile_is_set_for_drivers_by_an_include(monkeypatch):
    from fastdrive_node.ros import transport

    included, context = loaded("fastdrive_transport"), LaunchContext()
    context.launch_configurations["fastdds_profile"] = "shipped"
    declared = included.generate_launch_description().entities[0]
    assert (declared.name, declared.default_value) == ("fastdds_profile", "shipped")
    for name in transport.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv(transport.TUNABLES, raising=False)
    monkeypatch.setattr(transport, "has_shared_memory", lambda: True)
    names = {action.variable for action in included.start(context)}
    assert names == {*transport.VARIABLES, transport.TUNABLES}
    monkeypatch.setattr(transport, "has_shared_memory", lambda: False)
    assert "/dev/shm is too small" in included.start(context)[-1].msg
    monkeypatch.setenv(transport.VARIABLES[0], "/etc/ours.xml")
    monkeypatch.setenv(transport.TUNABLES, "glibc.malloc.hugetlb=0")
    assert included.start(context) == []


def test_the_node_keeps_the_memory_of_large_messages_and_leaves_that_of_other_programs(file, monkeypatch):
    from fastdrive_node.ros import transport

    monkeypatch.delenv(transport.TUNABLES, raising=False)
    monkeypatch.setattr(file, "Node", SimpleNamespace)
    *others, node = actions(file)
    assert transport.TUNABLES not in [each.variable for each in others]
    assert node.additional_env[transport.TUNABLES] == transport.memory_environment()[transport.TUNABLES]


@pytest.mark.parametrize(
    ("words", "hint"),
    [(["vlaa:=/v"], "did you mean vla?"), (["drop:=0.5", "qwertz:=1"], "qwertz: no such launch argument; --show-args")],
)
def test_an_unknown_argument_is_refused(file, monkeypatch, words, hint):
    monkeypatch.setattr(file.sys, "argv", ["ros2", "launch", "fastdrive_node", "fastdrive.launch.py", *words])
    with pytest.raises(InputError, match=hint):
        actions(file)


def test_a_launch_file_that_includes_this_one_may_have_other_arguments(file, monkeypatch):
    monkeypatch.setattr(file.sys, "argv", ["ros2", "launch", "vehicle", "vehicle.launch.py", "vlaa:=1"])
    assert actions(file)


def test_the_toy_model_must_be_asked_for(file):
    with pytest.raises(InputError, match="no VLA directory is given; tiny is the shipped toy model"):
        actions(file, vla="")


def node_of(file, **arguments) -> dict:
    return next(action for action in actions(file, **arguments) if isinstance(action, Node)).arguments_given


def test_a_node_that_fails_fails_the_launch_and_one_that_ends_ends_it(file):
    ended, context = node_of(file)["on_exit"], LaunchContext()
    with pytest.raises(RuntimeError, match="exit code 1"):
        ended(SimpleNamespace(returncode=1), context)
    assert [type(action) for action in ended(SimpleNamespace(returncode=0), context)] == [Shutdown]


def test_a_node_that_is_respawned_does_not_end_the_launch(file):
    given_to_node = node_of(file, respawn="true")
    assert given_to_node["respawn"] is True and given_to_node["on_exit"] is None


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
