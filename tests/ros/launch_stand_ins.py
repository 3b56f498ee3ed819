"""Stand-ins for ``launch`` and ``launch_ros``, which come with a ROS 2 installation and not with the wheels.

They hold what the launch file gives them, so that its own code is tested everywhere.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType


class LaunchDescriptionEntity:
    pass


class LaunchContext:
    def __init__(self):
        self.launch_configurations: dict[str, str] = {}
        self.is_shutdown = False


class LaunchDescription:
    def __init__(self, entities):
        self.entities = entities


class DeclareLaunchArgument(LaunchDescriptionEntity):
    def __init__(self, name, default_value, description):
        self.name, self.default_value, self.description = name, default_value, description


class OpaqueFunction(LaunchDescriptionEntity):
    def __init__(self, function):
        self.function = function


class SetEnvironmentVariable(LaunchDescriptionEntity):
    def __init__(self, name, value):
        self.variable, self.value = name, value


class LogInfo(LaunchDescriptionEntity):
    def __init__(self, *, msg):
        self.msg = msg


class Shutdown(LaunchDescriptionEntity):
    def __init__(self, reason):
        self.reason = reason


class ProcessExited:
    def __init__(self, returncode):
        self.returncode = returncode


class LaunchConfiguration:
    def __init__(self, name):
        self._name = name

    def perform(self, context: LaunchContext) -> str:
        return context.launch_configurations[self._name]


class Node(LaunchDescriptionEntity):
    def __init__(self, **arguments):
        self.arguments_given = arguments


def install() -> None:
    """Make the modules importable where the real ones are not."""
    if importlib.util.find_spec("launch_ros") is not None:
        return
    contents = {
        "launch": [LaunchContext, LaunchDescription, LaunchDescriptionEntity],
        "launch.actions": [DeclareLaunchArgument, LogInfo, OpaqueFunction, SetEnvironmentVariable, Shutdown],
        "launch.events": [],
        "launch.events.process": [ProcessExited],
        "launch.substitutions": [LaunchConfiguration],
        "launch_ros": [],
        "launch_ros.actions": [Node],
    }
    for name, members in contents.items():
        module = sys.modules[name] = ModuleType(name)
        for member in members:
            setattr(module, member.__name__, member)
