"""The verdict on a run from its log: a collapse is seen, however the run's own check was set."""

from __future__ import annotations

import numpy as np
import pytest

from fastdrive_training.reports.charts import Chart, Line, binned, describe, draw, smooth
from fastdrive_training.reports.pruner_run.findings import Level, column, judge, planned_steps, strict_limits
from fastdrive_training.reports.pruner_run.run_folder import RunFolder
from fastdrive_training.reports.pruner_run.sections import health_charts, loss_charts
from tests.training.reports.run_folders import EVERY, RECIPE, STEPS, WARMUP, language_log, pruner_log


def run_of(tmp_path, log, recipe=None, figures=None) -> RunFolder:
    return RunFolder(tmp_path, tuple(log), recipe=RECIPE if recipe is None else recipe, figures=figures)


def texts(verdict, level) -> str:
    return " ".join(finding.text for finding in verdict.findings if finding.level is level)


def test_a_healthy_run_is_healthy(tmp_path):
    verdict = judge(run_of(tmp_path, pruner_log()))
    assert (verdict.level, verdict.text) == (Level.GOOD, "Healthy")
    good = texts(verdict, Level.GOOD)
    assert "finished: 1,100 steps" in good and "20.0% of the tokens are above zero where 19.0%" in good
    assert "AUROC of the scores against mask coverage: 0.970" in good


@pytest.mark.parametrize(("end", "side"), [(0.0, "background"), (1.0, "foreground")])
def test_a_collapse_is_told_with_its_side_and_step(tmp_path, end, side):
    log = pruner_log(lambda done: 0.2 if done < 0.5 else end)
    verdict = judge(run_of(tmp_path, log))
    assert (verdict.level, verdict.text) == (Level.BAD, "Collapsed: no result")
    bad = texts(verdict, Level.BAD)
    assert f"all is {side}, since step {WARMUP + STEPS // 2 - 1}" in bad and "no result" in bad


def test_a_run_that_its_check_stopped_is_collapsed(tmp_path):
    stopped = WARMUP + 520  # out of bounds for the patience of 300 steps, between two lines of the log
    log = pruner_log(lambda done: 0.2 if done <= 0.22 else 0.001, stop=stopped)
    verdict = judge(run_of(tmp_path, log))
    assert verdict.text == "Collapsed: no result" and "not finished" in texts(verdict, Level.WATCH)


@pytest.mark.parametrize(
    "health",
    [{"patience_steps": 10**9, "grace_steps": 10**9}, {"min_positive_share": 0.0, "max_positive_share": 1.0}, None, 7],
)
def test_a_run_cannot_switch_the_reports_check_off(tmp_path, health):
    log = pruner_log(lambda done: 0.9999)
    assert judge(run_of(tmp_path, log, {**RECIPE, "health": health})).text == "Collapsed: no result"


def test_stricter_limits_of_a_recipe_are_kept(tmp_path):
    run = run_of(
        tmp_path, pruner_log(), {"health": {"min_positive_share": 0.3, "patience_steps": 10, "min_auroc": 0.99}}
    )
    limits = strict_limits(run)
    assert (limits.min_positive_share, limits.patience_steps, limits.max_positive_share) == (0.3, 10, 0.995)
    assert "near random" in texts(judge(run), Level.BAD)


def test_a_short_excursion_at_the_end_is_the_edge_and_one_before_is_nothing(tmp_path):
    edge = judge(run_of(tmp_path, pruner_log(lambda done: 0.2 if done < 0.95 else 0.0)))
    assert "On the edge of a collapse" in texts(edge, Level.WATCH) and edge.level is Level.WATCH
    past = judge(run_of(tmp_path, pruner_log(lambda done: 0.0 if 0.3 < done < 0.4 else 0.2)))
    assert past.text == "Healthy"


def test_what_the_runs_own_check_recorded_is_told(tmp_path):
    figures = {"collapsed": {"step": 700, "reason": "the pruner's\ngradient is 0"}}
    verdict = judge(run_of(tmp_path, pruner_log(), figures=figures))
    assert verdict.text == "Collapsed: no result"
    assert "own check at joint step 700: the pruner's gradient is 0" in texts(verdict, Level.BAD)


@pytest.mark.parametrize(
    ("figures", "level", "expected"),
    [
        ({"gradient": 0.0}, Level.BAD, "do not learn any more"),
        ({"score_mean": -1e10}, Level.BAD, "ran away"),
        ({"score_std": 1e-6}, Level.WATCH, "hardly differ"),
        ({"auroc": 0.51}, Level.BAD, "near random"),
        ({"auroc": 0.8}, Level.WATCH, "coverage: 0.800"),
        ({"foreground_share": 0.01}, Level.WATCH, "20.0% of the tokens are above zero where 1.0%"),
    ],
)
def test_health_figures_out_of_bounds_are_reported(tmp_path, figures, level, expected):
    verdict = judge(run_of(tmp_path, pruner_log(**figures)))
    assert verdict.level is level and expected in texts(verdict, level)


