"""A bag through the node in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.replay.bags import START_NS, BagPlan, without_camera, write_bag

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e .[ros]")

from fastdrive_node.commands.replay import ReplayOptions, replay
from fastdrive_node.errors import FastDriveError, InputError
from fastdrive_node.replay import session
from fastdrive_node.replay.node_process import last_words
from fastdrive_node.types import CAMERAS

HERE = Path(__file__).resolve().parent
NODE = (sys.executable, str(HERE.parent / "ros" / "fake_planner.py"))
DATA = HERE.parents[2] / "shared" / "data"
STEP_NS = 500_000_000


class SharedNode:
    """Takes the place of ``open_session``: the node goes on to the next replay that asks for the same one."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._wanted: tuple = ()
        self._session: session.Session | None = None
        self._open = session.open_session

    def close(self) -> None:
        self._stack.close()
        self._session = None

    @contextmanager
    def open(self, inputs, node, parameters, lockstep) -> Iterator[session.Session]:
        wanted = (inputs.topics, inputs.compressed, node, parameters, lockstep)
        if self._session is None or self._wanted != wanted:
            self.close()
            self._session = self._stack.enter_context(self._open(inputs, node, parameters, lockstep))
            self._wanted = wanted
        try:
            yield self._session
            newest = self._session.connection
            newest.set_time(newest.time_ns + 2_000_000_000)  # the next bag begins with a jump back in time
        except BaseException:
            self.close()
            raise


@pytest.fixture(scope="module")
def shared() -> Iterator[SharedNode]:
    node = SharedNode()
    yield node
    node.close()


@pytest.fixture
def shared_node(shared, monkeypatch) -> None:
    monkeypatch.setattr(session, "open_session", shared.open)


@pytest.fixture(autouse=True)
def own_node(request, shared) -> None:
    """A test that shares no node finds none: its environment is as it was."""
    if "shared_node" not in request.fixturenames:
        shared.close()


def run(bag: Path, folder: Path, lockstep: bool = True, **options) -> tuple[dict, list[dict]]:
    """In lockstep, so that no set is lost on a busy machine."""
    chosen = ReplayOptions(bag, json=str(folder / "summary.json"), lockstep=lockstep, **options)
    figures = replay(chosen, NODE, CAMERAS)
    assert json.loads((folder / "summary.json").read_text()) == figures
    plans = [json.loads(line) for line in Path(figures["plans_file"]).read_text().splitlines()]
    return figures, plans


def counts(figures: dict) -> tuple[int, ...]:
    return tuple(figures[name] for name in ("sets", "plans", "refused", "dropped"))


def test_truncated_jpegs_are_refused_by_name_and_the_others_are_planned(shared_node, tmp_path):
    def cut(index: int, camera: str, message):
        return replace(message, data=message.data[:300]) if (index, camera) == (1, "CAM_FRONT") else message

    figures, _ = run(write_bag(tmp_path / "bag", BagPlan(transport="compressed", change=cut)), tmp_path)
    assert counts(figures) == (3, 2, 1, 0)
    assert [key for key in figures["refusals"] if key.startswith("image: CAM_FRONT: data: 300 bytes")]


@pytest.mark.parametrize(("transport", "storage"), [("compressed", "sqlite3"), ("raw", "mcap")])
def test_every_set_of_a_bag_is_planned_and_stamped_with_its_time(shared_node, tmp_path, transport, storage):
    bag = write_bag(tmp_path / "bag", BagPlan(transport=transport, storage=storage, spread_ms=8.0))
    figures, plans = run(bag, tmp_path, out=tmp_path / "out")
    assert counts(figures) == (3, 3, 0, 0)
    assert [plan["t0_ns"] for plan in plans] == [START_NS + k * STEP_NS for k in range(3)]
    assert [plan["text"] for plan in plans] == [f"left, {k} states" for k in (1, 2, 3)]
    assert (figures["total_tokens"], figures["kept_tokens"]) == (192, 96)
    assert {"load", "encode", "total", "end_to_end"} <= set(figures["latency_ms"])
    assert figures["node"]["vla"] == "fake" and figures["pictures"] == 3
    assert Path(figures["plans_file"]) == tmp_path / "out" / "plans.jsonl"


