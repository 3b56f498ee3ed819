"""Another model or pruner while the node runs, with stand-ins; test_real_planner has it with models/tiny."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e .[ros]")

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.parameter import Parameter

from fastdrive_node.families.spec import default_vla_dir
from fastdrive_node.ros.planner_factory import supervise_planner
from tests.ros.conftest import Rig, connected, diagnostics, records_of, values
from tests.ros.test_supervised_node import STAND_INS, outcome, record_at

LOAD = f"{STAND_INS}:for_exchange"


@pytest.fixture(scope="module")
def shared(ros):
    """A node with stand-ins that load in a process of their own: what they do follows from the parameter ``pruner``."""
    made = Rig(
        ros,
        factory=lambda settings: supervise_planner(settings, LOAD),
        vla="tiny",
        diagnostics_period_s=0.1,
        odometry_speed_check="off",
        max_plan_age_s=60.0,
        planning_deadline_s=60.0,
    )
    ready(made)
    made.listen(DiagnosticArray, "/diagnostics")
    yield connected(made)
    made.close()


@pytest.fixture
def rig(shared):
    """The node with drop 0.5 and recover_plans 3, and whatever pruner."""
    assert change(shared, drop=0.5, recover_plans=3).successful
    return shared


def ready(rig: Rig) -> None:
    rig.wait(lambda: rig.node._loaded.planner_state().phase == "ready", "the planner")
    rig.wait(lambda: rig.node.get_parameter("drop").value >= 0, "the model's drop ratio")


def change(rig: Rig, **parameters):
    """As the service set_parameters_atomically."""
    wanted = [Parameter(name, value=value) for name, value in parameters.items()]
    return rig.call(lambda: rig.node.set_parameters_atomically(wanted))


def parameter(rig: Rig, name: str):
    return rig.node.get_parameter(name).value


def planner_of(rig: Rig) -> str:
    """What made the plan of a new set: the stand-in's name, its drop ratio and process."""
    record = outcome(rig)
    assert record["kind"] == "plan", record
    return record["text"]


def over(rig: Rig) -> str:
    """The end of the exchange: what the node says of it."""
    rig.wait(lambda: rig.node._exchange.text != "loading", "the end of the exchange")
    return rig.node._exchange.text


def test_the_planner_before_plans_until_the_other_one_is_ready(rig):
    before = planner_of(rig).split("; ")
    pruner = rig.node.settings.pruner
    assert change(rig, pruner="slow").successful
    assert parameter(rig, "pruner") == "slow" and rig.node.settings.pruner == pruner
    assert planner_of(rig).split("; ") == before  # the same process
    assert rig.node._exchange.text == rig.node._status.exchange == "loading"
    rig.wait(lambda: values(diagnostics(rig)["planner"])["exchange"] == "loading", "the exchange in the diagnostics")
    assert over(rig) == "none"
    name, _, pid = planner_of(rig).split("; ")
    assert name == "slow" and pid != before[2]
    assert rig.node.settings.pruner == "slow" and rig.node._loaded.identity()["pruner"] == "slow"
    assert [record for record in records_of(rig) if record["kind"] == "refused"] == []


def test_one_that_cannot_be_loaded_leaves_the_one_before_and_the_parameters_go_back(rig):
    before, pruner = planner_of(rig), parameter(rig, "pruner")
    assert change(rig, pruner="unusable", drop=0.75, recover_plans=7).successful
    assert over(rig) == "failed: pruner unusable: weights missing"
    assert (parameter(rig, "pruner"), parameter(rig, "drop"), parameter(rig, "recover_plans")) == (pruner, 0.5, 3)
    assert (rig.node.settings.pruner, rig.node.settings.drop, rig.node.settings.recover_plans) == (pruner, 0.5, 3)
    assert planner_of(rig) == before
    told = "exchange failed: pruner unusable: weights missing; the model before goes on"
    rig.wait(lambda: diagnostics(rig)["model"].message == told, "the failure in the diagnostics")
    assert change(rig, pruner="quick").successful  # and may be tried again
    assert over(rig) == "none" and planner_of(rig).split("; ")[0] == "quick"


def test_one_whose_process_dies_while_it_loads_is_not_started_again(rig):
    before, pruner = planner_of(rig), parameter(rig, "pruner")
    assert change(rig, pruner="dies").successful
    assert over(rig).startswith("failed: the planner's process ended with exit code 9")
    assert parameter(rig, "pruner") == pruner and planner_of(rig) == before


