"""Parameters of the live node: at the start and while it runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.ros.conftest import (
    connected,
    diagnostics,
    next_record,
)

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e .[ros]")

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.parameter import Parameter


def test_parameters_change_while_running_and_bad_values_are_refused_with_a_reason(rig):
    node = rig().node

    def attempt(name, value):
        return node.set_parameters([Parameter(name, value=value)])[0]

    assert attempt("drop", 0.25).successful and node._loaded.planner.drop == 0.25
    assert attempt("max_set_age_s", 0.5).successful and node._worker._frames.limits.max_age_s == 0.5
    assert attempt("max_set_age_s", 1).successful and node._worker._frames.limits.max_age_s == 1.0, "an integer"
    assert "of type bool, not float" in attempt("max_set_age_s", True).reason
    assert "drop" in attempt("drop", 0.99).reason
    node._loaded.planner.least_drop = 0.2
    assert attempt("drop", 0.1).reason == "drop: 0.1 is less than the engine's 0.2"
    assert attempt("image_transport", "compressed").reason
    assert attempt("max_missing_cameras", "two").reason
    assert node._loaded.planner.drop == 0.25


def test_an_integer_at_start_is_taken_for_a_double(rig):
    settings = rig(max_set_age_s=1, max_plan_age_s=2).node.settings
    assert (settings.max_set_age_s, settings.max_plan_age_s) == (1.0, 2.0)
    assert type(settings.max_set_age_s) is float


def test_a_set_of_changes_is_applied_as_a_whole_or_not_at_all(rig):
    node = rig().node

    def attempt(age_s: float):
        changes = [Parameter("drop", value=0.25), Parameter("max_set_age_s", value=age_s)]
        return node.set_parameters_atomically(changes)

    assert not attempt(-1.0).successful
    assert node._loaded.planner.drop == node.get_parameter("drop").value == 0.5
    assert attempt(0.75).successful
    assert (node._loaded.planner.drop, node._worker._frames.limits.max_age_s) == (0.25, 0.75)


def test_a_change_that_cannot_be_applied_leaves_the_node_running_and_is_in_the_diagnostics(rig, monkeypatch):
    rig = connected(rig(diagnostics_period_s=0.1))
    rig.listen(DiagnosticArray, "/diagnostics")

    def fail(*arguments):
        raise RuntimeError("a fault of the planner")

    with monkeypatch.context() as patch:
        patch.setattr(rig.node._worker, "configure", fail)
        assert rig.node.set_parameters([Parameter("drop", value=0.25)])[0].successful
    expected = "drop: accepted but not applied: RuntimeError: a fault of the planner"
    rig.wait(lambda: diagnostics(rig)["planner"].message == expected, "the problem in the diagnostics")
    rig.send_set(rig.now_ns())
    assert next_record(rig, 1)["kind"] == "plan"
    rig.node.set_parameters([Parameter("drop", value=0.25)])
    rig.wait(lambda: diagnostics(rig)["planner"].message != expected, "the diagnostics without it")


def test_a_check_that_fails_refuses_the_change(rig, monkeypatch):
    made = rig()
    monkeypatch.setattr(made.planner, "check_drop", lambda value: 1 / 0)
    result = made.node.set_parameters([Parameter("drop", value=0.25)])[0]
    assert not result.successful and "ZeroDivisionError" in result.reason


def test_a_wrong_choice_is_refused_at_the_start(ros):
    from fastdrive_node.ros.node import FastDriveNode

    with pytest.raises(Exception, match="image_transport: 'jpeg': should be 'raw' or 'compressed'"):
        FastDriveNode(parameter_overrides=[Parameter("image_transport", value="jpeg")])


@pytest.mark.parametrize("name", ["dropp", "max_spread", "qos_override./odom.subscription.depth"])
def test_an_unknown_parameter_is_refused_at_the_start_by_name(ros, name):
    from fastdrive_node.ros.node import FastDriveNode

    with pytest.raises(Exception, match=f"{name}: no such parameter; "):
        FastDriveNode(parameter_overrides=[Parameter(name, value=0.5)])


def test_the_executable_refuses_an_unknown_parameter_with_the_names_that_are_close(ros):
    words = ["-m", "fastdrive_node.ros", "--ros-args", "-p", "use_sim_time:=true", "-p", "dropp:=0.5"]
    ended = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "fastdrive_node: dropp: no such parameter; did you mean drop?" in ended.stderr


def test_parameters_of_every_ros_node_are_taken(rig):
    qos = {"qos_overrides./fastdrive/input/odometry.subscription.depth": 5}
    made = rig(start=False, use_sim_time=False, start_type_description_service=False, **qos)
    assert made.node.start()


def test_drop_minus_one_is_the_loaded_models_default_also_while_running(rig):
    node = rig(drop=0.25).node
    node._loaded.planner.default_drop = 0.6
    assert node.set_parameters([Parameter("drop", value=-1.0)])[0].successful
    assert node._loaded.planner.drop == node.get_parameter("drop").value == node.settings.drop == 0.6


def test_autoware_without_its_messages_is_refused_with_the_fix(rig):
    made = rig(start=False, trajectory_type="autoware")
    try:
        import autoware_planning_msgs  # noqa: F401
    except ImportError:
        assert not made.node.start()
        assert made.node._label == "unconfigured"
    else:
        pytest.skip("autoware_planning_msgs is installed")
