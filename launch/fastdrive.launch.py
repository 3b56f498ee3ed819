r"""The node in a vehicle or a simulation.

ros2 launch fastdrive_node fastdrive.launch.py vla:=/models/my_vla topics:=/etc/vehicle_topics.yaml drop:=0.75

With an engine, which is built once on the vehicle's computer:

ros2 launch fastdrive_node fastdrive.launch.py vla:=/models/my_vla vision_backend:=tensorrt \
    engine:=/engines/vision.plan build_only:=true
ros2 launch fastdrive_node fastdrive.launch.py vla:=/models/my_vla vision_backend:=tensorrt engine:=/engines/vision.plan
"""

# launch and launch_ros come with ROS 2, not from PyPI, and the repository's own folder is named launch, too:
# pyright: reportAttributeAccessIssue=false, reportMissingImports=false

from __future__ import annotations

import difflib
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable, Shutdown
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from fastdrive_node.errors import InputError
from fastdrive_node.families.spec import chosen_vla_dir, load_spec
from fastdrive_node.files import package_share_file
from fastdrive_node.ros.parameter_files import check_parameter_file
from fastdrive_node.ros.topics import COMMAND_INPUT, ODOMETRY_INPUT, camera_input, load_topic_map
from fastdrive_node.ros.transport import memory_environment, profile_environment
from fastdrive_node.types import CAMERAS, MAX_DROP

PACKAGE = "fastdrive_node"
SHIPPED = "shipped"
RESPAWN_DELAY_S = 2.0
# argument: (default, description); an empty one leaves what the parameter file says
ARGUMENTS = {
    "vla": ("", "VLA directory, or tiny for the shipped toy model; empty: that of the parameter file"),
    "pruner": ("", "a ReconPruner's file, or the name of a pruner"),
    "drop": ("", f"pruning ratio p, 0 to {MAX_DROP}"),
    "vision_backend": ("", "torch, onnxruntime or tensorrt: what runs vision encoder and pruner"),
    "engine": ("", "engine file for onnxruntime or tensorrt"),
    "language_engine": ("", "engine file of the language model, for onnxruntime"),
    "build_only": ("false", "build the vision engine and exit; the node is not started"),
    "precision": ("fp32", "of the engine that build_only builds: fp32, fp16 or bf16"),
    "params_file": ("", "parameter file; empty: the shipped config/fastdrive.yaml"),
    "image_transport": ("", "raw or compressed"),
    "use_sim_time": ("false", "take the time from /clock"),
    "topics": ("", "topic map (YAML) with the VLA's cameras, whatever their names, odometry and command"),
    **{
        camera.lower(): ("", f"image topic of {camera}; wins over the topic map") for camera in CAMERAS
    },  # nuScenes' six
    "odometry": ("", "odometry topic; wins over the topic map"),
    "command": ("", "driving command topic; wins over the topic map"),
    "fastdds_profile": (SHIPPED, "Fast DDS profile; an XML file, or empty for none"),
    "namespace": ("", "of the node"),
    "log_level": ("info", "debug, info, warn or error"),
    "respawn": ("false", "start the node again when it ends; else the launch ends with 1 when the node fails"),
    "rviz": ("false", "start RViz with the shipped configuration"),
}


def generate_launch_description() -> LaunchDescription:
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=start)])


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    check_names(sys.argv[1:])
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    if is_true(given, "build_only"):
        build_engine(given)
        return []
    profile = profile_environment(None if given["fastdds_profile"] == SHIPPED else given["fastdds_profile"])
    actions: list[LaunchDescriptionEntity] = [SetEnvironmentVariable(name, value) for name, value in profile.items()]
    params_file = given["params_file"] or str(package_share_file("config/fastdrive.yaml"))
    of_file = check_parameter_file(params_file, f"{given['namespace'].strip('/')}/fastdrive")
    vla = given["vla"] or str(of_file.get("vla", ""))
    respawn = is_true(given, "respawn")
    actions.append(
        Node(
            name="fastdrive",
            namespace=given["namespace"],
            parameters=[params_file, {**signals(given), **overrides(given)}],
            remappings=remappings(given, cameras_of(vla)),
            additional_env={"FASTDRIVE_LAUNCHER": str(os.getpid()), **memory_environment()},
            ros_arguments=["--log-level", f"fastdrive:={given['log_level']}"],
            output="screen",
            emulate_tty=True,
            respawn=respawn,
            respawn_delay=RESPAWN_DELAY_S,
            on_exit=None if respawn else end_with_the_node,
            **program(),
        )
    )
    if is_true(given, "rviz"):
        config = str(package_share_file("config/fastdrive.rviz"))
        actions.append(Node(package="rviz2", executable="rviz2", arguments=["-d", config], output="log"))
    return actions


