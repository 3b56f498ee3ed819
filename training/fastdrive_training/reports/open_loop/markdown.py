"""The page's tables and statements as Markdown. Names and reasons come from files and are escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from fastdrive_training.reports.charts import printable
from fastdrive_training.reports.open_loop.figures import SUBJECT, Figure, ResultRow
from fastdrive_training.reports.open_loop.labels import (
    MINUS,
    NOTHING,
    ORDER,
    TAILS,
    TITLES,
    figure_text,
    interval_text,
    name_of,
    paired_text,
    refused_text,
    relative_text,
    tail_text,
    tokens_text,
    unit_of,
    value_text,
)
from fastdrive_training.reports.open_loop.ranking import summary
from fastdrive_training.reports.open_loop.report import OpenLoopReport, drop_text
from fastdrive_training.reports.open_loop.tables import HEADS, NOTES, Matrix, cost_rows
from fastdrive_training.reports.open_loop.tails import TailSample


def render_markdown(report: OpenLoopReport) -> str:
    """The Markdown file."""
    parts = [f"# Open-loop evaluation: {plain(report.run.name)}", _about(report), *_statements(report)]
    parts += [*_main_table(report), *_truth_table(report), *_cost_table(report), *_refusals(report)]
    parts += [*_worst(report), *_tails(report), *_disagreement(report)]
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """Text of a file as one line, escaped for Markdown."""
    text = " ".join(printable(text).split())
    return re.sub(r"([\\`*_\[\]<>|#~&!$])", r"\\\1", text).replace("\\<", "&lt;").replace("\\>", "&gt;")


def _about(report: OpenLoopReport) -> str:
    run = report.run
    text = f"{len(run.samples):,} samples of {len(set(run.scenes)):,} scenes. L2 in metres, the others in percent; "
    text += "means over 1, 2 and 3 s, with 95 % intervals."
    return text + (" Every sample saw the images of another scene." if report.shuffled else "")


def _statements(report: OpenLoopReport) -> list[str]:
    lines = [f"**{summary(list(report.statements))[1]}.**", ""]
    lines += [f"- {TITLES[one.figure]}, {plain(one.text)}" for one in report.statements]
    return ["\n".join(lines).rstrip()]


def _main_table(report: OpenLoopReport) -> list[str]:
    tables = report.tables
    names = [name for name in ORDER if name in tables.figures]
    heads = ["tokens", "pruner", *(f"{TITLES[name]} [{unit_of(name)}]" for name in names), "refused"]
    rows = [_main_row(line, names) for line in (tables.straight_on, tables.whole) if line is not None]
    rows += [_main_row(line, names) for lines in tables.lines.values() for line in lines if not line.is_variant]
    return [
        "## Pruners at each ratio (after the paper's Table 1)",
        "Bold: lowest of its ratio among those that do not see the ground truth. Last in a cell: relative performance, "
        "100 % as `none`.",
        _table(heads, rows),
    ]


def _main_row(line: ResultRow, names: Sequence[str]) -> list[str]:
    tokens = tokens_text(line.tokens) + (f" ({MINUS}{100 * line.drop:g} %)" if line.drop else "")
    cells = [_figure(line.figures.get(name), name) for name in names]
    return [tokens, plain(name_of(line.pruner)), *cells, refused_text(line)]


def _figure(figure: Figure | None, name: str) -> str:
    if figure is None:
        return NOTHING
    value = value_text(figure.value, name)
    parts = [f"**{value}**" if figure.best else value]
    parts += [f"({interval_text(figure.interval, name)})"] if figure.interval else []
    return " ".join([*parts, relative_text(figure.relative)]).rstrip()


def _truth_table(report: OpenLoopReport) -> list[str]:
    tables = report.tables
    names = [name for name in ORDER if name in tables.figures]
    heads = ["ratio", "choice", "tokens", *(f"{TITLES[name]} [{unit_of(name)}], less ReconPruner's" for name in names)]
    rows = []
    for drop in tables.lines:
        for line in tables.variants(drop):
            cells = []
            for name in names:
                paired = tables.paired.get((drop, line.pruner, name)) if tables.subject == SUBJECT else None
                value = figure_text(line.figures.get(name), name)
                cells.append(value if paired is None else f"{value} ({paired_text(paired, name)})")
            rows.append([f"{MINUS}{100 * drop:g} %", plain(name_of(line.pruner)), tokens_text(line.tokens), *cells])
    if not rows:
        return []
    return ["## Against the ground truth, and variants (after the paper's Table 3)", _table(heads, rows)]


def _cost_table(report: OpenLoopReport) -> list[str]:
    rows = [
        [
            f"{MINUS}{100 * row.drop:g} %" if row.drop else "0 %",
            plain(name_of(row.pruner)),
            *(f"{cell.text} ({cell.times})" if cell.times else cell.text for cell in row.cells),
        ]
        for row in cost_rows(report.tables)
    ]
    heads = [
        "ratio",
        "pruner",
        *(f"{head} [{note}]" if note else head for head, note in zip(HEADS, NOTES, strict=True)),
    ]
    body = _table(heads, rows) if rows else "The run has no efficiency.json, or nothing in it."
    return ["## Efficiency (after the paper's Table 4)", "In brackets: how many times less than `none`.", body]


def _refusals(report: OpenLoopReport) -> list[str]:
    rows = [
        [plain(name_of(one.pruner)), f"{100 * one.drop:g} %", str(one.count), plain(one.text)] for one in report.reasons
    ]
    return ["## Refused answers", _table(["pruner", "ratio", "answers", "reason"], rows)] if rows else []


def _worst(report: OpenLoopReport) -> list[str]:
    rows = [
        [
            plain(one.sample),
            plain(one.scene),
            f"{one.l2_m:.2f}",
            NOTHING if one.whole_l2_m is None else f"{one.whole_l2_m:.2f}",
            plain(", ".join(one.events)) or NOTHING,
        ]
        for one in report.worst
    ]
    if not rows:
        return []
    title = f"## Worst samples of {plain(name_of(report.subject))} at {MINUS}{drop_text(report)}, by L2"
    return [title, _table(["sample", "scene", "L2 [m]", "L2 on all tokens [m]", "plan"], rows)]


def _tails(report: OpenLoopReport) -> list[str]:
    tables = report.tables
    heads = ["ratio", "pruner", *(f"{head.title} [{head.unit}]" for head in TAILS.values())]
    rows = [
        [
            f"{MINUS}{100 * drop:g} %",
            plain(name_of(line.pruner)),
            *(tail_text(line.tail.get(name), name) for name in TAILS),
        ]
        for drop, lines in tables.lines.items()
        for line in lines
    ]
    if tables.whole is None or not rows:
        return []
    parts = ["## Tails: what is lost against all tokens", _table(heads, rows)]
    if report.tails is not None:
        of = f"{plain(name_of(report.subject))} at {MINUS}{drop_text(report)}"
        parts += [f"The 5 % of the samples that lose most L2, {of}:", _tail_samples(report.tails.losses)]
        parts += [f"The 5 % that collide more, {of}:", _tail_samples(report.tails.collisions)]
    return parts


def _tail_samples(samples: Sequence[TailSample]) -> str:
    heads = ["sample", "scene", "L2 [m]", "on all tokens", f"{TITLES['collision_any']} [%]", "on all tokens"]
    figures = ("l2_avg_to_t", "l2_avg_to_t", "collision_any", "collision_any")
    rows = [
        [
            plain(one.sample),
            plain(one.scene),
            *(
                NOTHING if value is None else value_text(value, name)
                for value, name in zip(
                    (one.l2_m, one.whole_l2_m, one.collision, one.whole_collision), figures, strict=True
                )
            ),
        ]
        for one in samples
    ]
    return _table(heads, rows) if rows else "None."


def _disagreement(report: OpenLoopReport) -> list[str]:
    found = report.disagreement
    if found is None:
        return []
    parts = [f"## Where pruners disagree, at {MINUS}{drop_text(report)}"]
    parts += ["Mean distance of two plans [m]:", _matrix(found.distances)]
    if found.overlaps is not None:
        parts += ["Overlap of what they kept (shared tokens over all that either kept):", _matrix(found.overlaps)]
    rows = [[plain(one.sample), plain(one.scene), f"{one.spread_m:.2f}"] for one in found.samples]
    return [*parts, "Samples with the largest spread:", _table(["sample", "scene", "mean distance [m]"], rows)]


def _matrix(matrix: Matrix) -> str:
    names = [plain(name_of(name)) for name in matrix.names]
    rows = [
        [name, *(NOTHING if np.isnan(value) else f"{value:.2f}" for value in values)]
        for name, values in zip(names, matrix.values, strict=True)
    ]
    return _table(["", *names], rows)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
