"""The page of an open-loop evaluation: one self-contained HTML file, and the same tables as Markdown."""

from __future__ import annotations

import os
from pathlib import Path

from fastdrive_training.reports.charts import DrawnChart
from fastdrive_training.reports.document import render_template, write_text
from fastdrive_training.reports.open_loop import labels
from fastdrive_training.reports.open_loop.curves import paired_chart, ratio_curves, ratio_of
from fastdrive_training.reports.open_loop.figures import SUBJECT
from fastdrive_training.reports.open_loop.markdown import render_markdown
from fastdrive_training.reports.open_loop.ranking import JUDGED, summary
from fastdrive_training.reports.open_loop.report import OpenLoopReport, drop_text
from fastdrive_training.reports.open_loop.scenes import fraction_of
from fastdrive_training.reports.open_loop.tables import HEADS, NOTES, cost_rows
from fastdrive_training.reports.pruner_run.page import Stat
from fastdrive_training.reports.pruner_run.run_folder import ReportError

PACKAGE, TEMPLATE = "fastdrive_training.reports.open_loop", "page.html.j2"


def write_report(report: OpenLoopReport, html: Path | None, markdown: Path | None) -> tuple[Path, Path]:
    """Write both files, each by one rename; returns their paths.

    Args:
        html: None for ``report.html`` in the run's folder.
        markdown: None for ``report.md`` beside the page, under its name.

    Raises:
        ReportError: one of them cannot be written, or both are the same file.
    """
    html = report.run.path / "report.html" if html is None else html
    markdown = html.with_suffix(".md") if markdown is None else markdown
    if os.path.abspath(html) == os.path.abspath(markdown):
        raise ReportError(f"{html}: --out and --markdown name the same file; give another --markdown")
    text = render_markdown(report)
    return write_text(html, render_html(report)), write_text(markdown, text, "--markdown")


def render_html(report: OpenLoopReport) -> str:
    """The page as HTML."""
    tables = report.tables
    level, verdict = summary(list(report.statements))
    return render_template(
        PACKAGE,
        TEMPLATE,
        report=report,
        run=report.run,
        tables=tables,
        level=level.value,
        verdict=verdict,
        stats=_stats(report),
        labels=labels,
        figures=[name for name in labels.ORDER if name in tables.figures],
        ratios=[(drop, ratio_of(tables, drop)) for drop in tables.lines],
        charts=_charts(report),
        costs=cost_rows(tables),
        cost_heads=list(zip(HEADS, NOTES, strict=True)),
        tail_heads=labels.TAILS,
        drop=drop_text(report),
        fraction_of=fraction_of,
        subject=SUBJECT,
    )


def _charts(report: OpenLoopReport) -> dict[str, list[DrawnChart]]:
    judged = [name for name in JUDGED if name in report.tables.figures]
    return {
        kind: [chart for name in judged if (chart := draw(report.tables, name)) is not None]
        for kind, draw in (("curves", ratio_curves), ("paired", paired_chart))
    }


def _stats(report: OpenLoopReport) -> list[Stat]:
    run, drop = report.run, report.drop
    found = [
        Stat("samples", f"{len(run.samples):,}"),
        Stat("scenes", f"{len(set(run.scenes)):,}"),
        Stat("rows", str(len(run.tables))),
    ]
    whole = report.tables.whole
    line = None if drop is None else report.tables.at(drop, SUBJECT)
    for figure in JUDGED:
        title = labels.TITLES[figure]
        if whole is not None and figure in whole.figures:
            value = labels.value_text(whole.figures[figure].value, figure, unit=True)
            found.append(Stat(f"{title}, all tokens", value))
        if line is not None and figure in line.figures:
            value = labels.value_text(line.figures[figure].value, figure, unit=True)
            found.append(Stat(f"{title}, {labels.MINUS}{drop_text(report)}".replace(" %", "\u00a0%"), value))
    return found
