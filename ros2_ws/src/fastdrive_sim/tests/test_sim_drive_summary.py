"""Figures over runs: rows, intervals, comparisons of rows and the worst runs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from sim_runs import ego, hit, make_run, parked, steady

from fastdrive_sim.drive.scoring.scores import score_run
from fastdrive_sim.drive.scoring.statistics import interval, paired_difference, worst
from fastdrive_sim.drive.summary import ScoredRun, summarize
from fastdrive_sim.drive.types import DriveRow

CALM = score_run(make_run(steady(20.0)))
CRASHED = score_run(make_run(steady(2.0), collisions=(hit(parked(7.0), ego(4.0)),)))
FIGURES = [
    "collision_rate", "neuroncap", "epdms_style", "hd_score", "route_completion", "off_road_rate", "red_light_rate",
    "comfort", "refused", "late", "superseded",
]  # fmt: skip


def runs(row: DriveRow, values: list[float], families: tuple[str, ...] = ("a", "b")) -> list[ScoredRun]:
    """A run for each value of the EPDMS-style score, families in turn; 0 is a collision."""
    return [
        ScoredRun(
            row, families[i % len(families)], i // len(families), "completed", "", 20.0,
            replace(CALM if value else CRASHED, epdms_style=value),
        )
        for i, value in enumerate(values)
    ]  # fmt: skip


# intervals


def bounds(values: np.ndarray, families: list[str]) -> tuple[float, float]:
    found = interval(values, families)
    assert found is not None
    return found


def test_an_interval_is_that_of_a_mean():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    low, high = bounds(values, ["a"] * 400)
    assert (low, high) == pytest.approx((values.mean() - 0.196, values.mean() + 0.196), abs=0.03)


def test_families_are_not_drawn():
    values, families = np.array([1.0] * 10 + [3.0] * 10), ["a"] * 10 + ["b"] * 10
    assert interval(values, families) == (2.0, 2.0)
    low, high = bounds(values, ["a"] * 20)
    assert low < 1.7 and high > 2.3


def test_with_one_seed_a_family_all_runs_are_drawn():
    low, high = bounds(np.array([0.0, 1.0, 2.0, 3.0]), ["a", "b", "c", "d"])
    assert low < 1.0 and high > 2.0


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_rate_without_exception_has_the_exact_interval(value):
    bound = 0.025 ** (1 / 20)  # (1 - p)^20 = 0.025
    expected = (0.0, 1 - bound) if value == 0 else (bound, 1.0)
    assert interval(np.full(20, value), ["a"] * 20) == pytest.approx(expected)


def test_what_is_not_known_is_left_out():
    assert interval(np.array([2.0, np.nan, 2.0]), ["a"] * 3) == (2.0, 2.0)
    assert interval(np.array([2.0, np.nan]), ["a"] * 2) is None


def test_a_paired_difference_does_not_have_the_spread_of_the_scenarios():
    scenario = np.random.default_rng(2).normal(0.0, 10.0, 60)
    found = paired_difference(scenario - 1.0, scenario + np.tile([0.1, -0.1], 30), ["a", "b"] * 30)
    assert found is not None and found.ci95 is not None
    assert found.difference == pytest.approx(-1.0)
    assert -1.06 < found.ci95[0] < found.ci95[1] < -0.94
    low, high = bounds(scenario - 1.0, ["a", "b"] * 30)
    assert high - low > 3.0


def test_the_worst_5_percent_are_at_least_one_and_rounded_up():
    assert worst(np.array([3.0, 1.0, 2.0])).tolist() == [1]
    assert worst(np.arange(40.0)[::-1]).tolist() == [39, 38]
    assert len(worst(np.arange(41.0))) == 3


# summary


def test_a_row_has_the_figures_of_the_contract_each_with_its_interval():
    found = summarize(runs(DriveRow("reconpruner", 0.5), [1.0, 0.0, 0.5, 0.9]))
    (row,) = found["rows"]
    assert (row["pruner"], row["drop"], row["fault"], row["runs"]) == ("reconpruner", 0.5, None, 4)
    assert row["collision_rate"] == 0.25
    assert row["epdms_style"] == pytest.approx(0.6)
    assert row["neuroncap"] == pytest.approx((3 * 5 + 0) / 4)
    for figure in FIGURES:
        low, high = row["ci95"][figure]
        assert low <= row[figure] <= high, figure
    json.dumps(found, allow_nan=False)


def failed(run: ScoredRun, ticks: int = 4) -> ScoredRun:
    """The run as one that failed: it was refused until then, and has no collision."""
    scores = replace(
        CALM, failed=True, epdms_style=0.0, neuroncap=0.0, hd_score=0.0, ticks=ticks, refused=1.0 * (ticks > 0)
    )
    return replace(run, ending="failed", reason="no plan", scores=scores)


def test_runs_that_failed_are_counted_and_are_in_no_rate():
    driven = runs(DriveRow("none"), [1.0, 0.0, 0.5, 0.9])
    (row,) = summarize(driven)["rows"]
    assert (row["runs"], row["failed"], row["comparable"], row["failed_rate"]) == (4, 0, True, 0.0)
    (other,) = summarize([*driven, *map(failed, runs(DriveRow("none"), [1.0] * 8)[4:])])["rows"]
    assert (other["runs"], other["failed"], other["comparable"], other["failed_rate"]) == (8, 4, False, 0.5)
    of_all = {"runs", "failed", "comparable", "failed_rate", "refused", "late", "superseded", "ticks", "ci95"}
    assert {key: row[key] for key in row.keys() - of_all} == {key: other[key] for key in row.keys() - of_all}
    assert {key: row["ci95"][key] for key in row["ci95"].keys() - of_all} == {
        key: other["ci95"][key] for key in other["ci95"].keys() - of_all
    }
    (lost,) = summarize([*driven[2:], failed(driven[0])])["worst"]
    assert (lost["ending"], lost["epdms_style"]) == ("completed", 0.5)


def test_what_became_of_the_ticks_of_a_failed_run_is_known_unless_it_was_not_tried():
    driven = runs(DriveRow("none"), [1.0] * 8)
    (row,) = summarize([*driven[:2], failed(driven[2]), failed(driven[3]), *(failed(run, 0) for run in driven[4:])])[
        "rows"
    ]
    assert row["refused"] == 0.5


def test_a_row_of_runs_that_all_failed_has_no_scores():
    found = summarize([failed(run) for run in runs(DriveRow("none"), [1.0] * 4)])
    (row,) = found["rows"]
    assert [row[name] for name in ("collision_rate", "epdms_style", "worst5_epdms_style", "kept")] == [None] * 4
    assert (row["failed"], row["refused"], row["ci95"]["epdms_style"], found["worst"]) == (4, 1.0, None, [])
    assert {family["collision_rate"] for family in found["families"]} == {None}
    json.dumps(found, allow_nan=False)


def test_pairs_with_a_failed_run_are_left_out_of_a_comparison():
    full, pruned = runs(DriveRow("none"), [1.0] * 8), runs(DriveRow("p", 0.5), [0.9] * 8)
    whole = summarize([*full[:6], *pruned[:6]])["comparisons"][0]
    (found,) = summarize([*full[:7], failed(full[7]), *pruned[:6], failed(pruned[6]), failed(pruned[7])])["comparisons"]
    assert (whole["runs"], whole["failed"], found["runs"], found["failed"]) == (6, 0, 6, 2)
    assert found["differences"].pop("failed_rate")["difference"] == 0.125
    assert found["differences"].items() <= whole["differences"].items()
    assert (found["loss"], found["families"]) == (whole["loss"], whole["families"])


def test_a_failed_run_of_all_tokens_is_no_reference_of_the_worst_runs():
    full, pruned = runs(DriveRow("none"), [0.9] * 4), runs(DriveRow("p", 0.5), [0.9, 0.9, 0.9, 0.0])
    found = [each for each in summarize([*full[:3], failed(full[3]), *pruned])["worst"] if each["row"] == "p@0.5"]
    assert [(each["family"], each["seed"], each["unpruned_epdms_style"]) for each in found] == [("b", 1, None)]


def test_a_fault_is_named_with_its_severity():
    (row,) = summarize(runs(DriveRow("none", fault="frozen", severity=0.5), [1.0]))["rows"]
    assert (row["fault"], row["row"]) == ("frozen:0.5", "none+frozen:0.5")


def test_a_run_has_its_scores_and_events():
    found = summarize([make_run(steady(2.0), collisions=(hit(parked(7.0), ego(4.0)),))])["runs"]
    (run,) = found
    assert (run["family"], run["seed"], run["row"]) == ("made", 0, "none")
    assert (run["nc"], run["epdms_style"], run["collided"]) == (0.0, 0.0, True)
    assert [event["kind"] for event in run["events"]] == ["collision"]
    assert "car, front, 5.0 m/s, at fault" in run["events"][0]["detail"]


def test_rows_are_compared_with_unpruned_with_random_and_with_themselves_without_the_fault():
    pruned, faulted = DriveRow("reconpruner", 0.5), DriveRow("reconpruner", 0.5, "frozen", 0.5)
    rows = [
        DriveRow("expert"),
        DriveRow("none"),
        DriveRow("random", 0.5),
        pruned,
        faulted,
        DriveRow("none", fault="frozen", severity=0.5),
    ]
    found = summarize([run for row in rows for run in runs(row, [1.0] * 4)])["comparisons"]
    pairs = {(each["row"], each["against"]) for each in found}
    assert pairs == {
        ("random@0.5", "none"), ("reconpruner@0.5", "none"), ("reconpruner@0.5", "random@0.5"),
        ("reconpruner@0.5+frozen:0.5", "none+frozen:0.5"), ("reconpruner@0.5+frozen:0.5", "reconpruner@0.5"),
        ("none+frozen:0.5", "none"),
    }  # fmt: skip


def test_a_comparison_pairs_the_scenarios_of_both_rows():
    full, pruned = (
        runs(DriveRow("none"), [1.0, 0.9, 0.8, 0.7]),
        runs(DriveRow("p", 0.5), [0.9, 0.8, 0.7, 0.6, 0.1, 0.1]),
    )
    (found,) = summarize([*full, *pruned])["comparisons"]
    assert found["runs"] == 4
    assert found["differences"]["epdms_style"] == {"difference": -0.1, "ci95": [-0.1, -0.1]}
    assert set(found["families"]) == {"a", "b"}
    assert found["families"]["b"]["epdms_style"]["difference"] == pytest.approx(-0.1)


def test_the_loss_is_told_by_where_it_is():
    full = runs(DriveRow("none"), [1.0] * 40)
    pruned = runs(DriveRow("p", 0.5), [1.0] * 36 + [0.7, 0.4, 0.9, 1.0])
    (found,) = summarize([*full, *pruned])["comparisons"]
    assert found["loss"] == {"share_of_worst5": 0.9, "unharmed": 37 / 40}


def test_the_worst_runs_are_listed_with_what_unpruned_had():
    full = runs(DriveRow("none"), [1.0] * 40)
    pruned = runs(DriveRow("p", 0.5), [1.0] * 37 + [0.4, 0.0, 0.5])
    found = [each for each in summarize([*full, *pruned])["worst"] if each["row"] == "p@0.5"]
    assert [(each["family"], each["seed"], each["epdms_style"]) for each in found] == [("a", 19, 0.0), ("b", 18, 0.4)]
    assert [each["unpruned_epdms_style"] for each in found] == [1.0, 1.0]
    rows = {row["row"]: row for row in summarize([*full, *pruned])["rows"]}
    assert rows["p@0.5"]["worst5_epdms_style"] == pytest.approx(0.2)


def test_the_worst_run_of_a_pruner_is_one_that_lost_and_not_one_that_all_tokens_lose_too():
    full, pruned = (
        runs(DriveRow("none"), [0.0, 1.0, *[0.9] * 18]),
        runs(DriveRow("p", 0.5), [0.0, 0.9, 0.2, *[0.9] * 17]),
    )
    found = {each["row"]: (each["family"], each["seed"]) for each in summarize([*full, *pruned])["worst"]}
    assert found == {"none": full[0].key, "p@0.5": pruned[2].key}
    (alone,) = summarize(pruned)["worst"]
    assert alone["epdms_style"] == 0.0, "without the row of all tokens by the score"


def test_the_order_of_the_runs_does_not_matter():
    every = [*runs(DriveRow("none"), [1.0, 0.9, 0.2, 0.7]), *runs(DriveRow("p", 0.5), [0.5, 0.8, 0.7, 0.6])]
    found = [summarize(order) for order in (every, every[:4][::-1] + every[4:][::-1])]
    assert found[0]["rows"] == found[1]["rows"]
    assert found[0]["comparisons"] == found[1]["comparisons"]