def test_a_loop_is_a_jump_back_in_time_and_gives_the_same_plans(shared_node, tmp_path):
    figures, plans = run(write_bag(tmp_path / "bag"), tmp_path, loop=2)
    assert counts(figures) == (6, 6, 0, 0)
    assert plans[:3] == plans[3:]


def damaged(index: int, camera: str, message):
    """Set 1: a wrong step. Set 2: a camera is absent. Set 3: its header says more rows than it has."""
    if camera != "CAM_BACK" or index not in (1, 2, 3):
        return message
    return {1: replace(message, step=90), 2: None, 3: replace(message, height=1000)}[index]


def test_damaged_sets_are_refused_by_name_and_the_others_are_planned(shared_node, tmp_path):
    figures, plans = run(write_bag(tmp_path / "bag", BagPlan(sets=5, change=damaged)), tmp_path)
    assert [plan["t0_ns"] for plan in plans] == [START_NS, START_NS + 4 * STEP_NS]
    assert (figures["sets"], figures["refused"], figures["incomplete"], figures["dropped"]) == (4, 3, 1, 0)
    reasons = " | ".join(figures["refusals"])
    assert "image: CAM_BACK: step: 90" in reasons
    assert "frames: incomplete set: CAM_BACK missing" in reasons
    assert "image: CAM_BACK: data: 2304 bytes" in reasons


def test_a_last_set_without_a_camera_does_not_hold_the_replay(shared_node, tmp_path):
    figures, _ = run(write_bag(tmp_path / "bag", without_camera("CAM_BACK_LEFT", 2)), tmp_path)
    assert (figures["sets"], figures["plans"], figures["refused"], figures["incomplete"]) == (2, 2, 1, 1)


def test_in_lockstep_late_odometry_does_not_change_the_plans(shared_node, tmp_path):
    _, expected = run(write_bag(tmp_path / "on_time"), tmp_path)
    figures, plans = run(write_bag(tmp_path / "late", BagPlan(odometry_delay_s=1.2)), tmp_path)
    assert counts(figures) == (3, 3, 0, 0) and plans == expected


def test_in_real_time_a_slow_planner_plans_the_newest_set_and_every_set_is_counted(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_PLANNER_DELAY_S", "1.5")
    bag = write_bag(tmp_path / "bag", BagPlan(sets=6, period_s=0.1))
    start = time.monotonic()
    figures, _ = run(bag, tmp_path, lockstep=False, params=narrow(tmp_path))
    assert time.monotonic() - start > 0.5  # the bag's length
    sets, made, refused, dropped = counts(figures)
    assert sets == 6 and dropped > 0 and made + refused - figures["incomplete"] + dropped == 6
    assert figures["rate"] == 1.0 and not figures["lockstep"]


def test_in_lockstep_nothing_is_superseded_by_a_slow_planner(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_PLANNER_DELAY_S", "0.3")
    figures, plans = run(write_bag(tmp_path / "bag", BagPlan(sets=8, period_s=0.1)), tmp_path, params=narrow(tmp_path))
    assert counts(figures) == (8, 8, 0, 0) and figures["lost"] == 0
    assert [plan["t0_ns"] for plan in plans] == [START_NS + k * 100_000_000 for k in range(8)]
    assert figures["rate"] is None and figures["lockstep"]


def test_in_lockstep_a_node_that_gives_no_outcome_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_PLANNER_DELAY_S", "1000")
    monkeypatch.setattr("fastdrive_node.replay.player.SILENCE_S", 0.5)
    monkeypatch.setattr("fastdrive_node.replay.node_process.STOP_S", 0.1)
    with pytest.raises(FastDriveError, match=f"no plan record of the frame set at {START_NS} ns"):
        run(write_bag(tmp_path / "bag"), tmp_path)


def narrow(tmp_path: Path) -> Path:
    """Parameters for sets that are 0.1 s apart."""
    path = tmp_path / "parameters.yaml"
    path.write_text("fastdrive:\n  ros__parameters:\n    max_set_age_s: 30.0\n    max_spread_s: 0.04\n")
    return path


def test_a_node_that_dies_ends_the_replay_with_what_it_said_last(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_PLANNER_DIES", "1")
    with pytest.raises(FastDriveError, match=r"the node ended with exit code 7: .*a fatal fault"):
        run(write_bag(tmp_path / "bag"), tmp_path)


def test_a_node_that_cannot_start_says_why(tmp_path):
    command = (sys.executable, "-c", "import sys; sys.exit('no model here')")
    with pytest.raises(FastDriveError, match="the node ended with exit code 1: no model here"):
        replay(ReplayOptions(write_bag(tmp_path / "bag")), command, CAMERAS)


def test_a_node_that_was_killed_names_the_signal(tmp_path):
    code = "import os, sys; print('active', file=sys.stderr, flush=True); os.kill(os.getpid(), 9)"
    with pytest.raises(
        FastDriveError, match=r"the node was ended by SIGKILL; .* memory is short; it said last: active$"
    ):
        replay(ReplayOptions(write_bag(tmp_path / "bag")), (sys.executable, "-c", code), CAMERAS)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["mode inactive: unconfigured", "unconfigured", "mode fault: configure: no file"], "configure: no file"),
        (["mode fault: configure: no file", "mode inactive: x", "shut down"], "configure: no file / shut down"),
        (["mode nominal", "one", "two", "three", "four"], "two / three / four"),
        (["mode nominal"], "nothing on stderr"),
    ],
)
def test_the_last_words_of_a_node_are_its_fault_and_what_came_behind_it(lines, words):
    assert last_words(lines) == words


