"""What rclpy of ROS 2 Humble lacks, in one place; Jazzy and Kilted have it. docs/jetson.md lists what was checked.

No other module of the package imports these names from rclpy.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from rcl_interfaces.msg import SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.subscription import Subscription

try:
    from rclpy.clock_type import ClockType
except ImportError:  # Humble
    from rclpy.clock import ClockType  # pyright: ignore[reportPrivateImportUsage]
try:
    from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks, UnsupportedEventTypeError
except ImportError:  # Humble; later releases warn of the old name
    from rclpy.qos_event import PublisherEventCallbacks, SubscriptionEventCallbacks, UnsupportedEventTypeError

__all__ = [
    "LOCAL_DISCOVERY",
    "ClockType",
    "PublisherEventCallbacks",
    "SubscriptionEventCallbacks",
    "UnsupportedEventTypeError",
    "add_parameter_callbacks",
    "publisher_count",
]

# Variables that keep a node's messages on this machine. Later releases warn of Humble's.
LOCAL_DISCOVERY = (
    {"ROS_LOCALHOST_ONLY": "1"}
    if os.environ.get("ROS_DISTRO") == "humble"
    else {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
)


def add_parameter_callbacks(
    node: Node,
    before: Callable[[list[Parameter]], list[Parameter]],
    check: Callable[[list[Parameter]], SetParametersResult],
    after: Callable[[list[Parameter]], None],
) -> None:
    """Callbacks of a change of parameters, whether a service or the node's own code asks for it.

    Args:
        before: gives the parameters that are set instead.
        check: accepts or refuses them.
        after: is told those that were accepted.
    """
    node.add_on_set_parameters_callback(check)
    if hasattr(node, "add_pre_set_parameters_callback"):
        node.add_pre_set_parameters_callback(before)
        node.add_post_set_parameters_callback(after)
    else:  # Humble
        _wrap_setters(node, before, after)


def _wrap_setters(node: Any, before: Callable[[list], list], after: Callable[[list], None]) -> None:
    """Put both callbacks around the two methods that rclpy's parameter services call."""
    set_together = node.set_parameters_atomically

    def set_parameters_atomically(parameters: list[Parameter]) -> SetParametersResult:
        parameters = before(parameters)
        result = set_together(parameters)
        if result.successful:
            after(parameters)
        return result

    def set_parameters(parameters: list[Parameter]) -> list[SetParametersResult]:
        return [set_parameters_atomically([parameter]) for parameter in parameters]

    node.set_parameters_atomically, node.set_parameters = set_parameters_atomically, set_parameters


def publisher_count(node: Node, subscription: Subscription) -> int:
    """Publishers that match a subscription; on Humble all of its topic, whatever their QoS."""
    if hasattr(subscription, "get_publisher_count"):
        return subscription.get_publisher_count()
    return node.count_publishers(subscription.topic_name)
