"""Quality of service of every topic, and subscriptions and publishers that report endpoints that do not fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from functools import partial
from typing import Any

from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_policy_name_from_kind
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription

from fastdrive_node.ros.distribution import (
    PublisherEventCallbacks,
    SubscriptionEventCallbacks,
    UnsupportedEventTypeError,
)

SENSOR = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)  # only the newest image is of use
ODOMETRY = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)  # the history needs more than the newest
COMMAND = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)  # sent once for each turn: none may be lost
OUTPUT = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
STATUS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
RECORDS = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)


class QosLog:
    """Endpoints of other nodes that do not fit; each topic is logged once and stays in ``problems``."""

    def __init__(self, node: Node):
        self._node = node
        self.problems: dict[str, str] = {}
        self.lost: Counter[str] = Counter()  # messages that the middleware knows to be lost, by topic

    def incompatible(self, topic: str, theirs: str, policy: int) -> None:
        text = f"{topic}: a {theirs} has an incompatible {qos_policy_name_from_kind(policy).lower()} policy"
        if topic not in self.problems:
            self._node.get_logger().error(f"{text}: no message arrives; change its QoS")
        self.problems[topic] = text

    def check_types(self, subscriptions: list[Subscription]) -> None:
        """Note publishers of another type, which no middleware reports to a subscriber of a topic."""
        for subscription in subscriptions:
            ours = type_name(subscription.msg_type)  # pyright: ignore[reportArgumentType]  # rclpy says an instance
            for info in self._node.get_publishers_info_by_topic(subscription.topic_name):
                if info.topic_type != ours and subscription.topic_name not in self.problems:
                    text = f"{subscription.topic_name}: a publisher sends {info.topic_type}, not {ours}"
                    self._node.get_logger().error(f"{text}; correct the remapping or image_transport")
                    self.problems[subscription.topic_name] = text


def type_name(message: type) -> str:
    """Like sensor_msgs/msg/Image."""
    return f"{message.__module__.split('.')[0]}/msg/{message.__name__}"


def subscribe(
    node: Node, log: QosLog, message: type, topic: str, callback: Callable, qos: QoSProfile, raw: bool = False
) -> Subscription:
    """A subscription that reports publishers of an incompatible QoS, and counts messages that were lost on the way: of
    Fast DDS those that are missing between two sequence numbers, not those that a newer one replaced in the queue.

    Parameters like ``qos_overrides./topic.subscription.reliability`` win over ``qos``.
    """
    resolved = node.resolve_topic_name(topic)

    def incompatible(event: Any) -> None:
        log.incompatible(resolved, "publisher", event.last_policy_kind)

    def lost(event: Any) -> None:
        log.lost[resolved] += event.total_count_change

    events = [
        SubscriptionEventCallbacks(incompatible_qos=incompatible, message_lost=lost),
        SubscriptionEventCallbacks(incompatible_qos=incompatible),
    ]
    options = {"raw": raw, "qos_overriding_options": QoSOverridingOptions.with_default_policies()}
    own = copy(qos)  # rclpy writes the parameters into it
    return _with_events(partial(node.create_subscription, message, topic, callback, own, **options), events)


def advertise(node: Node, log: QosLog, message: type, topic: str, qos: QoSProfile = OUTPUT) -> Publisher:
    """A publisher that reports subscriptions of an incompatible QoS."""
    resolved = node.resolve_topic_name(topic)
    events = PublisherEventCallbacks(
        incompatible_qos=lambda event: log.incompatible(resolved, "subscription", event.last_policy_kind)
    )
    return _with_events(partial(node.create_publisher, message, topic, qos), [events])


def _with_events(create: Callable[..., Any], choices: list[Any]) -> Any:
    """With the first of the callbacks whose events the middleware has, or with none."""
    for events in choices:
        with suppress(UnsupportedEventTypeError):
            return create(event_callbacks=events)
    return create()
