"""The page of a drive: one HTML file that needs no network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastdrive_node.errors import InputError
from fastdrive_node.files import write_atomically
from fastdrive_sim.drive.kept import with_kept
from fastdrive_sim.drive.report.player import Key, played
from fastdrive_sim.drive.report.severity import severity_charts
from fastdrive_sim.drive.report.tables import (
    difference_table,
    heat_maps,
    number,
    score_table,
    term_table,
    worst_table,
)
from fastdrive_sim.drive.storage import load_run
from fastdrive_sim.drive.types import CONSTANT_VELOCITY, EXPERT, RunRecord


def write_report(path: Path, figures: dict[str, Any], out: Path) -> None:
    """Write the page of ``figures`` (``summary.json``).

    Args:
        out: folder of the drive, whose run files the page plays.

    Raises:
        InputError: the file cannot be written, or a run cannot be read.
    """

    def file(key: Key) -> Path:
        row, family, seed = key
        return out / "runs" / row / f"{family}-{seed}.jsonl"

    def load(key: Key) -> RunRecord | None:
        return load_run(file(key)) if file(key).is_file() else None

    text = page(figures, list(played(figures, load, lambda key, run: with_kept(run, file(key)))))
    try:
        with write_atomically(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error


def page(figures: dict[str, Any], runs: Sequence[dict[str, Any]]) -> str:
    """The HTML text; ``runs`` are values of ``player.played``."""
    style, script = (
        files("fastdrive_sim.drive.report").joinpath(name).read_text("utf-8") for name in ("page.css", "page.js")
    )
    data = json.dumps(list(runs), separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    sections = [
        ("Scores", _SCORES, _card(score_table(figures))),
        ("Terms of the EPDMS-style score", "", _card(term_table(figures))),
        ("Differences between rows", _DIFFERENCES, _card(difference_table(figures))),
        ("Families", "Darker is worse.", _card(heat_maps(figures))),
        ("Against the severity of a fault", "EPDMS-style score with 95 % intervals; severity in the fault's unit.",
         severity_charts(figures)),
        ("Worst runs", "The worst 5 % of each row; of a pruner those that lost most against all tokens.",
         _card(worst_table(figures))),
        ("Runs", _RUNS, _player(runs)),
    ]  # fmt: skip
    body = "".join(
        f"<section><h2>{title}</h2><p class='faint'>{about}</p>{text}</section>" for title, about, text in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Closed loop</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{style}</style></head><body><header><h1>Closed loop</h1>{_head(figures)}</header><main>{body}</main>"
        "<footer class='faint'>Made by <code>fastdrive sim drive</code>; definitions: docs/closed_loop.md</footer>"
        f'<script type="application/json" id="runs">{data}</script><script>{script}</script></body></html>\n'
    )


_SCORES = (
    "Means over the runs that did not fail; small: 95 % interval. EPDMS-style is on the own simulator and cannot be "
    "compared with NAVSIM's."
)
_DIFFERENCES = (
    "Row less reference, paired by family and seed; small: 95 % interval; left out: pairs with a run that failed. "
    "Green is better and red worse where the interval does not hold 0. The last columns tell where the loss of the "
    "EPDMS-style score is."
)
_RUNS = (
    "The worst runs of each row, and one of each family. The vehicle looks to the right; green: the plan in use; "
    "dashed: the way of the unpruned row. In the strip: speed, kept tokens of each tick (red: refused), events. Beside "
    "the view from above: the tokens of each camera; blue: those that the plan in use kept."
)


def _card(text: str) -> str:
    return f'<div class="card wide">{text}</div>'


def _head(figures: dict[str, Any]) -> str:
    settings = figures.get("settings", {})
    whole = [row for row in figures["rows"] if row["comparable"]]
    driven = [row for row in whole if row["pruner"] not in (EXPERT, CONSTANT_VELOCITY)]
    best = max(driven, key=lambda row: row["epdms_style"] or 0.0, default=None)
    stats = {
        "rows": len(figures["rows"]),
        "runs": len(figures["runs"]),
        "families": len({run["family"] for run in figures["runs"]}),
        "VLA": settings.get("vla", ""),
        "clock": "real time" if settings.get("realtime") else "lockstep",
        "latency": _latency(settings),
        "highest EPDMS-style of the VLA": f"{best['row']} {number(best['epdms_style'], 'epdms_style')}" if best else "",
        "hash": str(figures.get("deterministic_hash", ""))[:16],
    }
    parts = "".join(f"<div><dt>{name}</dt><dd>{escape(str(value))}</dd></div>" for name, value in stats.items())
    return f'<dl class="stats">{parts}</dl>'


def _latency(settings: dict[str, Any]) -> str:
    text, count = f"{settings.get('latency_ms', 0):g} ms", settings.get("latency_values")
    return f"mean {text} of {count} recorded" if count else text


def _player(runs: Sequence[dict[str, Any]]) -> str:
    if not runs:
        return '<p class="faint">No run was driven.</p>'
    names = (f"{run['row']}: {run['family']} {run['seed']}, {run['ending']}" for run in runs)
    options = "".join(f'<option value="{index}">{escape(name)}</option>' for index, name in enumerate(names))
    return (
        f'<div class="card"><label>Run <select id="run">{options}</select></label><p id="scores" class="faint"></p>'
        '<div class="player"><div><canvas id="above" role="img" aria-label="The run from above"></canvas>'
        '<div class="controls"><button id="play" type="button">Play</button>'
        '<input id="time" type="range" min="0" value="0" aria-label="Time"><span id="told"></span></div>'
        '<canvas id="strip" role="img" aria-label="Speed, kept tokens and events over time"></canvas></div>'
        '<div><canvas id="kept" role="img" aria-label="Kept tokens of each camera"></canvas>'
        '<p id="told-kept" class="faint"></p><ul id="events" aria-label="Events"></ul></div></div></div>'
    )
