"""The order in which a bag is played in lockstep."""

from __future__ import annotations

from collections import Counter

import pytest

from fastdrive_node.commands.replay import ReplayOptions, open_recording
from fastdrive_node.replay.frame_sets import SetCounter
from fastdrive_node.replay.lockstep import Step, lockstep
from fastdrive_node.ros.cdr import parse_stamp_ns
from fastdrive_node.types import CAMERAS
from tests.replay.bags import START_NS, BagPlan, without_camera, write_bag

PERIOD_NS = 500_000_000
TIMEOUT_NS = 300_000_000


def steps_of(bag) -> list[Step]:
    recording = open_recording(ReplayOptions(bag), CAMERAS)
    counter = SetCounter(recording.topics, recording.compressed)
    steps = list(lockstep(recording, counter))
    sent = Counter((step.message.topic, step.message.raw) for step in steps if step.message is not None)
    assert sent == Counter((each.topic, each.raw) for each in recording.bag.messages(recording.topics.topics()))
    assert [step.time_ns for step in steps] == sorted(step.time_ns for step in steps)
    return steps


def outcomes_of(steps: list[Step]) -> list[tuple[int, ...]]:
    return [step.outcomes for step in steps if step.outcomes]


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.7, 10.0])
def test_the_odometry_of_a_set_is_sent_before_its_last_image(tmp_path, delay_s):
    steps = steps_of(write_bag(tmp_path / "bag", BagPlan(spread_ms=8.0, odometry_delay_s=delay_s)))
    assert outcomes_of(steps) == [(START_NS + k * PERIOD_NS,) for k in range(3)]
    newest_ns = 0
    for step in steps:
        if step.message is not None and step.message.topic == "/odom":
            newest_ns = parse_stamp_ns(step.message.raw)
        if step.outcomes:
            assert step.message.topic == "/CAM_FRONT_LEFT/image_raw"  # the last camera of each set
            assert step.time_ns == step.message.stamp_ns and newest_ns >= step.outcomes[0]


def test_a_set_without_odometry_after_it_is_played_all_the_same(tmp_path):
    steps = steps_of(write_bag(tmp_path / "bag", BagPlan(odometry_delay_s=-0.4)))
    assert len(outcomes_of(steps)) == 3


@pytest.mark.parametrize("index", [0, 1, 2])
def test_an_incomplete_set_ends_by_simulated_time_before_the_next_image(tmp_path, index):
    steps = steps_of(write_bag(tmp_path / "bag", without_camera("CAM_FRONT_LEFT", index)))
    assert outcomes_of(steps) == [(START_NS + k * PERIOD_NS,) for k in range(3)]
    (expiry,) = (step for step in steps if step.outcomes and step.message is None)
    last_image_ns = START_NS + index * PERIOD_NS + 2 + 4  # of the camera before the missing one
    assert expiry == Step(last_image_ns + TIMEOUT_NS, None, (START_NS + index * PERIOD_NS,))


def test_damaged_odometry_is_sent_as_it_is(tmp_path, monkeypatch):
    bag = write_bag(tmp_path / "bag")
    monkeypatch.setattr("fastdrive_node.replay.lockstep.parse_stamp_ns", lambda raw: parse_stamp_ns(b"\xff" * 8))
    assert len(outcomes_of(steps_of(bag))) == 3
