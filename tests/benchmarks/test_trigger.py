"""The study of a trigger: its signals, what a trigger by them saves, and the prediction from other scenes."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.studies.trigger import (
    PREDICTED,
    judge,
    l2_at,
    motion_signals,
    predicted,
    score_signals,
    study,
    table_of,
    triggered,
)
from fastdrive_node.types import Command, EgoHistory, EgoState
from tests.benchmarks.test_paired_runs import _run

SCENES = [f"s{place // 10}" for place in range(100)]


def test_dropped_scores_are_told() -> None:
    scores = np.log(np.array([4.0, 3.0, 2.0, 1.0]))
    found = score_signals(scores, np.array([0, 1]))
    assert found["dropped part of exp(score)"] == pytest.approx(0.3)
    assert found["dropped log sum of exp(score)"] == pytest.approx(np.log(3))
    assert found["best dropped score"] == pytest.approx(np.log(2))
    even = score_signals(np.zeros(4), np.array([0, 1]))
    assert even["entropy of the scores"] == pytest.approx(np.log(4)) and even["tokens near the limit"] == 1


def test_drafts_of_a_steady_vehicle_agree() -> None:
    def of(accel=0.0, yaw_rate=0.0, speed=10.0):
        states = [EgoState(0, 0.0, 0.0, 0.0, speed, accel, yaw_rate), EgoState(0, 0.0, 0.0, 0.0, 8.0)]
        return motion_signals(EgoHistory(tuple(states)), Command.LEFT)

    assert of()["distance of two drafts"] == 0 and of()["change of speed"] == 2 and of()["command not straight"] == 1
    assert of(yaw_rate=0.3)["distance of two drafts"] > 1 and of(accel=-3.0)["distance of two drafts"] > 3
    assert of(accel=-50.0, speed=1.0)["distance of two drafts"] < 3  # it does not drive backwards


def test_equal_signals_divide_the_rate() -> None:
    assert triggered(np.arange(10.0), 0.3).tolist() == [0] * 7 + [1] * 3
    assert triggered(np.zeros(10), 0.3) == pytest.approx(np.full(10, 0.3))
    some = triggered(np.array([1.0] * 4 + [0.0] * 6), 0.6)
    assert some.sum() == pytest.approx(6) and some[:4] == pytest.approx(1)


def test_a_trigger_gains_what_it_saves_beyond_chance() -> None:
    generator = np.random.default_rng(0)
    loss = np.where(np.arange(100) % 10 == 0, 1.0, 0.0)
    l2 = {"whole": np.ones(100), "pruned": 1 + loss}
    change = loss + 0.01 * generator.random(100)
    change[3] = np.nan
    found = judge(loss, change, l2, SCENES, 0.2)
    assert found["l2"] == pytest.approx(1.0) and found["l2_random"] == pytest.approx(1 + 0.8 * 10 / 99)
    assert found["gain"] == pytest.approx(0.8 * 10 / 99) and found["interval_95"][0] > 0
    blind = judge(generator.random(100), change, l2, SCENES, 0.2)
    assert blind["interval_95"][0] < 0 < blind["interval_95"][1]


def test_the_change_is_predicted_from_other_scenes() -> None:
    generator = np.random.default_rng(1)
    signals = generator.normal(size=(100, 3))
    change = np.exp(signals[:, 1]) - 0.5 * np.exp(-1)
    change[5] = np.nan
    assert np.corrcoef(predicted(signals, change, SCENES), signals[:, 1])[0, 1] > 0.9
    other = change.copy()
    other[:10] = 99.0  # a scene's own changes say nothing of it
    assert predicted(signals, other, SCENES)[:10] == pytest.approx(predicted(signals, change, SCENES)[:10])


def test_l2_at_equal_tokens_lies_between_ratios() -> None:
    means = {1.0: 0.5, 0.5: 0.6, 0.25: 1.0}
    assert l2_at(0.4, means) == pytest.approx(0.76) and l2_at(0.2, means) is None


def test_every_signal_has_its_rows(tmp_path, monkeypatch) -> None:
    errors = {("none", 0.0, 0): [1.0] * 40, ("reconpruner", 0.5, 0): [1.0] * 20 + [3.0] * 20}
    folder = _run(tmp_path / "a", errors, with_plans=True)
    signals = [{"steep": float(place >= 20), "flat": 0.0} for place in range(40)]
    found = study(folder, {0.5: signals})
    assert {one.signal for one in found} == {"steep", "flat", PREDICTED, "change itself"}
    steep = next(one for one in found if (one.signal, one.rate) == ("steep", 0.2))
    assert steep.correlation == pytest.approx(1) and steep.gain == pytest.approx(0.2 * 2 * 0.5)
    assert steep.l2_same_tokens == pytest.approx(2 - 0.2)
    assert "| steep | +1.00; +200.0* |" in table_of(found, 0.2)
