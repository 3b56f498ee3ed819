"""What other nodes can send to rclpy's own callbacks, and exceptions in the node's: none of them ends the node."""

from __future__ import annotations

import pytest

from tests.ros.conftest import Rig, connected, diagnostics, next_record, values

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e .[ros]")

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import Parameter, ParameterValue
from rcl_interfaces.srv import SetParameters, SetParametersAtomically
from rosgraph_msgs.msg import Clock

GOOD = Parameter(name="max_set_age_s", value=ParameterValue(type=3, double_value=0.5))
NO_TYPE = Parameter(name="drop", value=ParameterValue(type=200))


def ask(rig: Rig, kind: type, name: str, request):
    client = rig.peer.create_client(kind, f"/fastdrive/{name}")
    assert client.wait_for_service(timeout_sec=10)
    reply = client.call_async(request)
    rig.wait(reply.done, f"the reply of {name}")
    return reply.result()


def test_a_parameter_of_a_type_that_does_not_exist_is_refused_and_counted(rig):
    made = connected(rig(diagnostics_period_s=0.1))
    made.listen(DiagnosticArray, "/diagnostics")
    one_by_one = SetParameters.Request(parameters=[GOOD, NO_TYPE])
    first, second = ask(made, SetParameters, "set_parameters", one_by_one).results
    assert first.successful and made.node.settings.max_set_age_s == 0.5
    assert not second.successful and "200 is not a valid" in second.reason
    together = SetParametersAtomically.Request(parameters=[NO_TYPE])
    result = ask(made, SetParametersAtomically, "set_parameters_atomically", together).result
    assert not result.successful and "200 is not a valid" in result.reason
    counts = {"failed_set_parameters": "1", "failed_set_parameters_atomically": "1"}
    made.wait(lambda: counts.items() <= values(diagnostics(made)["topics"]).items(), "the counts")
    made.send_set(made.now_ns())
    assert next_record(made, 1)["kind"] == "plan"


def test_a_clock_with_a_negative_time_is_ignored(rig):
    made = rig(start=False, use_sim_time=True)
    clock = made.advertise(Clock, "/clock")
    made.wait(clock.get_subscription_count, "the node's subscription")
    clock.publish(Clock(clock=Time(sec=-1)))
    made.wait(lambda: made.node.failed_callbacks["clock"] == 1, "the count")
    clock.publish(Clock(clock=Time(sec=7)))
    made.wait(lambda: made.now_ns() == 7_000_000_000, "the next time")


def test_a_timer_that_raises_is_called_again(rig):
    made, calls = rig(start=False), []

    def fail():
        calls.append(1)
        raise ZeroDivisionError("in a timer")

    made.node.create_timer(0.01, fail)
    made.wait(lambda: len(calls) > 1, "a second call")
    assert made.node.failed_callbacks["timer"] >= 1