def end_with_the_node(event: ProcessExited, context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Shut the launch down. Raises RuntimeError where the node failed, on which the launch ends with 1."""
    if event.returncode and not context.is_shutdown:
        raise RuntimeError(f"fastdrive_node ended with exit code {event.returncode}")
    return [Shutdown(reason="fastdrive_node ended")]


def check_names(words: Sequence[str]) -> None:
    """Raises InputError for an argument that this file does not have. What includes it may have others of its own."""
    if not any(Path(word).name == Path(__file__).name for word in words):
        return
    for name in (word.partition(":=")[0] for word in words if ":=" in word):
        if name not in ARGUMENTS:
            near = difflib.get_close_matches(name, ARGUMENTS)
            hint = f"did you mean {' or '.join(near)}?" if near else "--show-args lists them"
            raise InputError(f"{name}: no such launch argument; {hint}")


def build_engine(given: dict[str, str]) -> None:
    """Run `fastdrive export build` to its end. Raises InputError, on which the launch exits 1."""
    if not given["engine"] or given["vision_backend"] in ("", "torch"):
        raise InputError("build_only: give engine:=FILE and vision_backend:=onnxruntime or tensorrt with it")
    expected = "vision.plan" if given["vision_backend"] == "tensorrt" else "vision.onnx"
    if Path(given["engine"]).name != expected:
        raise InputError(f"engine: {given['engine']}: what is built is named {expected}; name it so")
    arguments = ["--backend", given["vision_backend"], "--precision", given["precision"]]
    arguments += ["--out", str(Path(given["engine"]).parent)]
    arguments += ["--vla", str(chosen_vla_dir(given["vla"]))]
    if given["pruner"]:
        arguments += ["--pruner", given["pruner"]]
    code = subprocess.run([sys.executable, "-m", "fastdrive_node.cli", "export", "build", *arguments]).returncode
    if code:
        raise InputError(f"build_only: `fastdrive export build {' '.join(arguments)}` failed with exit code {code}")


def program() -> dict:
    """The installed executable; without an ament installation the module, in this interpreter."""
    try:
        get_package_prefix(PACKAGE)
    except (PackageNotFoundError, LookupError, OSError):
        return {"executable": sys.executable, "arguments": ["-m", "fastdrive_node.ros"]}
    return {"package": PACKAGE, "executable": "fastdrive_node"}


def overrides(given: dict[str, str]) -> dict:
    """Parameters from arguments; they win over the parameter file."""
    values: dict = {"use_sim_time": is_true(given, "use_sim_time")}
    for name in ("vla", "pruner", "vision_backend", "engine", "language_engine", "image_transport"):
        if given[name]:
            values[name] = given[name]
    if given["drop"]:
        try:
            values["drop"] = float(given["drop"])
        except ValueError as error:
            raise InputError(f"drop: {given['drop']!r} is no number; give a ratio of 0 to {MAX_DROP}") from error
    return values


def cameras_of(vla: str) -> tuple[str, ...]:
    """The cameras that a VLA directory reads. Raises InputError where none is given."""
    return load_spec(chosen_vla_dir(vla)).cameras


def remappings(given: dict[str, str], cameras: tuple[str, ...]) -> list[tuple[str, str]]:
    """From the node's private inputs to the vehicle's topics; a single argument wins over the topic map.

    Raises:
        InputError: the topic map lacks one of the VLA's cameras, or an argument names another camera.
    """
    single = {camera: topic for camera in CAMERAS if (topic := given[camera.lower()])}
    for camera in single:
        if camera not in cameras:
            raise InputError(f"{camera.lower()}: the VLA has no camera {camera}; it reads {', '.join(cameras)}")
    pairs = {camera_input(camera): topic for camera, topic in single.items()}
    if given["topics"]:
        topic_map = load_topic_map(given["topics"])
        topic_map = replace(topic_map, cameras={**topic_map.cameras, **single}).of_cameras(cameras)
        pairs = dict(topic_map.remappings())
    named = {ODOMETRY_INPUT: given["odometry"], COMMAND_INPUT: given["command"]}
    return list({**pairs, **{name: topic for name, topic in named.items() if topic}}.items())


def signals(given: dict[str, str]) -> dict[str, object]:
    """Parameters that a topic map with steering or acceleration implies."""
    return load_topic_map(given["topics"]).parameters() if given["topics"] else {}


def is_true(given: dict[str, str], name: str) -> bool:
    text = given[name].lower()
    if text not in ("true", "false", "1", "0"):
        raise InputError(f"{name}: {given[name]!r} is neither true nor false")
    return text in ("true", "1")
