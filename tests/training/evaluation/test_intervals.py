"""Bootstrap intervals: what is drawn, what is paired, what is left out."""

from __future__ import annotations

import numpy as np
import pytest

from fastdrive_training.evaluation.answers import JudgedAnswer
from fastdrive_training.evaluation.intervals import (
    interval,
    known_mean,
    paired_difference,
    relative_performance,
    sample_figures,
)
from fastdrive_training.evaluation.metrics.judge import Judgement
from fastdrive_training.evaluation.records import to_table
from fastdrive_training.evaluation.run import comparisons
from fastdrive_training.evaluation.settings import RowKey

ALONE = [f"scene-{number}" for number in range(400)]


def test_interval_is_as_wide_as_the_mean_is_uncertain():
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    low, high = interval(values, ALONE)
    standard_error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * standard_error, abs=0.2 * standard_error)
    assert high == pytest.approx(values.mean() + 1.96 * standard_error, abs=0.2 * standard_error)
    assert interval(values, ALONE) == (low, high)  # the same every time


def test_samples_of_one_scene_are_drawn_together():
    by_scene = np.repeat(np.random.default_rng(2).normal(0, 1, 40), 10)
    together = [f"scene-{number // 10}" for number in range(400)]
    wide, narrow = interval(by_scene, together), interval(by_scene, ALONE)
    assert 2.5 < (wide[1] - wide[0]) / (narrow[1] - narrow[0]) < 4  # the root of ten
    few = [f"scene-{number // 100}" for number in range(400)]
    assert interval(by_scene, few) == pytest.approx(narrow, rel=0.1)  # of four scenes nothing can be said


def test_pairing_takes_off_what_both_share():
    hard = np.random.default_rng(3).normal(10, 5, 400)
    better = hard - 0.2 + np.random.default_rng(4).normal(0, 0.1, 400)
    result = paired_difference(hard, better, ALONE)
    assert result.difference == pytest.approx(0.2, abs=0.02)
    assert 0.17 < result.interval[0] < result.interval[1] < 0.23 and result.samples == 400


def test_refused_samples_are_left_out_of_both_sides():
    first, second = np.array([1.0, np.nan, 3.0, 5.0]), np.array([np.nan, 2.0, 1.0, 4.0])
    result = paired_difference(first, second, ALONE[:4])
    assert result.samples == 2 and result.difference == pytest.approx(1.5)
    assert paired_difference(first, np.full(4, np.nan), ALONE[:4]) is None
    assert interval(np.array([np.nan, 1.0]), ALONE[:2]) is None


def test_seeds_are_averaged_over_those_that_answered():
    found = known_mean([np.array([1.0, np.nan, np.nan]), np.array([3.0, 4.0, np.nan])])
    np.testing.assert_array_equal(found, [2.0, 4.0, np.nan])


def _answers(error: float, collides: bool, refused: int = 0) -> list[JudgedAnswer]:
    steps = np.array([False] * 4 + [collides] * 2)
    judged = Judgement(np.full(6, error), steps, steps, None, None)
    return [
        JudgedAnswer(f"sample-{number}", f"scene-{number}", "", None, "reason", None, None)
        if number < refused
        else JudgedAnswer(f"sample-{number}", f"scene-{number}", "", np.zeros((6, 2)), None, judged, np.arange(3))
        for number in range(12)
    ]


def test_a_samples_figure_is_the_mean_of_its_horizons():
    table = to_table(RowKey("none", 0.0), _answers(2.0, True, refused=1))
    assert sample_figures(table, "l2_avg_to_t")[1:] == pytest.approx(2.0)
    assert sample_figures(table, "collision_polygon")[1:] == pytest.approx((0 + 0 + 2 / 6) / 3)
    assert sample_figures(table, "off_drivable")[1:] == pytest.approx(1 / 3)
    assert np.isnan(sample_figures(table, "l2_avg_to_t")[0])
    assert np.isnan(sample_figures(table, "intersection")).all()


def test_relative_performance_is_that_of_the_samples_that_both_answered():
    whole = to_table(RowKey("none", 0.0), _answers(1.0, False, refused=2))
    pruned = to_table(RowKey("random", 0.5), _answers(1.25, True, refused=1))
    values = [sample_figures(table, "l2_avg_to_t") for table in (whole, pruned)]
    assert relative_performance(*values) == pytest.approx(0.8)
    values[1][5:] = 4.0
    assert relative_performance(*values) == pytest.approx(10 / (3 * 1.25 + 7 * 4))
    hits = [sample_figures(table, "collision_polygon") for table in (whole, pruned)]
    assert relative_performance(*hits) == 0 and relative_performance(*reversed(hits)) is None


def test_each_pruner_is_compared_with_reconpruner_at_its_ratio():
    keys = {
        RowKey("none", 0.0): 1.0,
        RowKey("random", 0.5, 0): 3.0,
        RowKey("random", 0.5, 1): 5.0,
        RowKey("reconpruner", 0.5): 1.5,
        RowKey("random", 0.75): 6.0,
    }
    tables = {key: to_table(key, _answers(error, False)) for key, error in keys.items()}
    found = [entry for entry in comparisons(tables) if entry["figure"] == "l2_avg_to_t"]
    assert [(entry["drop"], entry["pruner"], entry["against"], entry["difference"]) for entry in found] == [
        (0.5, "none", "reconpruner", pytest.approx(-0.5)),
        (0.5, "random", "reconpruner", pytest.approx(2.5)),
    ]
    without = {key: table for key, table in tables.items() if key.pruner != "reconpruner"}
    assert {(entry["pruner"], entry["against"], entry["drop"]) for entry in comparisons(without)} == {
        ("random", "none", 0.5),
        ("random", "none", 0.75),
    }
