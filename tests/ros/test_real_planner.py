"""The node with the real Pipeline, on the shipped models/tiny and on engines."""

from __future__ import annotations

import json
import shutil
import time
from functools import partial

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e .[ros]")

from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from std_msgs.msg import String

from fastdrive_node.errors import ModelError
from fastdrive_node.ros.parameters import Settings
from fastdrive_node.ros.planner_factory import load_planner, make_planner, supervise_planner
from fastdrive_node.types import CAMERAS
from tests.ros.conftest import RECORDS, Rig, next_record

MS = 1_000_000
START_S = 120.0  # a process imports torch, perhaps on a busy machine


@pytest.fixture
def real(ros):
    made = []

    def make(factory=None, **parameters) -> Rig:
        defaults = {"vla": "tiny", "device": "cpu", "max_plan_age_s": 60.0, "planner_process": False}
        rig = Rig(ros, factory=factory or make_planner, **{**defaults, **parameters})
        made.append(rig)
        until = time.monotonic() + START_S
        while rig.node._loaded.planner_state().phase != "ready":
            assert time.monotonic() < until, "no model"
            time.sleep(0.02)
        rig.wait(lambda: rig.node.get_parameter("drop").value >= 0, "the model's drop ratio")
        return rig

    yield make
    for each in made:
        each.close()


def set_drop(rig: Rig, value: float):
    """As `ros2 param set /fastdrive drop VALUE`: over the node's service, so that a fault in a callback ends it."""
    client = rig.peer.create_client(SetParameters, "/fastdrive/set_parameters")
    rig.wait(client.service_is_ready, "the parameter service")
    kind = ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=value)
    future = client.call_async(SetParameters.Request(parameters=[ParameterMessage(name="drop", value=kind)]))
    rig.wait(lambda: future.done() or not rig.is_spinning(), "the answer")
    assert rig.is_spinning(), "a callback raised"
    return future.result().results[0]


def reaches_the_answer(rig: Rig, count: int) -> bool:
    """Plan a set of black images; the shipped model's answer to them may be no plan."""
    rig.send_set(rig.now_ns())
    record = next_record(rig, count)
    return record["kind"] == "plan" or record["stage"] == "answer"


def connected(rig: Rig) -> Rig:
    rig.listen(String, RECORDS)
    rig.connect_inputs()
    rig.wait(lambda: rig.node._outputs.readers() > 0, "the records to be matched")
    return rig


def exchange(rig: Rig, **parameters) -> str:
    """As the service set_parameters_atomically. Returns how the exchange ended."""
    wanted = [Parameter(name, value=value) for name, value in parameters.items()]
    assert rig.call(lambda: rig.node.set_parameters_atomically(wanted)).successful
    rig.wait(lambda: rig.node._exchange.text != "loading", "the other planner", START_S)
    return rig.node._exchange.text


@pytest.mark.parametrize("process", [True, False])
def test_the_shipped_model_plans_takes_another_drop_ratio_and_is_exchanged_where_it_has_a_process(
    real, process, tmp_path
):
    factory = partial(supervise_planner, factory="tests.ros.network_watch:load_planner") if process else None
    options = {"planner_process": process, "warm_up": not process}
    rig = connected(real(factory, max_set_age_s=60.0, planning_deadline_s=60.0, **options))
    assert rig.node.get_parameter("drop").value == 0.5
    assert reaches_the_answer(rig, 1)
    assert set_drop(rig, 0.75).successful
    assert "out of range" in set_drop(rig, 0.99).reason
    assert "should be a pruning ratio of 0 to 0.95, or -1" in set_drop(rig, -0.5).reason
    assert rig.node._loaded.planner.drop == rig.node.get_parameter("drop").value == 0.75
    assert reaches_the_answer(rig, 2)
    assert set_drop(rig, -1.0).successful
    assert rig.node._loaded.planner.drop == rig.node.get_parameter("drop").value == 0.5
    if process:
        before, copy = rig.node._loaded.identity(), tmp_path / "copy"
        shutil.copytree(before["vla"], copy)
        assert exchange(rig, vla=str(copy), pruner="random", drop=0.25) == "none"
        now = rig.node._loaded.identity()
        assert (now["vla"], now["pruner"], now["drop"]) == (str(copy), "random", "0.25")
        assert now["vla_fingerprint"] == before["vla_fingerprint"] and "pruner_fingerprint" not in now
        assert rig.node.get_parameter("drop").value == 0.25
        assert reaches_the_answer(rig, 3)
    if process:
        identity = rig.node._loaded.identity()
        assert (identity["network"], identity["hub_offline"]) == ("none", "1")
        assert {type(value) for value in identity.values()} == {str}  # torch's own class would be imported here


