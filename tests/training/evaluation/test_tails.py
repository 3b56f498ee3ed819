"""Tails of a row against none: how few samples hold the loss, how bad the worst are, and which they are."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from fastdrive_training.evaluation.records import SCHEMA
from fastdrive_training.evaluation.tails import (
    FIGURES,
    largest,
    tail_figures,
    worst5_l2,
    worst_collisions,
    worst_losses,
)

SAMPLES = 40


def table(errors, hit_from=None) -> pa.Table:
    """A line for each sample: its error at every step (None: refused), and the step from which it hits a vehicle."""
    hit_from = hit_from or {}
    lines = []
    for place, error in enumerate(errors):
        hits = [step >= hit_from.get(place, 6) for step in range(6)]
        known = error is not None
        lines.append(
            {
                "sample": f"sample-{place}",
                "scene": "scene",
                "refused": not known,
                "errors_m": [error] * 6 if known else None,
                "raster_collision": hits if known else None,
            }
        )
    return pa.Table.from_pylist(lines, SCHEMA)


def test_few_samples_that_hold_the_loss_are_counted():
    whole, losses = table([1.0] * SAMPLES), np.zeros(SAMPLES)
    losses[[7, 30, 12, 3]] = 6.0, 3.0, 0.9, 0.1  # 90 % of 10 m are in the first two
    losses[20] = -5.0  # a gain takes nothing off
    found = tail_figures(whole, table(1.0 + losses))
    assert found["loss_90_samples"] == pytest.approx(2 / SAMPLES)
    assert found["worst5_loss"] == pytest.approx((6 + 3) / 2)
    assert worst_losses(whole, table(1.0 + losses)).tolist() == [7, 30]


def test_samples_that_one_refused_are_in_no_tail():
    errors = [1.0] * SAMPLES
    refusing, losing = list(errors), list(errors)
    refusing[5], losing[5], losing[9] = None, 9.0, 2.0
    assert worst_losses(table(refusing), table(losing)).tolist() == [9]
    assert tail_figures(table(refusing), table(losing))["loss_90_samples"] == pytest.approx(1 / (SAMPLES - 1))
    nothing = table([None] * SAMPLES)
    assert tail_figures(nothing, table(errors)) == dict.fromkeys(FIGURES)
    assert worst5_l2(nothing) is None


def test_a_row_that_loses_nothing_has_no_worst_samples():
    whole, better = table([1.0] * SAMPLES), table([0.5] * SAMPLES)
    assert not len(worst_losses(whole, better)) and not len(worst_collisions(whole, better))
    found = tail_figures(whole, better)
    assert found["loss_90_samples"] is None and found["worst5_loss"] == pytest.approx(-0.5)


def test_new_collisions_are_listed_the_earliest_first():
    whole = table([1.0] * SAMPLES, {3: 0, 20: 4})
    pruned = table([1.0] * SAMPLES, {3: 0, 8: 5, 11: 1})
    found = tail_figures(whole, pruned)
    assert (found["new_collisions"], found["gone_collisions"]) == (2 / SAMPLES, 1 / SAMPLES)
    assert worst_collisions(whole, pruned).tolist() == [11, 8]


def test_the_worst_of_a_row_are_a_twentieth_rounded_up():
    values = np.array([np.nan, *range(21)], float)
    assert largest(values).tolist() == [21, 20]
    assert worst5_l2(table([0.5] * 38 + [2.0, 4.0])) == pytest.approx(3.0)