def test_nothing_is_started_for_a_bag_that_does_not_fit(tmp_path):
    started = tmp_path / "started"
    command = (sys.executable, "-c", f"open({str(started)!r}, 'w')")
    bag = write_bag(tmp_path / "bag", BagPlan(without={"/CAM_BACK/image_raw"}))
    with pytest.raises(InputError, match="CAM_BACK"):
        replay(ReplayOptions(bag), command, CAMERAS)
    assert not started.exists()


def test_wrong_parameters_are_refused_before_the_start(tmp_path):
    path = tmp_path / "parameters.yaml"
    path.write_text("fastdrive:\n  ros__parameters:\n    dorp: 0.5\n")
    with pytest.raises(InputError, match="dorp"):
        run(write_bag(tmp_path / "bag"), tmp_path, params=path)


def test_an_external_node_is_used_and_left_running(tmp_path, ros):
    bag = write_bag(tmp_path / "bag")
    remaps = [f"~/input/{camera.lower()}/image:=/{camera}/image_raw" for camera in CAMERAS]
    remaps += ["~/input/odometry:=/odom", "~/input/command:=/driving_command", "__ns:=/car"]
    arguments = [argument for remap in remaps for argument in ("-r", remap)]
    command = [*NODE, "--ros-args", "-p", "use_sim_time:=true", "-p", "diagnostics_period_s:=0.2", *arguments]
    node = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        for _ in range(2):
            figures, _ = run(bag, tmp_path, node="external", node_name="/car/fastdrive")
            assert counts(figures) == (3, 3, 0, 0)
        assert node.poll() is None
    finally:
        node.terminate()
        node.wait(20)
    assert os.environ["ROS_DOMAIN_ID"]


@pytest.mark.skipif(not DATA.is_dir(), reason="the real keyframes (shared/data beside the checkout) are not here")
@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_real_keyframes_are_all_planned(shared_node, tmp_path, storage):
    topics = HERE.parents[1] / "config" / "topics_nuscenes.yaml"
    figures, plans = run(DATA / f"nuscenes_scene0103_{storage}", tmp_path, topics=topics)
    assert counts(figures) == (4, 4, 0, 0)
    stamps = [1533151603504799000, 1533151604005234000, 1533151604505102000, 1533151605005102000]
    assert [plan["t0_ns"] for plan in plans] == stamps
    assert [plan["text"] for plan in plans] == [f"none, {k} states" for k in (1, 2, 3, 4)]
    speeds = [plan["waypoints"][0][0] / 0.5 for plan in plans]
    assert np.allclose(speeds, [8.564, 8.368, 8.245, 8.195], atol=2e-3)


def test_steering_and_acceleration_reach_the_node(tmp_path):
    cameras = "".join(f"  {camera}: /{camera}/image_raw\n" for camera in CAMERAS)
    topics = tmp_path / "topics.yaml"
    topics.write_text(f"cameras:\n{cameras}odometry: /odom\nsteering: /steer\nacceleration: /accel\n")
    bag = write_bag(tmp_path / "bag", BagPlan(sets=1, signals=True))
    figures = replay(ReplayOptions(bag, topics, lockstep=True), NODE, CAMERAS)
    assert figures["plans"] == figures["sets"] == 1
