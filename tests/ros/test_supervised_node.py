"""The node with its planner in a process of its own: loading, hangs, failures and signals."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e .[ros]")

from diagnostic_msgs.msg import DiagnosticArray

from fastdrive_node.ros.planner_factory import supervise_planner
from tests.ros.conftest import Rig, connected, diagnostics, jpeg_image, records_of, values
from tests.ros.network_watch import segments, sockets

STAND_INS = "tests.supervision.stand_ins"
HANG = 100.0


@pytest.fixture
def supervised(ros):
    made = []

    def make(stand_in: str, **parameters) -> Rig:
        made.append(
            Rig(
                ros,
                factory=lambda settings: supervise_planner(settings, f"{STAND_INS}:{stand_in}"),
                vla="tiny",
                diagnostics_period_s=0.1,
                odometry_speed_check="off",  # a stand-in is told by the speed what to do
                **parameters,
            )
        )
        return made[-1]

    yield make
    for each in made:
        each.close()


def record_at(rig: Rig, t0_ns: int) -> dict:
    """The record of a set; those of kind ``mode`` have no t0."""

    def find() -> list[dict]:
        return [record for record in records_of(rig) if record.get("t0_ns") == t0_ns]

    rig.wait(find, f"the record of {t0_ns}")
    return find()[0]


def outcome(rig: Rig, speed: float = 8.0) -> dict:
    t0_ns = rig.now_ns()
    rig.send_set(t0_ns, speed=speed)
    return record_at(rig, t0_ns)


def test_the_node_answers_while_the_model_loads_and_a_hang_costs_one_set(supervised):
    rig = connected(supervised("for_node", planning_deadline_s=0.5, max_plan_age_s=5.0))
    loading = outcome(rig)
    assert (loading["stage"], loading["code"]) == ("planner", "planner_starting")
    rig.wait(lambda: rig.node.get_parameter("drop").value == 0.5, "the model's drop ratio")
    assert outcome(rig)["kind"] == "plan"
    began = time.monotonic()
    assert outcome(rig, HANG)["code"] == "planner_hang"
    assert time.monotonic() - began < 1.0
    rig.wait(lambda: rig.node._loaded.planner_state().phase == "ready", "the next process")
    assert outcome(rig)["kind"] == "plan" and rig.node._loaded.planner_state().restarts == 1


@pytest.mark.parametrize(("early", "counts"), [(True, ["6", "0"]), (False, [None, None])])
def test_compressed_images_are_decoded_as_they_arrive_and_cross_as_pixels(supervised, early, counts):
    rig = connected(supervised("for_node", image_transport="compressed", decode_on_arrival=early))
    rig.listen(DiagnosticArray, "/diagnostics")
    rig.wait(lambda: rig.node._loaded.planner_state().phase == "ready", "the model")
    pixels = int(np.asarray(Image.open(io.BytesIO(jpeg_image()))).sum())
    assert outcome(rig)["text"].startswith(f"none {[pixels] * 6} ")

    def told() -> list[str | None]:
        topics = values(diagnostics(rig)["topics"])
        return [topics.get(name) for name in ("decoded_on_arrival", "decoded_by_planner")]

    rig.wait(lambda: told() == counts, "the counts")


def test_a_damaged_jpeg_that_was_decoded_early_is_refused_by_name_and_the_next_set_is_planned(supervised):
    rig = connected(supervised("for_node", image_transport="compressed", decode_on_arrival=True))
    rig.wait(lambda: rig.node._loaded.planner_state().phase == "ready", "the model")
    t0_ns = rig.now_ns()
    rig.send_set(t0_ns, bad={"CAM_BACK": {"data": jpeg_image()[:200]}})
    refused = record_at(rig, t0_ns)
    assert (refused["kind"], refused["stage"]) == ("refused", "image")
    assert refused["reason"].startswith("CAM_BACK: data: 200 bytes are not a complete JPEG or PNG")
    assert outcome(rig)["kind"] == "plan"


def test_a_model_that_cannot_be_loaded_makes_the_node_unconfigured_and_is_in_the_diagnostics(supervised):
    from diagnostic_msgs.msg import DiagnosticArray

    rig = supervised("unusable")
    rig.listen(DiagnosticArray, "/diagnostics")
    expected = "configure failed: weights: missing"
    rig.wait(lambda: diagnostics(rig)["planner"].message == expected, "the reason")
    assert rig.node._label == "unconfigured" and rig.node.failed.done()


SCRIPT = f"""
import sys
from fastdrive_node.ros.program import main
from fastdrive_node.ros.planner_factory import supervise_planner
sys.exit(main(["--ros-args", "-p", "vla:=tiny"], lambda settings: supervise_planner(settings, "{STAND_INS}:slow")))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_model_loads_ends_the_node_and_its_planner_at_once(ros, number):
    node = subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert node.stderr is not None  # a pipe
    said = ""
    while "active" not in said.replace("inactive", ""):
        line = node.stderr.readline()
        assert line, said
        said += line
    children = Path(f"/proc/{node.pid}/task/{node.pid}/children")
    planners = [child for task in children.parents[1].iterdir() for child in (task / "children").read_text().split()]
    assert all(name.startswith("udp") for name in sockets(node.pid)), "DDS, and nothing else"
    assert sockets(node.pid) and not any(sockets(planner) for planner in planners)
    owned = segments(node.pid)
    began = time.monotonic()
    os.kill(node.pid, number)
    _, rest = node.communicate(timeout=30)
    assert node.returncode == 0 and time.monotonic() - began < 2.0, rest
    assert "Traceback" not in rest
    assert planners and not any(Path(f"/proc/{planner}").exists() for planner in planners)
    assert owned and not any(segment.exists() for segment in owned), "left in /dev/shm"


def test_a_signal_before_the_node_has_started_ends_it_with_0(ros):
    words = [sys.executable, "-X", "importtime", "-m", "fastdrive_node.ros"]
    node = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    assert node.stderr is not None  # a pipe
    while "numpy" not in node.stderr.readline():  # in the middle of the imports
        assert node.poll() is None
    node.send_signal(signal.SIGINT)
    _, rest = node.communicate(timeout=30)
    assert node.returncode == 0 and "Traceback" not in rest