def test_parameters_of_one_change_take_effect_together(rig):
    assert change(rig, pruner="slow 2", drop=0.75, recover_plans=7).successful
    assert (rig.node.settings.drop, rig.node.settings.recover_plans) == (0.5, 3)
    assert planner_of(rig).split("; ")[1] == "0.5"
    over(rig)
    assert planner_of(rig).split("; ")[:2] == ["slow 2", "0.75"]
    assert (rig.node.settings.drop, rig.node.settings.recover_plans) == (0.75, 7)
    assert (parameter(rig, "drop"), parameter(rig, "recover_plans")) == (0.75, 7)


def test_a_drop_of_minus_one_is_the_default_of_the_next_planner(rig):
    assert change(rig, pruner="quick 2", drop=-1.0).successful
    assert over(rig) == "none"
    assert parameter(rig, "drop") == rig.node.settings.drop == 0.5
    assert planner_of(rig).split("; ")[:2] == ["quick 2", "0.5"]


def test_what_is_changed_while_it_loads_stays(rig):
    assert change(rig, pruner="slow 3", recover_plans=7).successful
    assert change(rig, drop=0.25, recover_plans=5).successful
    assert planner_of(rig).split("; ")[1] == "0.25"
    over(rig)
    assert planner_of(rig).split("; ")[:2] == ["slow 3", "0.25"]
    assert rig.node.settings.recover_plans == parameter(rig, "recover_plans") == 5


def test_a_later_change_replaces_the_one_in_progress_and_one_back_ends_it(rig):
    before, pruner = planner_of(rig), parameter(rig, "pruner")
    assert change(rig, pruner="slow 4").successful
    assert change(rig, engine="/some.plan").successful  # without an atomic call two parameters come one by one
    assert dict(rig.node._exchange.pending.values) == {"pruner": "slow 4", "engine": "/some.plan"}
    assert change(rig, pruner=pruner, engine="").successful
    assert rig.node._exchange.pending is None and rig.node._exchange.text == "none"
    assert planner_of(rig) == before


def test_the_plan_in_progress_is_finished_by_the_planner_before(rig, tmp_path):
    change(rig, pruner=f"waits {tmp_path / 'go'}")
    assert over(rig) == "none"
    t0_ns = rig.now_ns()
    rig.send_set(t0_ns)
    rig.wait(lambda: rig.node._worker.planning, "the plan to begin")
    change(rig, pruner="other")
    assert over(rig) == "none" and rig.node._retired is not None
    (tmp_path / "go").touch()
    record = record_at(rig, t0_ns)
    assert record["kind"] == "plan" and record["text"].startswith("waits")
    rig.wait(lambda: rig.node._retired is None, "the end of the planner before")
    assert planner_of(rig).split("; ")[0] == "other"


def test_a_vla_of_other_cameras_or_history_is_refused_at_once(rig, tmp_path):
    vla = parameter(rig, "vla")
    content = json.loads((default_vla_dir() / "vla.json").read_text())
    (tmp_path / "vla.json").write_text(json.dumps({**content, "cameras": content["cameras"][:2]}))
    refused = change(rig, vla=str(tmp_path), recover_plans=7)
    assert not refused.successful and "vla: it reads CAM_FRONT" in refused.reason
    assert not change(rig, vla="/absent").successful
    assert parameter(rig, "vla") == vla and rig.node.settings.recover_plans == 3
    assert rig.node._exchange.pending is None


def test_an_exchange_of_a_node_that_is_cleaned_up_is_of_its_next_configuration(rig):
    assert change(rig, pruner="slow 5").successful
    rig.call(rig.node.trigger_deactivate)
    rig.call(rig.node.trigger_cleanup)
    assert rig.node._exchange.pending is None and rig.node.settings.pruner == "slow 5"
    rig.start()
    ready(rig)
    assert rig.node._loaded.identity()["pruner"] == "slow 5"


def test_a_planner_in_the_nodes_process_is_not_exchanged(ros):
    rig = Rig(ros, vla="tiny")
    try:
        refused = change(rig, pruner="none", drop=0.25)
        assert not refused.successful and "planner_process: false" in refused.reason
        assert change(rig, vla="tiny", drop=0.25).successful  # the same value is no exchange
        assert rig.planner.drop == 0.25
    finally:
        rig.close()
