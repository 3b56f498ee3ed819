"""The planner in a process of its own: what crosses, and what becomes of hangs, crashes and short memory."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdrive_node.errors import AnswerError, FastDriveError, ImageError, InputError, ModelError, PlannerError
from fastdrive_node.ros.cdr import CompressedView, ImageView
from fastdrive_node.ros.images import ImageLoader
from fastdrive_node.supervision import channel
from fastdrive_node.supervision.supervisor import SupervisedPlanner, SupervisionLimits, _environment
from fastdrive_node.types import CameraFrame, Command, EgoHistory, EgoState, FrameSet

HANG, CRASH, REFUSE, FAIL, LEAVE = 100.0, 101.0, 102.0, 103.0, 104.0
PATIENCE_S = 30.0
STAND_INS = "tests.supervision.stand_ins"


@pytest.fixture
def start():
    made = []

    def make(factory: str = "make", *arguments, **limits) -> SupervisedPlanner:
        planner = SupervisedPlanner(f"{STAND_INS}:{factory}", arguments, SupervisionLimits(**limits))
        made.append(planner)
        planner.start()
        return planner

    yield make
    for planner in made:
        planner.close()


@pytest.fixture(scope="module")
def steady():
    """One planner for the tests that leave it running."""
    planner = SupervisedPlanner(f"{STAND_INS}:make", (), SupervisionLimits(deadline_s=PATIENCE_S))
    planner.start()
    reach(planner, "ready")
    yield planner
    planner.close()


def reach(planner: SupervisedPlanner, phase: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while planner.state().phase != phase:
        assert time.monotonic() < until, planner.state()
        time.sleep(0.005)


def raw_frame(camera: str, image: np.ndarray) -> CameraFrame:
    height, width = image.shape[:2]
    view = ImageView(1, camera, height, width, "rgb8", False, width * 3, memoryview(image.tobytes()))
    return CameraFrame(camera, 1, 2, ImageLoader(camera, view))


def frames(size: int = 4) -> FrameSet:
    image = np.full((size, size, 3), 2, np.uint8)
    return FrameSet((raw_frame("front", image), raw_frame("back", image + 1)), 7)


def plan(planner: SupervisedPlanner, speed: float = 1.0, frame_set: FrameSet | None = None):
    history = EgoHistory((EgoState(7, 0, 0, 0, speed),))
    return planner.plan(frame_set or frames(), history, Command.LEFT)


def code_of(planner: SupervisedPlanner, speed: float = 1.0) -> str:
    with pytest.raises(PlannerError) as caught:
        plan(planner, speed)
    return caught.value.code


def test_a_set_is_planned_in_another_process_that_has_no_rclpy(steady):
    result = plan(steady)
    assert result.t0_ns == 7 and result.waypoints_m.shape == (6, 2)
    assert result.text == f"left [96, 144] {steady.state().pid} False 0.5"
    assert steady.state().pid != os.getpid() and steady.identity() == {"vla": "stand-in"}


@pytest.mark.parametrize("size", [3, 700, 5])
def test_sets_of_any_size_use_the_same_memory(steady, size):
    assert plan(steady, frame_set=frames(size)).text.startswith(f"left [{size * size * 6}, {size * size * 9}]")


def test_jpegs_cross_as_they_came_and_black_images_as_pixels(steady):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(buffer, "PNG")
    view = CompressedView(1, "", "png", memoryview(buffer.getvalue()))
    black = CameraFrame("back", 1, 1, lambda: np.zeros((2, 2, 3), np.uint8))
    text = plan(steady, frame_set=FrameSet((CameraFrame("front", 1, 1, ImageLoader("front", view)), black), 7)).text
    assert text.startswith("left [38400, 0]")


def test_what_is_known_of_a_frame_crosses_with_it():
    black = CameraFrame("back", 1, 2, lambda: np.zeros((2, 2, 3), np.uint8), "lens", (900, 1600))
    region = channel.Region()
    packed = channel.pack_frames([black], region)
    history = EgoHistory((EgoState(7, 0, 0, 0, 1.0),))
    (frame,) = channel.unpack_frames(channel.PlanRequest(1, packed, 7, (), history, Command.NONE, None), region).frames
    known = (frame.camera, frame.stamp_ns, frame.received_ns, frame.frame_id, frame.expected_size)
    assert known == ("back", 1, 2, "lens", (900, 1600)) and frame.load().shape == (2, 2, 3)
    del frame
    region.close()


def test_a_damaged_image_is_refused_as_in_one_process(steady):
    view = CompressedView(1, "", "png", memoryview(b"no image"))
    damaged = CameraFrame("front", 1, 1, ImageLoader("front", view))
    with pytest.raises(ImageError, match="front: data: 8 bytes are not a complete JPEG or PNG"):
        plan(steady, frame_set=FrameSet((damaged,), 7))


def test_a_set_that_is_too_large_is_refused_before_memory_is_taken(steady, monkeypatch):
    monkeypatch.setattr(channel, "MAX_SET_BYTES", 1000)
    before = os.fstat(steady._region.fd).st_size
    with pytest.raises(ImageError, match="more than 1000"):
        plan(steady, frame_set=frames(2000))
    assert os.fstat(steady._region.fd).st_size == before


def test_errors_cross_with_their_class_stage_and_output(steady):
    with pytest.raises(AnswerError, match="no <PLANNING> tag") as caught:
        plan(steady, REFUSE)
    output = caught.value.output
    assert caught.value.stage == "answer" and output is not None and output.text == "what it wrote"
    with pytest.raises(FastDriveError, match="ZeroDivisionError: a fault") as caught:
        plan(steady, FAIL)
    assert caught.value.stage == "internal"


def test_the_drop_ratio_is_checked_here_and_used_there(steady):
    steady.drop = 0.75
    assert plan(steady).text.endswith(" 0.75")
    with pytest.raises(ValueError, match="not in"):
        steady.drop = 2.0
    assert steady.drop == 0.75 and steady.default_drop == 0.5


def test_an_interrupt_of_the_terminal_does_not_end_the_process(steady):
    os.kill(steady.state().pid, signal.SIGINT)
    assert str(steady.state().pid) in plan(steady).text


@pytest.mark.parametrize(("threads", "environment", "used"), [(0, None, None), (0, "5", "5"), (3, "5", "3")])
def test_a_core_is_left_to_the_node_unless_threads_are_given(monkeypatch, threads, environment, used):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if environment is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert _environment(threads)["OMP_NUM_THREADS"] == (used or "7")


def test_a_hang_ends_at_the_deadline_and_the_process_is_replaced(start):
    planner = start(deadline_s=0.5)
    assert code_of(planner) == "planner_starting"
    reach(planner, "ready")
    first, began = planner.state().pid, time.monotonic()
    busy = []
    threading.Timer(0.2, lambda: busy.append(planner.state().busy_s)).start()
    assert code_of(planner, HANG) == "planner_hang"
    assert time.monotonic() - began < 1.0 and busy[0] > 0.1
    assert code_of(planner) in ("planner_starting", "planner_exit")
    reach(planner, "ready")
    assert planner.state().restarts == 1 and planner.state().pid != first
    assert planner.state().reason == "no plan after 0.5 s: killed"
    assert not Path(f"/proc/{first}").exists()
    planner.drop = 0.25
    assert plan(planner).text.endswith(" 0.25")


@pytest.mark.parametrize(("speed", "how"), [(CRASH, "SIGSEGV"), (LEAVE, "exit code 3")])
def test_a_process_that_ends_is_noticed_at_once_and_replaced(start, speed, how):
    planner = start(deadline_s=PATIENCE_S)
    reach(planner, "ready")
    with pytest.raises(PlannerError, match=how) as caught:
        plan(planner, speed)
    assert caught.value.code == "planner_exit"
    reach(planner, "ready")
    plan(planner)


def test_a_process_that_is_killed_while_it_waits_is_replaced(start):
    planner = start(deadline_s=PATIENCE_S)
    reach(planner, "ready")
    os.kill(planner.state().pid, signal.SIGKILL)
    reach(planner, "restarting")
    assert "ended by SIGKILL; the kernel does so where memory is short" in planner.state().reason
    reach(planner, "ready")


def test_too_many_restarts_leave_the_planner_down(start):
    planner = start(restarts=0)
    reach(planner, "ready")
    assert code_of(planner, CRASH) == "planner_exit"
    reach(planner, "down")
    assert code_of(planner) == "planner_down" and planner.state().pid is None
    assert planner.load_error is None


def test_a_model_that_cannot_be_loaded_is_not_tried_again(start):
    planner = start("unusable")
    reach(planner, "down")
    assert isinstance(planner.load_error, ModelError) and str(planner.load_error) == "weights: missing"
    assert planner.state().restarts == 0
    with pytest.raises(InputError, match="not loaded yet"):
        planner.check_drop(0.5)


def test_a_process_that_dies_while_it_loads_is_tried_again(start):
    planner = start("dies", restarts=1)
    reach(planner, "down")
    assert planner.state().restarts == 1 and "exit code 9" in str(planner.load_error)


def test_a_load_that_does_not_end_is_ended(start):
    planner = start("slow", load_s=0.1, restarts=0)
    reach(planner, "down")
    assert "not loaded after 0.1 s" in planner.state().reason


def test_short_gpu_memory_halves_the_tokens_once(start):
    planner = start("make", 0.7, deadline_s=PATIENCE_S)
    reach(planner, "ready")
    assert plan(planner).text.endswith(" 0.75")
    assert planner.drop == 0.75 and "drop is 0.75 instead of 0.5" in planner.state().reason
    planner.drop = 0.5
    assert code_of(planner) == "gpu_out_of_memory"


def test_closing_ends_a_hang_and_the_process_at_once(start):
    planner = start(deadline_s=PATIENCE_S)
    reach(planner, "ready")
    pid, caught = planner.state().pid, []

    def hang() -> None:
        try:
            plan(planner, HANG)
        except PlannerError as error:
            caught.append(error)

    thread = threading.Thread(target=hang)
    thread.start()
    while planner.state().busy_s is None:
        time.sleep(0.005)
    began = time.monotonic()
    planner.close()
    thread.join(PATIENCE_S)
    assert time.monotonic() - began < 1.0 and caught and not Path(f"/proc/{pid}").exists()


def test_the_process_ends_with_the_one_that_started_it():
    code = (
        "import os, sys, time\n"
        "from fastdrive_node.supervision.supervisor import SupervisedPlanner\n"
        f"planner = SupervisedPlanner('{STAND_INS}:slow', ())\n"
        "planner.start()\n"
        "while planner.state().pid is None: time.sleep(0.01)\n"
        "print(planner.state().pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None  # a pipe
        child = int(parent.stdout.readline())
        parent.kill()
    until = time.monotonic() + PATIENCE_S
    while Path(f"/proc/{child}").exists() and "State:\tZ" not in Path(f"/proc/{child}/status").read_text():
        assert time.monotonic() < until, "the process goes on"
        time.sleep(0.01)
