"""Names of rclpy and launch that the package uses; each was looked up in the sources of Humble, Jazzy and Kilted."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.packaging.source_imports import ROOT, modules

# To add a name: find it, with the arguments that are used, in the branches humble, jazzy and kilted of ros2/rclpy,
# ros2/launch and ros2/launch_ros. What Humble lacks belongs in fastdrive_node/ros/distribution.py (docs/jetson.md).
CHECKED = {
    "ament_index_python.packages": {"PackageNotFoundError", "get_package_prefix"},
    "launch": {"LaunchContext", "LaunchDescription", "LaunchDescriptionEntity"},
    "launch.actions": {"DeclareLaunchArgument", "LogInfo", "OpaqueFunction", "SetEnvironmentVariable", "Shutdown"},
    "launch.events.process": {"ProcessExited"},
    "launch.substitutions": {"LaunchConfiguration"},
    "launch_ros.actions": {"Node"},
    "rclpy": {""},
    "rclpy._rclpy_pybind11": {"RCLError"},
    "rclpy.clock": {"Clock", "JumpThreshold", "ROSClock", "TimeJump"},
    "rclpy.context": {"Context"},
    "rclpy.duration": {"Duration"},
    "rclpy.exceptions": {"ParameterException"},
    "rclpy.executors": {"Executor", "ExternalShutdownException", "SingleThreadedExecutor"},
    "rclpy.lifecycle": {"LifecycleNode", "LifecycleState", "TransitionCallbackReturn"},
    "rclpy.node": {"Node"},
    "rclpy.parameter": {"Parameter"},
    "rclpy.publisher": {"Publisher"},
    "rclpy.qos": {
        "DurabilityPolicy",
        "QoSCompatibility",
        "QoSProfile",
        "ReliabilityPolicy",
        "qos_check_compatible",
        "qos_policy_name_from_kind",
    },
    "rclpy.qos_overriding_options": {"QoSOverridingOptions"},
    "rclpy.serialization": {"deserialize_message"},
    "rclpy.signals": {"SignalHandlerOptions"},
    "rclpy.subscription": {"Subscription"},
    "rclpy.task": {"Future"},
    "rclpy.utilities": {"get_default_context", "get_rmw_implementation_identifier", "ok", "try_shutdown"},
}
OF_ONE_DISTRIBUTION = "fastdrive_node.ros.distribution"
ABSENT_SOMEWHERE = ("rclpy.clock_type", "rclpy.event_handler", "rclpy.qos_event")
SYSTEMS = ("rclpy", "launch", "launch_ros", "ament_index_python")


def _used(file: Path) -> set[tuple[str, str]]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {(node.module, alias.name) for alias in node.names}
    return {(module, name) for module, name in found if module.split(".")[0] in SYSTEMS}


def test_every_name_was_checked_in_three_distributions():
    files = {name: file for name, file in modules().items() if name.startswith("fastdrive_node.")}
    files |= {file.name: file for file in (ROOT / "launch").glob("*.launch.py")}
    used = set()
    for name, file in files.items():
        found = _used(file)
        if name == OF_ONE_DISTRIBUTION:
            found = {(module, name) for module, name in found if module not in ABSENT_SOMEWHERE and name != "ClockType"}
        used |= found
    checked = {(module, name) for module, names in CHECKED.items() for name in names}
    assert not used - checked, f"look up in Humble, Jazzy and Kilted: {sorted(used - checked)}"
    assert not checked - used, f"no longer used: {sorted(checked - used)}"
