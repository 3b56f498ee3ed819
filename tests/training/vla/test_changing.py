"""Batches with a fixed share of keyframes whose plan is not constant velocity."""

from __future__ import annotations

import numpy as np
import pytest

from fastdrive_node.errors import InputError
from fastdrive_training.vla.changing import SharedBatches, changes

TIMES_S = 0.5 * np.arange(1, 7)


def _plan(speed: float, accel: float = 0.0, left: float = 0.0) -> np.ndarray:
    return np.stack([speed * TIMES_S + accel * TIMES_S**2 / 2, left * TIMES_S**2 / 9], 1)


def test_braking_starting_and_turning_are_changes_and_keeping_the_speed_is_none() -> None:
    plans = {
        "keeps": (_plan(8.0), 8.0, False),
        "stands": (_plan(0.0), 0.0, False),
        "slightly": (_plan(8.0, 0.8), 8.0, False),
        "brakes": (_plan(8.0, -1.0), 8.0, True),
        "starts": (_plan(0.0, 1.0), 0.0, True),
        "turns": (_plan(8.0, 0.0, 5.0), 8.0, True),
    }
    futures, speeds, expected = zip(*plans.values(), strict=True)
    assert changes(np.stack(futures), np.array(speeds), 0.5).tolist() == list(expected)


def test_each_batch_has_its_share_and_an_epoch_shows_each_sample_once() -> None:
    changing = np.arange(40) % 5 == 0  # eight of forty
    batches = SharedBatches(changing, 0.5, 4, seed=3, source="d")
    steps = [batches.indices(step) for step in range(16)]
    assert all(changing[step].sum() == 2 for step in steps)
    drawn = np.concatenate(steps)
    assert np.bincount(drawn[~changing[drawn]], minlength=40).tolist() == np.where(changing, 0, 1).tolist()
    assert np.bincount(drawn[changing[drawn]], minlength=40).tolist() == np.where(changing, 4, 0).tolist()
    first, second = (np.concatenate(steps[part])[:2] for part in (slice(0, 4), slice(4, 8)))
    assert not np.array_equal(first, second)  # epochs have orders of their own


def test_a_batch_follows_from_seed_and_step() -> None:
    changing = np.arange(40) % 3 == 0
    once, again, other = (SharedBatches(changing, 0.5, 8, seed, "d").indices(7) for seed in (1, 1, 2))
    assert np.array_equal(once, again)
    assert not np.array_equal(once, other)


@pytest.mark.parametrize(
    ("changing", "share", "text"),
    [
        (np.zeros(5, bool), 0.5, "data/x: changing: 0.5, but no plan of the dataset changes speed or direction"),
        (np.ones(5, bool), 0.5, "data/x: changing: 0.5, but no plan of the dataset keeps its speed"),
    ],
)
def test_a_share_of_what_the_dataset_does_not_have_is_refused(changing, share, text) -> None:
    with pytest.raises(InputError, match=text):
        SharedBatches(changing, share, 4, 0, "data/x")


def test_a_part_that_is_not_asked_for_may_be_missing() -> None:
    assert SharedBatches(np.ones(5, bool), 1.0, 5, 0, "d").indices(0).tolist() != []
