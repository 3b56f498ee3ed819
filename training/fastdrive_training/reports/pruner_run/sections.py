"""The charts of a page, from the log."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from fastdrive_training.reports.charts import Chart, Line, positive
from fastdrive_training.reports.pruner_run.findings import column, first_joint_step, loss_keys
from fastdrive_training.reports.pruner_run.run_folder import PrecisionRecallCurve, RunFolder, number
from fastdrive_training.scoring.token_metrics import KEEP_RATIOS

INK, FORE, BACK = 2, 1, 0  # series: the same colors for the same things on all charts


def loss_charts(run: RunFolder) -> list[Chart]:
    """Total, both branches and their terms, over both phases."""
    specs = (
        ("Loss", "loss", (("total", "total", INK), ("fore", "foreground", FORE), ("back", "background", BACK))),
        ("Mean squared error", "MSE", (("mse_fore", "foreground", FORE), ("mse_back", "background", BACK))),
        ("Structural similarity", "SSIM", (("ssim_fore", "foreground", FORE), ("ssim_back", "background", BACK))),
    )
    found, until = [(title, label, _lines(run, keys)) for title, label, keys in specs], _warmup_end(run)
    return _filled(
        Chart(title, lines, label, log_y=label != "SSIM" and positive(lines), until=until)
        for title, label, lines in found
    )


def health_charts(run: RunFolder) -> list[Chart]:
    """The fraction of tokens above zero beside the foreground's, the scores' scale, the pruner's gradient."""
    keys = (("positive_share", "tokens above zero", FORE), ("foreground_share", "foreground pixels", BACK))
    summary = "In health both stay near each other; at 0 % or 100 % the adversary has collapsed."
    fractions = {"y_label": "fraction", "summary": summary, "percent": True, "from_zero": True}
    scale = _lines(run, (("score_mean", "mean", INK), ("score_std", "standard deviation", BACK)))
    gradient = _lines(run, (("gradient", "norm", FORE),))
    return _filled(
        [
            Chart("Fraction of tokens above zero", _lines(run, keys), **fractions),
            Chart("Scores", scale, "score"),
            Chart("Gradient of the pruner", gradient, "norm", log_y=positive(gradient)),
        ]
    )


def ranking_charts(run: RunFolder) -> list[Chart]:
    """Held-out figures by step, and precision against recall at the last evaluation."""
    ranking = _lines(run, (("auroc", "AUROC", FORE), ("average_precision", "average precision", BACK)), points=True)
    recall = tuple(_recall_line(run, ratio, series) for series, ratio in enumerate(KEEP_RATIOS))
    charts = [Chart("Held-out ranking of the tokens", ranking, "figure")]
    charts = _filled([*charts, Chart("Recall by keep ratio", recall, "recall", percent=True)])
    if run.curve is not None and run.curve.recall:
        charts.append(_precision_recall(run, run.curve))
    return charts


def speed_charts(run: RunFolder) -> list[Chart]:
    lines = _lines(run, (("images_per_s", "images/s", BACK),))
    return _filled([Chart("Camera images a second", lines, "images/s")])


def other_charts(run: RunFolder) -> list[Chart]:
    """One chart for each number of a log whose keys are not known here."""
    charts = []
    for key in loss_keys(run):
        lines = _lines(run, ((key, key[:40], INK),))
        charts.append(Chart(key[:60], lines, key[:40], log_y=positive(lines)))
    return charts


def _filled(charts: Iterable[Chart]) -> list[Chart]:
    """Those with a value."""
    return [chart for chart in charts if any(len(line.x) for line in chart.lines)]


def last_evaluation(run: RunFolder) -> dict:
    """The last entry of the log that has held-out figures; {} where there is none."""
    return next((entry for entry in reversed(run.log) if number(entry.get("auroc")) is not None), {})


def _lines(run: RunFolder, keys: Sequence[tuple[str, str, int]], points: bool = False) -> tuple[Line, ...]:
    found = ((name, series, column(run.log, key)) for key, name, series in keys)
    return tuple(
        Line(name, part.steps, part.values, series, noisy=not points, points=points)
        for name, series, part in found
        if len(part)
    )


def _warmup_end(run: RunFolder) -> float | None:
    """Where the warm-up ends, its last logged step so far where it has not; None for a run without one."""
    steps = [entry["step"] for entry in run.log if entry.get("phase") == "warmup"]
    return float(max(first_joint_step(run), steps[-1])) if steps else None


def _recall_line(run: RunFolder, ratio: float, series: int) -> Line:
    pairs = []
    for entry in run.log:
        recall = entry.get("recall")
        value = number(recall.get(f"{ratio:g}")) if isinstance(recall, dict) else None
        if value is not None:
            pairs.append((entry["step"], value))
    x, y = np.array(pairs, np.float64).reshape(-1, 2).T
    return Line(f"keep {ratio:g}", x, y, series, points=True)


def _precision_recall(run: RunFolder, curve: PrecisionRecallCurve) -> Chart:
    order = np.argsort(curve.recall, kind="stable")
    recall, precision = np.array(curve.recall)[order], np.array(curve.precision)[order]
    lines = [Line("scores", recall, precision, BACK)]
    kept = _kept_points(run, curve)
    if kept:
        x, y = np.array(kept).T
        lines.append(Line("kept at 0.25, 0.5, 0.75", x, y, FORE, points=True, joined=False))
    level = (
        None if curve.positive_fraction is None else (curve.positive_fraction, f"random: {curve.positive_fraction:.1%}")
    )
    summary = "Precision against recall of held-out tokens, foreground where half of the cell is covered."
    return Chart(
        "Precision and recall of the scores",
        tuple(lines),
        "precision",
        "recall",
        summary,
        percent=True,
        unit_x=True,
        level=level,
    )


def _kept_points(run: RunFolder, curve: PrecisionRecallCurve) -> list[tuple[float, float]]:
    """(recall, precision) of keeping a fraction of each keyframe's tokens, where the log and the curve tell."""
    entry, fraction = last_evaluation(run), curve.positive_fraction
    recall = entry.get("recall")
    if not isinstance(recall, dict) or fraction is None or curve.step not in (None, entry["step"]):
        return []
    found = [(number(recall.get(f"{ratio:g}")), ratio) for ratio in sorted(KEEP_RATIOS)]
    return [(value, value * fraction / ratio) for value, ratio in found if value is not None]
