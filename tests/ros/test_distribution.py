"""Fallbacks for what the rclpy of ROS 2 Humble lacks; its absence is simulated with the rclpy that is installed."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest

from tests.ros.conftest import connected, next_record

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e .[ros]")

from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.subscription import Subscription

from fastdrive_node.ros import distribution

EVENT_NAMES = ("PublisherEventCallbacks", "SubscriptionEventCallbacks", "UnsupportedEventTypeError")


def _fresh() -> ModuleType:
    """The module, executed again."""
    spec = importlib.util.spec_from_file_location("distribution_again", distribution.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def humble(monkeypatch):
    """rclpy without the methods that came after Humble."""
    monkeypatch.delattr(Node, "add_pre_set_parameters_callback")
    monkeypatch.delattr(Node, "add_post_set_parameters_callback")
    monkeypatch.delattr(Subscription, "get_publisher_count")


def test_names_come_from_humbles_modules_where_the_new_ones_are_absent(monkeypatch):
    events, clock = ModuleType("rclpy.qos_event"), ModuleType("rclpy.clock")
    for name in EVENT_NAMES:
        setattr(events, name, f"humble's {name}")
    clock.ClockType = "humble's ClockType"
    for name, module in (("qos_event", events), ("clock", clock), ("event_handler", None), ("clock_type", None)):
        monkeypatch.setitem(sys.modules, f"rclpy.{name}", module)  # importing None raises ImportError
    module = _fresh()
    for name in (*EVENT_NAMES, "ClockType"):
        assert getattr(module, name) == f"humble's {name}"


@pytest.mark.parametrize(
    ("name", "variable"), [("humble", "ROS_LOCALHOST_ONLY"), ("jazzy", "ROS_AUTOMATIC_DISCOVERY_RANGE")]
)
def test_the_variable_for_local_discovery_is_the_distributions(monkeypatch, name, variable):
    monkeypatch.setenv("ROS_DISTRO", name)
    assert list(_fresh().LOCAL_DISCOVERY) == [variable]


def test_the_node_plans_and_takes_parameters_on_humble(humble, rig):
    rig = connected(rig())
    node = rig.node
    publishers = node._inputs.publishers()
    assert publishers["odometry"] == 1 and publishers["CAM_FRONT"] == 1

    results = rig.call(lambda: node.set_parameters([Parameter("drop", value=0.25), Parameter("drop", value=7.0)]))
    assert [result.successful for result in results] == [True, False]
    assert rig.planner.drop == node.get_parameter("drop").value == 0.25
    result = rig.call(
        lambda: node.set_parameters_atomically([Parameter("recover_plans", value=5), Parameter("drop", value=7.0)])
    )
    assert not result.successful and node.settings.recover_plans == 3  # neither is applied
    rig.call(lambda: node.set_parameters([Parameter("drop", value=-1.0)]))
    assert node.get_parameter("drop").value == rig.planner.default_drop  # the callback before replaces it

    rig.send_set(rig.now_ns())
    assert next_record(rig, 1)["kind"] == "plan"
