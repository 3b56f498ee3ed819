"""The sample bag as the node would plan it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rosbags.typesys import Stores, get_typestore

from fastdrive_node.replay.bag import COMMAND_TYPE, Recording
from fastdrive_node.replay.samples import planning_samples
from fastdrive_node.types import CAMERAS, Command

CITY = Path(__file__).resolve().parents[2] / "samples" / "city"


@pytest.fixture(scope="module")
def recording() -> Recording:
    return Recording.open(CITY, None, CAMERAS)


def test_every_set_has_the_states_that_the_vla_reads(recording):
    samples = planning_samples(recording, 4, 0.5, limit=20)
    assert len(samples) == 20
    assert [len(sample.history.states) for sample in samples[:5]] == [1, 2, 3, 4, 5]
    assert all(sample.history.now.stamp_ns == sample.frames.t0_ns for sample in samples)
    assert all(sample.frames.cameras == CAMERAS for sample in samples)
    assert {sample.command for sample in samples} - {Command.NONE}


def test_fewer_sets_are_spread_over_the_bag(recording):
    every = [sample.frames.t0_ns for sample in planning_samples(recording, 0, 0.5, limit=20)]
    assert [sample.frames.t0_ns for sample in planning_samples(recording, 0, 0.5, limit=5)] == every[::4]


def test_without_a_command_topic_no_command_is_known(recording):
    without = replace(recording, topics=replace(recording.topics, command=None))
    assert {sample.command for sample in planning_samples(without, 0, 0.5, limit=20)} == {Command.NONE}
    assert list(recording.bag.messages([])) == []


def test_a_set_has_the_command_that_is_known_when_it_is_complete(recording):
    """The sample's commands are stamped 1 ns after the first image of their set, and before the last."""
    words = recording.bag.messages([recording.topics.command])
    store = get_typestore(Stores.ROS2_JAZZY)
    given = [store.deserialize_cdr(each.raw, COMMAND_TYPE).data for each in words]
    assert [sample.command.value for sample in planning_samples(recording, 0, 0.5, limit=20)] == given
    assert len(set(given)) > 1
