"""Ego states from a JSON file."""

import json

import pytest

from fastdrive_node.errors import EgoStateError
from fastdrive_node.sync.ego_file import read_history

KNOWN = {"ax": 0.1, "ay": -0.2, "vy": 0.01, "yaw_rate": 0.0, "steer": 0.02}


def stored(tmp_path, states):
    file = tmp_path / "states.json"
    file.write_text(states if isinstance(states, str) else json.dumps(states))
    return file


def state(t_s, **values):
    return {"t_s": t_s, "x": 4.0 * t_s, "y": 0.0, "yaw": 0.0, "speed": 4.0, **values}


def test_what_the_file_tells_is_in_the_history(tmp_path):
    history = read_history(stored(tmp_path, [state(-0.5), state(0, **KNOWN)]), 2, 0.5)
    now, before = history.states
    assert (now.accel_mps2, now.accel_y_mps2, now.speed_y_mps, now.steer_rad) == (0.1, -0.2, 0.01, 0.02)
    assert now.accel_measured and not before.accel_measured and before.steer_rad is None and before.x_m == -2.0


def test_states_between_those_of_the_file_are_interpolated(tmp_path):
    history = read_history(stored(tmp_path, [state(-0.6, **KNOWN), state(0, **KNOWN)]), 1, 0.3)
    assert history.states[1].x_m == pytest.approx(-1.2) and history.states[1].steer_rad == pytest.approx(0.02)
    assert history.states[1].accel_mps2 == pytest.approx(0.1)


@pytest.mark.parametrize(
    "states, reason",
    [
        ("[", "not readable as JSON"),
        ([], "at least 1 item"),
        ([state(0, color=1)], "0.color"),
        ([state(0, x="far")], "0.x"),
        ([state(0, speed=None)], "0.speed"),
        ([state(-1.0)], "t_s: must rise"),
        ([state(0), state(-0.5)], "t_s: must rise"),
        ([state(0.5)], "0.t_s"),
        ([state(0, yaw=720.0)], "0.yaw"),
        ([state(0, steer=5.0)], "0.steer"),
        ([state(0, speed=400.0)], "0.speed"),
        ([state(-0.5, x=-500.0), state(0, x=0.0)], "no vehicle moves so far"),
        ('[{"t_s": 0, "x": 1, "x": 2, "y": 0, "yaw": 0, "speed": 1}]', "x: is there twice"),
        ('[{"t_s": 0, "x": 1e999, "y": 0, "yaw": 0, "speed": 1}]', "0.x"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_name(tmp_path, states, reason):
    with pytest.raises(EgoStateError, match=r"states\.json") as refused:
        read_history(stored(tmp_path, states), 2, 0.5)
    assert reason in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(EgoStateError, match=r"absent\.json: not readable"):
        read_history(tmp_path / "absent.json", 1, 0.5)
