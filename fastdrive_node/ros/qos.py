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
from rclpy.qos import (
    DurabilityPolicy,
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
    qos_policy_name_from_kind,
)
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
    """Endpoints of other nodes that do not fit, and another node of this name. Each is logged once."""

    def __init__(self, node: Node):
        self._node = node
        self._unfit: dict[str, tuple[str, str, QoSProfile]] = {}  # text, whose endpoint, our QoS; by topic
        self._types: dict[str, str] = {}  # text by topic
        self.same_name = ""  # that another node has this node's name, else empty
        self.lost: Counter[str] = Counter()  # messages that the middleware knows to be lost, by topic

    def texts(self) -> list[str]:
        """What is wrong at present, a line each."""
        unfit = [text for text, _, _ in self._unfit.values()]
        return [*filter(None, [self.same_name]), *unfit, *self._types.values()]

    def incompatible(self, topic: str, theirs: str, policy: int, ours: QoSProfile) -> None:
        text = f"{topic}: a {theirs} has an incompatible {qos_policy_name_from_kind(policy).lower()} policy"
        if topic not in self._unfit:
            self._node.get_logger().error(f"{text}: no message arrives; change its QoS")
        self._unfit[topic] = (text, theirs, ours)

    def check_mended(self) -> None:
        """Forget the endpoints whose QoS was changed, or that are gone, which no middleware tells."""
        for topic, (_, theirs, ours) in list(self._unfit.items()):
            if theirs == "publisher":
                pairs = [(each.qos_profile, ours) for each in self._node.get_publishers_info_by_topic(topic)]
            else:
                pairs = [(ours, each.qos_profile) for each in self._node.get_subscriptions_info_by_topic(topic)]
            if all(qos_check_compatible(*pair)[0] != QoSCompatibility.ERROR for pair in pairs):
                del self._unfit[topic]
                self._node.get_logger().info(f"{topic}: no {theirs} has an incompatible QoS any more")

    def check_types(self, subscriptions: list[Subscription]) -> None:
        """Note publishers of another type, which no middleware reports to a subscriber of a topic."""
        before, self._types = self._types, {}
        for subscription in subscriptions:
            topic = subscription.topic_name
            ours = type_name(subscription.msg_type)  # pyright: ignore[reportArgumentType]  # rclpy says an instance
            for info in self._node.get_publishers_info_by_topic(topic):
                if info.topic_type != ours:
                    text = f"{topic}: a publisher sends {info.topic_type}, not {ours}"
                    if topic not in before:
                        self._node.get_logger().error(f"{text}; correct the remapping or image_transport")
                    self._types[topic] = text

    def check_name(self, topic: str) -> None:
        """Whether another node publishes a topic that only this one should."""
        resolved = self._node.resolve_topic_name(topic)
        number, before = self._node.count_publishers(resolved), self.same_name
        self.same_name = f"{resolved} has {number} publishers: another node of this name runs" if number > 1 else ""
        if self.same_name and not before:
            hint = "end it, or give one of them another name; one that was killed is forgotten after 20 s"
            self._node.get_logger().error(f"{self.same_name}; {hint}")

    def forget(self, subscriptions: list[Subscription]) -> None:
        """They are destroyed."""
        for subscription in subscriptions:
            self._unfit.pop(subscription.topic_name, None)
            self._types.pop(subscription.topic_name, None)


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
    own = copy(qos)  # rclpy writes the parameters into it

    def incompatible(event: Any) -> None:
        log.incompatible(resolved, "publisher", event.last_policy_kind, own)

    def lost(event: Any) -> None:
        log.lost[resolved] += event.total_count_change

    events = [
        SubscriptionEventCallbacks(incompatible_qos=incompatible, message_lost=lost),
        SubscriptionEventCallbacks(incompatible_qos=incompatible),
    ]
    options = {"raw": raw, "qos_overriding_options": QoSOverridingOptions.with_default_policies()}
    return _with_events(partial(node.create_subscription, message, topic, callback, own, **options), events)


def advertise(node: Node, log: QosLog, message: type, topic: str, qos: QoSProfile = OUTPUT) -> Publisher:
    """A publisher that reports subscriptions of an incompatible QoS."""
    resolved = node.resolve_topic_name(topic)
    events = PublisherEventCallbacks(
        incompatible_qos=lambda event: log.incompatible(resolved, "subscription", event.last_policy_kind, qos)
    )
    return _with_events(partial(node.create_publisher, message, topic, qos), [events])


def _with_events(create: Callable[..., Any], choices: list[Any]) -> Any:
    """With the first of the callbacks whose events the middleware has, or with none."""
    for events in choices:
        with suppress(UnsupportedEventTypeError):
            return create(event_callbacks=events)
    return create()
