"""Ego states with the messages of nuScenes' CAN bus expansion, from files of its format written by hand."""

from __future__ import annotations

import json
import shutil

import pytest

from fastdrive_node.errors import InputError
from fastdrive_node.families.templates import NUSCENES_STEERING_RATIO
from fastdrive_training.data.adapters.base import dataset_identity
from fastdrive_training.data.nuscenes.keyframes import KeyframeDataset
from tests.training.tiny_nuscenes import EPOCH_US, write_dataset

SPEED = 4.0


@pytest.fixture
def root(tmp_path):
    return write_dataset(tmp_path / "d", scenes=1, keyframes=8, speed=SPEED)


def write_messages(root, name: str, messages: list[dict], scene: str = "scene-0") -> None:
    (root / "can_bus").mkdir(exist_ok=True)
    (root / "can_bus" / f"{scene}_{name}.json").write_text(json.dumps(messages))


def pose_message(seconds: float, **changes) -> dict:
    """A message of ``pose``; its speed tells its time."""
    return {
        "accel": [0.25, -0.5, 9.81],
        "orientation": [1.0, 0.0, 0.0, 0.0],
        "pos": [100.0, 50.0, 0.0],
        "rotation_rate": [0.01, 0.02, 0.125],
        "utime": EPOCH_US + round(seconds * 1e6),
        "vel": [SPEED + seconds, 0.0625, 0.0],
        **changes,
    }


def steering_message(seconds: float, angle: float) -> dict:
    return {"utime": EPOCH_US + round(seconds * 1e6), "value": angle}


def _states(root, index: int = 7):
    return KeyframeDataset(root)[index].known_history.states


def test_states_hold_what_the_vehicle_measured(root):
    write_messages(root, "pose", [pose_message(0.02 * step) for step in range(200)])
    write_messages(root, "steeranglefeedback", [steering_message(0.01 * step, 0.03 * step) for step in range(400)])
    derived = _states(write_dataset(root.parent / "bare", scenes=1, keyframes=8, speed=SPEED))
    states = _states(root)
    assert len(states) == len(derived) == 7
    for step, (state, before) in enumerate(zip(states, derived, strict=True)):
        seconds = 3.5 - 0.5 * step
        assert (state.accel_measured, before.accel_measured) == (True, False)
        assert (state.accel_mps2, state.accel_y_mps2, state.speed_y_mps) == (0.25, -0.5, 0.0625)
        assert state.yaw_rate_radps == 0.125 and state.speed_mps == pytest.approx(SPEED + seconds)
        assert state.steer_rad == pytest.approx(3 * seconds / NUSCENES_STEERING_RATIO)
        assert (before.accel_y_mps2, before.speed_y_mps, before.steer_rad) == (None, None, None)
        assert (state.x_m, state.y_m, state.yaw_rad, state.stamp_ns) == (
            before.x_m,
            before.y_m,
            before.yaw_rad,
            before.stamp_ns,
        )


def test_the_nearest_message_within_a_tenth_of_a_second_is_taken(root):
    late = [pose_message(3.5 - 0.09, vel=[1.0, 0, 0]), pose_message(3.5 + 0.08, vel=[2.0, 0, 0])]
    write_messages(root, "pose", [*late, pose_message(3.0 - 0.11), pose_message(3.0 + 0.11)])
    now, before, *_ = _states(root)
    assert now.speed_mps == 2.0 and now.accel_measured
    assert before.speed_mps == pytest.approx(SPEED) and not before.accel_measured and before.accel_y_mps2 is None
    assert now.steer_rad is None, "no file of the steering wheel"


def test_messages_may_be_out_of_order(root):
    write_messages(root, "pose", [pose_message(0.5 * step) for step in range(7, -1, -1)])
    assert [state.speed_mps for state in _states(root)] == [SPEED + 0.5 * step for step in range(7, 0, -1)]


def test_speed_of_the_vehicle_monitor_serves_where_no_pose_is_near(root):
    write_messages(root, "pose", [pose_message(3.5)])
    monitor = [{"utime": EPOCH_US + 500_000 * step, "vehicle_speed": 36.0, "steering": 90.0} for step in range(8)]
    write_messages(root, "vehicle_monitor", monitor)
    now, before, *_ = _states(root)
    assert now.speed_mps == SPEED + 3.5
    assert before.speed_mps == 10.0 and not before.accel_measured and before.steer_rad is None


def test_other_scenes_and_names_that_are_no_scenes_are_as_before(root):
    plain = _states(root)
    write_messages(root, "pose", [pose_message(0.5 * step) for step in range(8)], scene="scene-1")
    assert _states(root) == plain
    table = root / "v1.0-tiny" / "scene.json"
    rows = json.loads(table.read_text())
    rows[0]["name"] = "../can_bus/scene-1"
    table.write_text(json.dumps(rows))
    (root / "splits.json").unlink()
    assert _states(root) == plain


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[{", "JSON"),
        ("{}", "list"),
        (json.dumps([{"utime": 1}]), "accel"),
        (json.dumps([pose_message(0.0, vel=[1.0, 2.0])]), "vel"),
        (json.dumps([pose_message(0.0, utime=-1)]), "utime"),
        (json.dumps([pose_message(0.0, accel=[float("nan"), 0, 0])]), "accel"),
        (json.dumps([pose_message(0.0, rotation_rate="fast")]), "rotation_rate"),
    ],
)
def test_damaged_files_are_named(root, content, problem):
    write_messages(root, "pose", [])
    (root / "can_bus" / "scene-0_pose.json").write_text(content)
    with pytest.raises(InputError, match=rf"scene-0_pose\.json: .*{problem}.*unpack the CAN bus expansion again"):
        _states(root)


def _identities(root) -> tuple[str, str]:
    dataset = KeyframeDataset(root)
    return dataset_identity(dataset), dataset.parts


def test_added_messages_change_the_dataset(root):
    before = _identities(root)
    write_messages(root, "pose", [pose_message(0.0)], scene="scene-1")
    assert _identities(root) == before, "of no scene of the dataset"
    write_messages(root, "pose", [pose_message(0.0)])
    assert all(new != old for new, old in zip(_identities(root), before, strict=True))


def test_a_copy_of_the_dataset_has_the_same_parts(root, tmp_path):
    write_messages(root, "pose", [pose_message(0.0)])
    (root / "maps" / "scene-0.png").unlink()
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copy)  # with other times of change
    assert _identities(tmp_path / "copy")[1] == _identities(root)[1]
