"""The study that looks whether a planner looks: which states it takes, and what it says of plans."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import ROOT
from benchmarks.studies.looking import State, braking, emptied, gap_m, history_of, length_m, states_of, summary_of
from fastdrive_node.errors import AnswerError, SimError
from fastdrive_node.planning.loading import open_pipeline
from fastdrive_sim.drive.command import DRIVING_VLA
from fastdrive_sim.render import Renderer
from fastdrive_sim.types import EgoPose, Keyframe, SceneRecording, Snapshot, Thing


def _snapshot(speed: float, ahead: dict, things: tuple = (), x: float = 0.0) -> Snapshot:
    return Snapshot(0.0, EgoPose(x, 0.0, 0.0, speed), things, "straight", np.zeros((2, 2)), ahead)


def _straight(length: float) -> np.ndarray:
    return np.stack([np.linspace(length / 6, length, 6), np.zeros(6)], 1)


def test_the_length_of_a_plan_is_that_of_its_way() -> None:
    assert length_m(np.array([[3.0, 4.0], [3.0, 10.0]])) == pytest.approx(11.0)


def test_states_are_those_in_which_the_expert_brakes_for_something_near() -> None:
    near, far = {"light": "none", "pedestrian_gap_m": 8.0, "vehicle_gap_m": 30.0}, {"light": "none"}
    cases = [  # speed, ahead, the expert's length, taken
        (8.0, near, 23.0, False),  # it drives on
        (8.0, far, 10.0, False),  # it brakes for a light or a bend
        (2.0, near, 1.0, False),  # nearly standing
        (8.0, near, 10.0, True),
        (8.0, near, 9.0, True),
        (8.0, near, 8.0, False),  # two of a scene are enough
    ]
    snapshots = [_snapshot(speed, ahead) for speed, ahead, *_ in cases]
    keyframes = [Keyframe(step, _straight(length)) for step, (_, _, length, _) in enumerate(cases)]
    recording = SceneRecording(None, snapshots, keyframes, {}, {})
    assert [each.step for each in braking(recording)] == [step for step, case in enumerate(cases) if case[3]]
    assert gap_m(snapshots[0]) == 8.0 and gap_m(snapshots[1]) == np.inf


def test_an_emptied_road_keeps_its_traffic_lights() -> None:
    things = tuple(Thing(n, kind, 0.0, 0.0, 0.0, (1.0, 1.0, 1.0), (0, 0, 0)) for n, kind in enumerate(KINDS, 1))
    left = emptied(_snapshot(5.0, {}, things)).things
    assert [thing.kind for thing in left] == ["traffic_light"]


KINDS = ("car", "traffic_light", "pedestrian", "cyclist")


def test_the_history_is_newest_first_at_half_seconds() -> None:
    recording = SceneRecording(None, [_snapshot(4.0, {}, x=0.2 * step) for step in range(70)], [], {}, {})
    states = history_of(recording, 65).states
    assert [round(state.x_m, 6) for state in states] == [13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0]
    assert states[0].stamp_ns - states[1].stamp_ns == 500_000_000


class _Planner:
    """Plans ``seen`` metres for images with something bright in them, else ``empty`` metres; refuses at 0."""

    def __init__(self, seen: float, empty: float):
        spec = SimpleNamespace(cameras=("CAM_FRONT",), image_size=(4, 4))
        self.vla, self._lengths = SimpleNamespace(spec=spec), (empty, seen)

    def plan(self, frames, history, command):
        length = self._lengths[int(frames.frames[0].load().max() > 0)]
        if not length:
            raise AnswerError("plan: too fast")
        return SimpleNamespace(waypoints_m=_straight(length))


class _Renderer:
    def __init__(self, width: int, height: int):
        self.size = (height, width)

    def load(self, world) -> None:
        pass

    def render(self, snapshot):
        seen = any(thing.kind != "traffic_light" for thing in snapshot.things)
        return SimpleNamespace(rgb=np.full((1, *self.size, 3), 200 if seen else 0, np.uint8))

    def close(self) -> None:
        pass


def test_a_planner_that_looks_plans_less_with_the_road_users(monkeypatch) -> None:
    car = Thing(1, "car", 9.0, 0.0, 0.0, (4.0, 2.0, 1.5), (0, 0, 0))
    snapshot = _snapshot(8.0, {"vehicle_gap_m": 7.0}, (car,))
    recording = SceneRecording(None, [snapshot] * 70, [Keyframe(65, _straight(9.0))], {}, {})
    monkeypatch.setattr("benchmarks.studies.looking.DriveSimulation.choose", lambda *args: recording)
    monkeypatch.setattr("fastdrive_sim.render.Renderer", _Renderer)
    planners = {"looks": _Planner(10.0, 24.0), "copies": _Planner(24.0, 24.0), "refused": _Planner(0.0, 24.0)}
    states = states_of(planners, ["stopped-lead"], 2)
    assert [state.family for state in states] == ["stopped-lead"] * 2
    assert states[0].gap_m == 7.0 and states[0].expert_m == 9.0
    rows = {row["vla"]: row for row in summary_of(states)}
    assert (rows["looks"]["with_m"], rows["looks"]["without_m"]) == (10.0, 24.0)
    assert (rows["copies"]["with_m"], rows["copies"]["without_m"]) == (24.0, 24.0)
    assert (rows["refused"]["states"], rows["refused"]["refused"]) == (0, 2)


def test_the_shipped_driving_vla_brakes_for_what_it_sees() -> None:
    try:
        Renderer(16, 16).close()
    except SimError as error:
        pytest.skip(str(error))  # no EGL here
    states = states_of({"drives": open_pipeline(ROOT / DRIVING_VLA, "none", 0.0)}, ["stopped-lead", "cyclist"], 1)
    (row,) = summary_of(states)
    assert row["refused"] == 0 and row["states"] == len(states) >= 2
    assert row["with_m"] < 0.75 * row["without_m"] and row["with_m"] < 1.6 * row["expert_m"]


def test_a_refused_plan_is_counted_and_left_out_of_the_means() -> None:
    states = [
        State("cut-in", 8.0, 9.0, 10.0, {"a": 12.0}, {"a": 20.0}),
        State("cut-in", 8.0, 9.0, 30.0, {"a": None}, {"a": 20.0}),
    ]
    (row,) = summary_of(states)
    assert row == {"vla": "a", "states": 1, "refused": 1, "with_m": 12.0, "without_m": 20.0, "expert_m": 10.0}
