"""Planning and ranking figures, the L2 ones against public evaluators' own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fastdrive_training.metrics import l2_at_t, l2_avg_to_t, ranking, recall_at_keep, step_errors

VECTORS = Path(__file__).parents[3] / "shared" / "data" / "open_loop_metric_vectors.json"


def _scenarios() -> list[dict]:
    return json.loads(VECTORS.read_text())["scenarios"]


@pytest.mark.skipif(not VECTORS.exists(), reason="the metric vectors (../shared/data) are not on this machine")
def test_l2_equals_the_public_evaluators_figures():
    scenarios = _scenarios()
    assert scenarios
    for scenario in scenarios:
        errors = step_errors([scenario["pred_xy_fwd_left"]], [scenario["gt_xy_fwd_left"]])
        avg, at = l2_avg_to_t(errors), l2_at_t(errors)
        for name, number in (("1s", 0), ("2s", 1), ("3s", 2)):
            assert avg[name] == pytest.approx(scenario["results"]["VAD_avg_to_t"][name]["L2"], abs=2e-6)
            assert avg[name] == pytest.approx(scenario["results"]["STP3_avg_to_t"][name]["L2"], abs=2e-6)
            reported = scenario["results"]["UniAD_at_t"]["reported_L2_1s_2s_3s"][number]
            assert at[name] == pytest.approx(reported, abs=2e-6)
        assert avg["avg"] == pytest.approx(scenario["results"]["SparseDrive_ImpromptuVLA"]["L2_avg"], abs=2e-6)


def test_l2_conventions_differ_as_defined():
    errors = np.array([[1.0, 2, 3, 4, 5, 6], [3.0, 4, 5, 6, 7, 8]])
    assert l2_avg_to_t(errors) == pytest.approx({"1s": 2.5, "2s": 3.5, "3s": 4.5, "avg": 3.5})
    assert l2_at_t(errors) == pytest.approx({"1s": 3.0, "2s": 5.0, "3s": 7.0, "avg": 5.0})


def test_recall_counts_positives_kept_over_all_cameras_of_a_keyframe():
    scores = np.array([[0.9, 0.8, 0.1, 0.2], [0.1, 0.2, 0.3, 0.4]])
    positive = np.array([[True, False, True, False], [True, False, False, True]])
    assert recall_at_keep(scores, positive) == {"0.75": 0.5, "0.5": 0.5, "0.25": 0.5}
    assert recall_at_keep(scores, positive, [1.0]) == {"1": 1.0}
    assert recall_at_keep(np.full((1, 4), 1.0), np.array([[True, False, False, True]]), [0.5]) == {"0.5": 0.5}
    assert recall_at_keep(scores, np.zeros((2, 4), bool)) == {}


def test_kept_count_is_rounded_down():
    assert recall_at_keep(np.array([[3.0, 2, 1]]), np.array([[True, True, False]]), [0.5]) == {"0.5": 0.5}


def test_ranking_is_undefined_with_one_class():
    assert ranking(np.arange(4.0), np.array([False, False, True, True])) == {"auroc": 1.0, "average_precision": 1.0}
    assert ranking(np.arange(4.0), np.ones(4, bool)) == {"auroc": None, "average_precision": None}
