"""The page itself: one self-contained HTML file; the template escapes everything that came from files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdrive_training.reports.charts import Chart, DrawnChart, draw
from fastdrive_training.reports.document import render_template, write_text
from fastdrive_training.reports.pruner_run import sections
from fastdrive_training.reports.pruner_run.findings import column, judge, planned_steps
from fastdrive_training.reports.pruner_run.run_folder import (
    CURVE,
    FIGURES,
    RECIPE,
    SAMPLES,
    RunFolder,
    number,
    read_run,
)
from fastdrive_training.reports.tiles import HEADS, sample_tiles
from fastdrive_training.scoring.pictures import color_stops

TEMPLATE = "page.html.j2"
MISSING = {
    RECIPE: "the resolved recipe, so the planned steps and the health limits of the run are not known",
    SAMPLES: "images of held-out keyframes, so there are no score maps and no reconstructions",
    CURVE: "the precision-recall curve of held-out scores",
    FIGURES: "the final figures, which a run writes at its end",
}
KINDS = {
    "recon_pruner": "Reconstruction that trains a ReconPruner",
    "distil": "Distillation that trains a ReconPruner",
    "vla_tower": "A VLA's vision tower, by dense labels and waypoints",
    "vla_language": "A VLA's language model, on the tokens of a frozen tower",
}
MAX_FIGURES, MAX_TEXT = 200, 200


@dataclass(frozen=True)
class Stat:
    """A figure at the page's head."""

    name: str
    value: str


def write_report(run_folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a training run, by one rename; returns its path.

    Args:
        out: None for ``report.html`` in the run's folder.

    Raises:
        ReportError: the folder is no run's, a file of it is damaged, or the page cannot be written.
    """
    run = read_run(run_folder)
    return write_text(run.path / "report.html" if out is None else Path(out), render(run))


def render(run: RunFolder) -> str:
    """The page as HTML."""
    pruner, samples = run.trains_pruner, run.samples if run.trains_pruner else None
    groups = _charts(run)
    return render_template(
        "fastdrive_training.reports.pruner_run",
        TEMPLATE,
        run=run,
        kind=describe_kind(run),
        pruner=pruner,
        verdict=judge(run),
        stats=_stats(run),
        charts={name: _draw(name, charts) for name, charts in groups.items()},
        samples=sample_tiles(samples, masks=rebuilds_masks(run)) if samples else [],
        rebuilds_masks=rebuilds_masks(run),
        samples_step=samples.step if samples else None,
        heads=HEADS,
        color_stops=color_stops(),
        figures=flatten(run.figures or sections.last_evaluation(run) or run.log[-1]),
        missing=[(name, MISSING[name]) for name in run.missing],
    )


def describe_kind(run: RunFolder) -> str:
    """What the run trains, by its recipe or the keys of its log."""
    kind = run.recipe.get("kind")
    if isinstance(kind, str) and kind in KINDS:
        return KINDS[kind]
    if run.trains_pruner:
        return KINDS["recon_pruner"]
    if any("waypoints" in entry for entry in run.log):
        return KINDS["vla_tower" if any("dense" in entry for entry in run.log) else "vla_language"]
    return "A training run of a kind that this page does not know"


def rebuilds_masks(run: RunFolder) -> bool:
    """Whether the decoder paints masks alone, as one of the method's ablations does."""
    return run.group("loss").get("targets") == "mask"


def flatten(figures: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Rows of (name, value) for people; groups become ``group.name``, lists are left out."""
    rows = []
    for key, value in figures.items():
        name = f"{prefix}{key}"[:MAX_TEXT]
        if isinstance(value, dict):
            rows += flatten(value, f"{prefix}{key}.") if len(prefix) < 100 else []
        elif (shown := number(value)) is not None:
            rows.append((name, f"{value:,}" if isinstance(value, int) else f"{shown:.5g}"))
        elif isinstance(value, str | bool) or value is None:
            rows.append((name, "none" if value is None else str(value)[:MAX_TEXT]))
    return rows[:MAX_FIGURES]


def _charts(run: RunFolder) -> dict[str, list[Chart]]:
    if not run.trains_pruner:
        return {"loss": sections.other_charts(run), "health": [], "ranking": [], "speed": []}
    return {
        "loss": sections.loss_charts(run),
        "health": sections.health_charts(run),
        "ranking": sections.ranking_charts(run),
        "speed": sections.speed_charts(run),
    }


def _draw(group: str, charts: list[Chart]) -> list[DrawnChart]:
    return [DrawnChart(chart.title, draw(chart, f"{group}-{place}")) for place, chart in enumerate(charts)]


def _stats(run: RunFolder) -> list[Stat]:
    """The figures that tell most, as far as the run has them."""
    done, planned = run.log[-1]["step"] + run.trains_pruner, planned_steps(run)
    stats = [Stat("steps", f"{done:,}" if planned in (None, done) else f"{done:,} of {planned:,}")]
    held_out = sections.last_evaluation(run)
    recall = held_out.get("recall")
    recall = recall if isinstance(recall, dict) else {}
    fraction, truth = (column(run.log, key, "joint") for key in ("positive_share", "foreground_share"))
    speed = column(run.log, "images_per_s")
    per_s = float(speed.values[-1]) if len(speed) else number((run.figures or {}).get("images_per_s"))
    found = [
        ("AUROC", number(held_out.get("auroc")), ".3f"),
        ("average precision", number(held_out.get("average_precision")), ".3f"),
        *((f"recall at keep {ratio}", number(recall.get(ratio)), ".1%") for ratio in ("0.5", "0.25")),
        ("tokens above zero", fraction.end if len(fraction) else None, ".1%"),
        ("foreground", truth.end if len(truth) else None, ".1%"),
        ("images/s", per_s, ".3g" if per_s and per_s < 1000 else ",.0f"),
    ]
    return stats + [Stat(name, format(value, form)) for name, value, form in found if value is not None]
