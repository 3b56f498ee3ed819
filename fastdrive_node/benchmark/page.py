"""The figures of ``fastdrive bench`` as Markdown and as an HTML page that stands alone."""

from __future__ import annotations

from html import escape
from typing import Any

from fastdrive_node.benchmark.conditions import load_warning
from fastdrive_node.benchmark.tables import STEPS, Row, Table, milliseconds, tables

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;"
    "background:#fff}.wide{overflow-x:auto}table{border-collapse:collapse;margin:1rem 0;font-size:.9rem}"
    "td,th{padding:.3rem .6rem;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child,.text td{text-align:left}.text td{overflow-wrap:anywhere}"
    "code{background:#f3f3f3;padding:.1rem .3rem;overflow-wrap:anywhere}"
    ".note{color:#444;font-size:.9rem}.warning{background:#fff3cd;padding:.5rem .8rem}"
    ".bar{display:inline-block;height:.7rem;background:#2a6fb0;vertical-align:middle}"
)


def summary(figures: dict[str, Any]) -> str:
    """Two sentences."""
    return (
        f"{figures['speedup_end_to_end']:.2f} times faster from camera to plan, {figures['speedup_prefill']:.2f} in "
        f"the prefill with the pruner, {figures['speedup_decode']:.2f} in decoding. {figures['kept_tokens']} of "
        f"{figures['tokens']} visual tokens, {figures['answer_tokens']:g} answer tokens in "
        f"{figures['forwards_per_answer']:g} forwards behind the prefill, {figures['samples']} frame sets of "
        f"{figures['source']}."
    )


def machine(figures: dict[str, Any]) -> str:
    """The machine, its load before the measurement, and the versions in one line."""
    names = ("device", "processor", "threads", "python", "torch", "transformers", "fastdrive", "driver", "cuda")
    parts = [f"{name} {figures[name]}" for name in names if name in figures]
    engines = figures["engines"] or {}
    parts += [engines[name] for name in ("runtime", "language_runtime") if name in engines]
    load = figures["load"]
    parts.append(f"load {load['one_minute']:g} on {load['cores']} cores in the minute before")
    return ", ".join(dict.fromkeys(parts))


def markdown(figures: dict[str, Any]) -> str:
    lines = ["# Camera to plan", "", summary(figures), "", machine(figures), "", f"`{figures['command']}`"]
    warning = load_warning(figures["load"])
    if warning is not None:
        lines += ["", f"**Warning: {warning}**"]
    for table in tables(figures):
        rows = [_line(table.header), _line(["---"] * len(table.header)), *map(_line, table.rows)]
        lines += ["", f"## {table.title}", "", *rows, *(["", table.note] if table.note else [])]
    return "\n".join(lines) + "\n"


def _line(cells: Row) -> str:
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def html(figures: dict[str, Any]) -> str:
    warning = load_warning(figures["load"])
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Camera to plan</title>',
        f"<style>{_STYLE}</style><h1>Camera to plan</h1>",
        "" if warning is None else f'<p class="warning">Warning: {escape(warning)}</p>',
        f"<p>{escape(summary(figures))}</p>{_bars(figures)}<p>{escape(machine(figures))}</p>",
        f"<p><code>{escape(figures['command'])}</code></p>",
        *map(_table, tables(figures)),
    ]
    return "\n".join(parts) + "</html>\n"


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(str(cell))}</th>" for cell in table.header)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in table.rows)
    kind = ' class="text"' if len(table.header) == 2 else ""
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return f'<h2>{escape(table.title)}</h2><div class="wide"><table{kind}><tr>{head}</tr>{body}</table></div>{note}'


def _bars(figures: dict[str, Any]) -> str:
    """The rows of the ablation as bars."""
    longest = max(row["median_ms"] for row in figures["ablation"])
    rows = "".join(
        f"<tr><td>{escape(STEPS[row['with']])}</td>"
        f'<td style="text-align:left"><span class="bar" style="width:{30 * row["median_ms"] / longest:.2f}rem"></span> '
        f"{milliseconds(row['median_ms'])} ms</td></tr>"
        for row in figures["ablation"]
    )
    return f"<table>{rows}</table>"