def test_a_frame_that_serves_two_sets_is_encoded_once(real, monkeypatch, tiny_vla):
    from fastdrive_node.planning.answer_format import format_answer
    from tests.generation import answer_with

    waypoints = np.array([[4.0 * k, 0.0] for k in range(1, 7)])
    answer_with(monkeypatch, format_answer(waypoints, tiny_vla.spec.answer))
    rig = connected(real(max_set_age_s=60.0, planning_deadline_s=60.0))
    encoder, encoded = rig.node._loaded.planner._encoder, []
    encoder._exact = {(0, 5)}  # as on a machine where forwards of five images round as those of six
    encode = encoder._vision.encode
    monkeypatch.setattr(
        encoder._vision, "encode", lambda inputs, **named: encoded.append(len(inputs)) or encode(inputs, **named)
    )
    first, *others = CAMERAS
    t0_ns = rig.now_ns()

    def send(ms: int, cameras) -> None:
        rig.send_odometry(t0_ns + ms * MS)
        for camera in cameras:
            rig.send_image(camera, t0_ns + ms * MS, bytes([ms]) * (24 * 96))

    send(0, others)
    send(100, [first])
    assert "reused_cameras" not in next_record(rig, 1)
    send(110, others)  # with what the first camera has sent already they are a set of 10 ms, after one of 100
    record = next_record(rig, 2)
    assert (record["kind"], record["t0_ns"]) == ("plan", t0_ns + 100 * MS)
    assert record["reused_cameras"] == 1 and encoded == [6, 5]


def test_a_model_without_pruner_takes_no_drop_ratio(real, tiny_dir):
    assert not (tiny_dir / "reconpruner.safetensors").exists()
    rig = real(vla=str(tiny_dir), warm_up=False)
    assert rig.node.get_parameter("drop").value == 0.0
    assert set_drop(rig, 0.5).reason == "drop: 0.5, but the model runs without a pruner; give 0"


def test_a_drop_ratio_below_what_the_engine_gives_is_refused_and_the_node_runs_on(real, toy, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e .[export]")
    pytest.importorskip("onnx", reason="onnx is not installed: pip install -e .[export]")
    from fastdrive_export.build import GraphOptions, build_onnx

    tokens = toy.vla.tokens
    file = build_onnx(toy.vla.path, toy.pruner_file, tmp_path, options=GraphOptions(max_keep=tokens // 4))[0]
    rig = real(
        vla=str(toy.vla.path),
        pruner=str(toy.pruner_file),
        vision_backend="onnxruntime",
        engine=str(file),
        warm_up=False,
    )
    refused = set_drop(rig, 0.25)
    assert not refused.successful
    assert f"the engine gives {tokens // 4}" in refused.reason
    assert rig.node._loaded.planner.drop == rig.node.get_parameter("drop").value >= 0.75
    assert set_drop(rig, 0.9).successful
    rig.call(rig.node.trigger_deactivate)
    assert not set_drop(rig, 0.25).successful


def test_refusals_carry_the_stage_that_failed(real):
    rig = connected(real(max_set_age_s=60.0, warm_up=False))
    rig.send_set(rig.now_ns(), bad={"CAM_BACK": {"encoding": "rgb99"}})
    record = next_record(rig, 1)
    assert (record["kind"], record["stage"]) == ("refused", "image")
    t0 = rig.now_ns()
    rig.send_set(t0, speed=1e9)
    record = next_record(rig, 2)
    assert (record["kind"], record["stage"]) == ("refused", "odometry")
    assert record["reason"].startswith("odometry: the odometry tells")


@pytest.mark.parametrize("name", ["fastv", "cdpruner"])
def test_the_node_runs_a_pruner_by_its_name(real, name):
    rig = connected(real(max_set_age_s=60.0, pruner=name, drop=0.75))
    assert reaches_the_answer(rig, 1)
    identity = rig.node._loaded.identity()
    assert identity["pruner"] == name and identity["drop"] == "0.75"


def test_a_pruner_that_reads_the_ground_truth_is_refused_at_the_start(ros):
    with pytest.raises(ModelError, match="pruner oracle: reads the ground truth"):
        load_planner(Settings(vla="tiny", pruner="oracle", device="cpu", warm_up=False))


def test_a_model_that_reads_past_images_plans_once_they_have_come(real, tiny_dir, tmp_path):
    folder = shutil.copytree(tiny_dir, tmp_path / "vla")
    spec = json.loads((folder / "vla.json").read_text())
    (folder / "vla.json").write_text(json.dumps(spec | {"frames": {"count": 2, "interval_s": 0.5}}))
    rig = connected(real(vla=str(folder), max_set_age_s=60.0, max_odometry_age_s=5.0))
    t0 = rig.now_ns()
    stages = []
    for count, t_ns in enumerate((t0 - 1_000_000_000, t0 - 500_000_000, t0), start=1):
        rig.send_set(t_ns)
        stages.append(next_record(rig, count).get("stage", "plan"))
    assert stages[0] == "frames" and "frames" not in stages[1:]
    assert "CAM_FRONT: no image 0.5 s before t0" in next_record(rig, 1)["reason"]
