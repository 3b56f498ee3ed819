"""Ranking figures."""

from __future__ import annotations

import numpy as np

from fastdrive_training.scoring.token_metrics import ranking, recall_at_keep


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
