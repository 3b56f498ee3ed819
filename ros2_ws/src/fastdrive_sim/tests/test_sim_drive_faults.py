"""Faults of the camera stream, the ego state and the latency."""

from __future__ import annotations

import numpy as np
import pytest

from fastdrive_node.errors import UsageError
from fastdrive_sim.drive.faults import FAULTS, make_fault, parse_fault
from fastdrive_sim.drive.types import EgoStep

NOTHING = -1
EGO = EgoStep(10.0, 5.0, 0.0, 8.0, 0.0, 0.0, 0.0)


def images(tick: int) -> list[np.ndarray | None]:
    """Six images, each pixel 10 * tick + camera + 1."""
    return [np.full((2, 3, 3), 10 * tick + camera + 1, np.uint8) for camera in range(6)]


def shown(name: str, severity: float, ticks: int = 6, seed: int = 1) -> list[list[int]]:
    """The value of each camera's image in each tick; ``NOTHING`` where none was sent."""
    fault = make_fault(name, severity)
    fault.begin(seed)
    given = [fault.images(images(tick)) for tick in range(ticks)]
    return [[NOTHING if image is None else int(image[0, 0, 0]) for image in tick] for tick in given]


TRUE = shown("", 0.0)


def test_a_burst_repeats_a_whole_frame_set():
    assert shown("burst", 3) == [TRUE[0]] * 3 + [TRUE[3]] * 3


def test_a_frozen_camera_repeats_its_third_image():
    found = shown("frozen", 0.5)
    assert found[:3] == TRUE[:3]
    frozen = [camera for camera in range(6) if found[5][camera] == TRUE[2][camera]]
    assert len(frozen) == 3 and 0 in frozen


def test_a_dropped_image_is_missing():
    found = shown("dropped", 1.0)
    assert all(tick.count(NOTHING) == 1 for tick in found)
    assert shown("dropped", 0.0) == TRUE


def test_black_cameras_stay_black():
    assert shown("black", 1.0) == [[0] * 6] * 6
    assert [tick.count(0) for tick in shown("black", 0.3)] == [2] * 6


def test_swapped_cameras_change_places_for_the_whole_run():
    found = shown("swapped", 1)
    assert found[0] != TRUE[0] and sorted(found[0]) == TRUE[0]
    assert [[value % 10 for value in tick] for tick in found] == [found[0]] * 6


def test_faults_of_the_ego_state_change_what_they_name():
    noisy = make_fault("position-noise", 1.0).odometry(EGO)
    assert (noisy.x, noisy.y) != (EGO.x, EGO.y) and noisy.speed == EGO.speed
    assert make_fault("speed-scale", 1.5).odometry(EGO).speed == 12.0


def test_latency_holds_plans_back():
    assert make_fault("latency", 2).held_ticks == 2 and make_fault("", 0).held_ticks == 0


@pytest.mark.parametrize("name", FAULTS)
def test_the_same_seed_gives_the_same_fault_again(name):
    assert shown(name, FAULTS[name].most / 2) == shown(name, FAULTS[name].most / 2)
    fault = make_fault(name, 1.0)
    fault.begin(4)
    first = [fault.odometry(EGO) for _ in range(3)]
    fault.begin(4)
    assert [fault.odometry(EGO) for _ in range(3)] == first


@pytest.mark.parametrize(
    "text",
    ["frozen", "frozen:2", "frozen:x", "latency:-1", "icy:0.5", "black:nan", "latency:0.5", "burst:0", "swapped:4"],
)
def test_a_wrong_fault_is_refused(text):
    with pytest.raises(UsageError, match="--fault"):
        parse_fault(text)


def test_a_severity_that_would_be_rounded_is_refused_with_what_may_be_given():
    with pytest.raises(
        UsageError, match=r"latency:2\.5: give latency:SEVERITY, a whole number from 0 to 20 \(planning"
    ):
        parse_fault("latency:2.5")
    assert parse_fault("burst:2.0") == ("burst", 2.0) and parse_fault("black:0.25") == ("black", 0.25)
