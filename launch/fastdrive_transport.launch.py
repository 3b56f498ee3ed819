"""The environment for camera drivers: images through shared memory, in memory that is kept; see docs/transport.md.

Everything that a launch file starts after including this one has it. In XML:

<include file="$(find-pkg-share fastdrive_node)/launch/fastdrive_transport.launch.py"/>

in Python, before the drivers' nodes:

IncludeLaunchDescription(
    PythonLaunchDescriptionSource([FindPackageShare("fastdrive_node"), "/launch/fastdrive_transport.launch.py"])
)
"""

# launch comes with ROS 2, not from PyPI, and the repository's own folder is named launch, too:
# pyright: reportAttributeAccessIssue=false, reportMissingImports=false

from __future__ import annotations

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration

from fastdrive_node.ros.transport import memory_environment, profile_environment, profile_set

SHIPPED = "shipped"
ARGUMENT = "fastdds_profile"


def generate_launch_description() -> LaunchDescription:
    argument = DeclareLaunchArgument(ARGUMENT, default_value=SHIPPED, description="Fast DDS profile; an XML file")
    return LaunchDescription([argument, OpaqueFunction(function=start)])


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    given = LaunchConfiguration(ARGUMENT).perform(context)
    profile = profile_environment(None if given == SHIPPED else given)
    variables = profile | memory_environment()
    actions: list[LaunchDescriptionEntity] = [SetEnvironmentVariable(*each) for each in variables.items()]
    if not profile and not profile_set():
        actions.append(LogInfo(msg="no Fast DDS profile is set: /dev/shm is too small for it; images may be lost"))
    return actions
