"""The figures of ``fastdrive bench`` as Markdown and as an HTML page that stands alone."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

Row = Sequence[object]
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;"
    "background:#fff}table{border-collapse:collapse;margin:1rem 0}td,th{padding:.3rem .8rem;text-align:right;"
    "border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}code{background:#f3f3f3;"
    "padding:.1rem .3rem;overflow-wrap:anywhere}"
    ".bar{display:inline-block;height:.7rem;background:#2a6fb0;vertical-align:middle}"
)


def tables(figures: dict[str, Any]) -> list[tuple[str, Row, Sequence[Row]]]:
    """Title, header and rows of each table."""
    found: list[tuple[str, Row, Sequence[Row]]] = []
    columns = ("", "ours, ms", "p90", "p99", "worst", "transformers, ms", "p90", "p99", "worst", "ratio")
    stages = dict(figures["stages"])
    if figures["paced"] is not None:
        stages[f"camera_to_plan, one each {figures['paced']['period_s']:g} s"] = figures["paced"]
    found.append(("Stages", columns, [_stage_row(name, times) for name, times in stages.items()]))
    rows = [(_STEPS[row["with"]], _ms(row["median_ms"]), f"{row['speedup']:.2f}") for row in figures["ablation"]]
    found.append(("From patches to the answer, one thing more in each row", ("", "ms", "times faster"), rows))
    bounds = figures["floor"]
    least = [
        (f"prefill, {name}", entry["tokens"], f"{entry['gflop']:.2f} GFLOP", _ms(entry["least_ms"]))
        for name, entry in bounds["prefill"].items()
    ]
    least.append(
        ("decode, one token", 1, f"{bounds['decode_gbytes'] * 1e3:.1f} MB", _ms(bounds["decode_step_least_ms"]))
    )
    found.append(("What this machine needs at least", ("", "tokens", "work", "ms"), least))
    found.append(("What is asked of such figures", ("", ""), list(_questions(figures))))
    return found


_STEPS = {
    "transformers": "transformers, generate",
    "lean": "this package, all tokens",
    "pruning": "+ pruning",
    "drafts": "+ drafts",
    "engines": "+ engines",
}


def _stage_row(name: str, times: dict[str, float]) -> Row:
    sides = [
        [_ms(times[f"{who}_{part}"]) for part in ("ms", "p90_ms", "p99_ms", "worst_ms")]
        for who in ("ours", "transformers")
    ]
    return (name, *sides[0], *sides[1], f"{times['transformers_ms'] / times['ours_ms']:.2f}")


def _questions(figures: dict[str, Any]) -> Sequence[Row]:
    same, of = figures["equal_answers"]
    full, all_of = figures["equal_to_transformers"]
    return (
        ("Can it be reproduced?", f"{figures['command']}; commit {figures['commit']}, seed 0"),
        ("Does the baseline use fast attention?", "yes: SDPA on both sides"),
        ("Does the baseline use its cache?", "yes, in every measurement"),
        ("Is the pruner's time included?", f"yes, {_ms(figures['prune_ms'])} ms, in all but its own row"),
        (
            "Are the answers equal?",
            f"all tokens against transformers: {full} of {all_of}; drafts and engines against plain greedy decoding of "
            f"the same pruned prompt: {same} of {of}",
        ),
    )


def _ms(value: float) -> str:
    return f"{value:.2f}"


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
    """The machine and the versions in one line."""
    names = ("device", "processor", "threads", "python", "torch", "transformers", "fastdrive")
    words = [f"{name} {figures[name]}" for name in names if name in figures]
    return ", ".join(dict.fromkeys(words)) + f", peak memory {figures['peak_memory_mib']} MiB"


def markdown(figures: dict[str, Any]) -> str:
    lines = ["# Camera to plan", "", summary(figures), "", machine(figures), "", f"`{figures['command']}`"]
    for title, header, rows in tables(figures):
        lines += ["", f"## {title}", "", _line(header), _line(["---"] * len(header)), *map(_line, rows)]
    return "\n".join(lines) + "\n"


def _line(cells: Row) -> str:
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def html(figures: dict[str, Any]) -> str:
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Camera to plan</title>',
        f"<style>{_STYLE}</style><h1>Camera to plan</h1>",
        f"<p>{escape(summary(figures))}</p>{_bars(figures)}<p>{escape(machine(figures))}</p>",
        f"<p><code>{escape(figures['command'])}</code></p>",
    ]
    for title, header, rows in tables(figures):
        head = "".join(f"<th>{escape(str(cell))}</th>" for cell in header)
        body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
        parts.append(f"<h2>{escape(title)}</h2><table><tr>{head}</tr>{body}</table>")
    return "\n".join(parts) + "</html>\n"


def _bars(figures: dict[str, Any]) -> str:
    """The rows of the ablation as bars."""
    longest = max(row["median_ms"] for row in figures["ablation"])
    rows = "".join(
        f"<tr><td>{escape(_STEPS[row['with']])}</td>"
        f'<td style="text-align:left"><span class="bar" style="width:{30 * row["median_ms"] / longest:.2f}rem"></span> '
        f"{_ms(row['median_ms'])} ms</td></tr>"
        for row in figures["ablation"]
    )
    return f"<table>{rows}</table>"