def test_swings_and_a_falling_auroc_are_told(tmp_path):
    log = pruner_log(lambda done: 0.05 if round(done * STEPS / EVERY) % 2 else 0.95)
    assert "swung by 90%" in texts(judge(run_of(tmp_path, log)), Level.WATCH)
    log = pruner_log()
    log[-1]["auroc"] = 0.92
    assert "The best AUROC, 0.970, was at step 599" in texts(judge(run_of(tmp_path, log)), Level.WATCH)


def test_a_decoder_that_is_not_ready_is_told(tmp_path):
    log = [{**entry, "total": 0.3} if entry["phase"] == "warmup" else entry for entry in pruner_log()]
    assert "not ready" in texts(judge(run_of(tmp_path, log)), Level.WATCH)


@pytest.mark.parametrize("stop", [WARMUP, WARMUP + 80])
def test_nothing_is_judged_before_the_grace_is_over(tmp_path, stop):
    verdict = judge(run_of(tmp_path, pruner_log(lambda done: 0.0, stop=stop)))
    assert (verdict.level, verdict.text) == (Level.WATCH, "Not judged")


def test_comparisons_and_ablations_are_named(tmp_path):
    figures = ("positive_share", "score_mean", "score_std", "gradient", "auroc")
    log = [{key: value for key, value in entry.items() if key not in figures} for entry in pruner_log()]
    verdict = judge(run_of(tmp_path, log, {**RECIPE, "mask": "oracle"}))
    assert verdict.text == "A comparison, without a pruner" and "masks are oracle" in texts(verdict, Level.GOOD)
    verdict = judge(run_of(tmp_path, pruner_log(), {**RECIPE, "loss": {"adversary": False}}))
    assert "There is no adversary" in texts(verdict, Level.WATCH)


def test_other_runs_are_judged_by_their_losses(tmp_path):
    verdict = judge(run_of(tmp_path, language_log(), {}))
    assert verdict.text == "Losses only" and "text went from" in texts(verdict, Level.GOOD)
    rising = [{"step": step, "loss": float(step)} for step in range(1, 40)]
    assert "loss went from" in texts(judge(run_of(tmp_path, rising, {})), Level.WATCH)
    assert planned_steps(run_of(tmp_path, rising, {"steps": 100})) == 100


def test_a_column_holds_the_numbers_alone(tmp_path):
    values = (1, 2.5, None, "3", True, float("nan"), float("inf"), 10**400, [4])
    log = [{"step": step, "x": value} for step, value in enumerate(values)]
    found = column(tuple(log), "x")
    assert found.steps.tolist() == [0, 1] and found.values.tolist() == [1.0, 2.5]
    assert len(column((), "x")) == 0


def test_long_logs_are_averaged_in_bins():
    x, y = binned(np.arange(10_000), np.arange(10_000) * 2.0, most=100)
    assert len(x) == 100 and x[0] == 49.5 and y[-1] == 2 * 9949.5
    assert binned(np.arange(3), np.arange(3))[0].tolist() == [0, 1, 2]
    assert smooth(np.array([0.0, 3.0, 6.0]), 3).tolist() == [1.5, 3.0, 4.5]


def test_a_chart_is_told_in_words():
    line = Line("loss", np.array([1, 2000]), np.array([0.5, 0.25]))
    assert describe(Chart("Loss", (line,), "loss", summary="Falls.")) == "Falls. loss: 0.5 at 1, 0.25 at 2000."
    fraction = Chart("Fraction", (line,), "fraction", percent=True)
    assert describe(fraction) == "loss: 50.0% at 1, 25.0% at 2000."


def test_the_warm_up_is_marked_where_it_was(tmp_path):
    run = run_of(tmp_path, pruner_log())
    assert [chart.until for chart in loss_charts(run)] == [WARMUP] * 3
    unknown = run_of(tmp_path, pruner_log(), {})
    assert loss_charts(unknown)[0].until == WARMUP + EVERY - 1  # the first joint step that is logged
    only = run_of(tmp_path, pruner_log(stop=WARMUP))
    assert loss_charts(only)[0].until == WARMUP - 1 and health_charts(only) == []


def test_text_that_svg_cannot_hold_is_drawn_without_it():
    lines = tuple(Line(f"a\x00\ud800<b>{place}", np.arange(3), np.arange(3.0)) for place in range(2))
    svg = draw(Chart("t\x1b\u202e", lines, "y\x07$", summary="s\x01"), "chart-1")
    assert not {"\x00", "\ud800", "\x1b", "\u202e", "\x07", "\x01"} & set(svg)
    assert "&lt;b&gt;" in svg and "<b>" not in svg and 'id="chart-1-title"' in svg
