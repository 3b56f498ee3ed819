"""Charts of a score against the severity of a fault, one for each fault, as SVG that follows the page's colors."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from fastdrive_sim.drive.faults import FAULTS

WIDTH, HEIGHT = 440.0, 260.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 12.0, 40.0
COLORS = 6  # of the style sheet's series
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4", "1 3")


@dataclass(frozen=True)
class FaultPoint:
    """A row's score under a fault, over the runs that did not fail."""

    severity: float
    value: float | None  # None: all runs failed
    interval: tuple[float, float] | None
    failed: int = 0  # runs

    @property
    def told(self) -> str:
        """The score, and how many runs failed."""
        parts = [] if self.value is None else [f"{self.value:.3f}"]
        return ", ".join([*parts, f"{self.failed} failed"] if self.failed else parts)


def fault_lines(figures: dict[str, Any], figure: str = "epdms_style") -> dict[str, dict[str, list[FaultPoint]]]:
    """For each fault, the points of each pruner by severity; the row without it is at its neutral one."""
    found: dict[str, dict[str, list[FaultPoint]]] = {}
    rows = figures["rows"]
    for fault in dict.fromkeys(row["fault"].split(":")[0] for row in rows if row["fault"]):
        lines: dict[str, list[FaultPoint]] = {}
        for row in rows:
            name, _, severity = (row["fault"] or f"{fault}:{FAULTS[fault].neutral:g}").partition(":")
            if name == fault and row["pruner"] not in ("expert", "constant-velocity"):
                pruner = Path(row["pruner"]).stem  # of a file its name
                label = f"{pruner}@{row['drop']:g}" if row["drop"] else pruner
                interval = row["ci95"][figure]
                point = FaultPoint(float(severity), row[figure], tuple(interval) if interval else None, row["failed"])
                lines.setdefault(label, []).append(point)
        found[fault] = {name: sorted(each, key=lambda point: point.severity) for name, each in lines.items()}
    return found


def severity_charts(figures: dict[str, Any]) -> str:
    """Figures of the page; a sentence where no row has a fault."""
    faults = fault_lines(figures)
    if not faults:
        return '<p class="faint">No row has a fault (<code>--fault NAME:SEVERITY</code>).</p>'
    names = list(dict.fromkeys(name for lines in faults.values() for name in lines))
    key = "".join(f"<li><i style='background:{_color(i)}'></i>{escape(name)}</li>" for i, name in enumerate(names))
    drawn = "".join(
        f'<figure class="card"><h3>{escape(fault)}</h3>{_chart(fault, lines, names)}</figure>'
        for fault, lines in faults.items()
    )
    if any(point.failed for lines in faults.values() for points in lines.values() for point in points):
        key += "<li>ring: some runs failed</li><li>cross: all did</li>"
    return f'<ul class="key">{key}</ul><div class="charts">{drawn}</div>'


def _color(index: int) -> str:
    return f"var(--series-{index % COLORS + 1})"


def _chart(fault: str, lines: dict[str, list[FaultPoint]], names: list[str]) -> str:
    severities = sorted({point.severity for points in lines.values() for point in points})
    most = severities[-1] or 1.0
    x = lambda severity: LEFT + (WIDTH - LEFT - RIGHT) * severity / most  # noqa: E731
    y = lambda value: TOP + (HEIGHT - TOP - BOTTOM) * (1 - value)  # noqa: E731
    parts = []
    for level in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(_segment(LEFT, y(level), WIDTH - RIGHT, y(level), "var(--grid)"))
        parts.append(_text(LEFT - 6, y(level) + 4, f"{level:g}", "end"))
    parts += [_text(x(severity), HEIGHT - 22, f"{severity:g}") for severity in severities]
    parts.append(_text((LEFT + WIDTH) / 2, HEIGHT - 5, "severity"))
    for name, points in lines.items():
        index = names.index(name)
        color, dash = _color(index), DASHES[index % len(DASHES)]
        way = " ".join(f"{x(p.severity):.1f},{y(p.value):.1f}" for p in points if p.value is not None)
        style = f'fill="none" stroke="{color}" stroke-width="2" stroke-dasharray="{dash}"'
        parts.append(f'<polyline points="{way}" {style}/>')
        for p in points:
            across = x(p.severity)
            if p.interval:
                parts.append(_segment(across, y(p.interval[0]), across, y(p.interval[1]), color))
            parts.append(_mark(p, across, y(p.value or 0.0), color, f"{name}, severity {p.severity:g}: {p.told}"))
    label = f"EPDMS-style score against the severity of {fault}"
    return f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _mark(point: FaultPoint, x: float, y: float, color: str, title: str) -> str:
    """A dot; a ring where some of the runs failed, a cross where all did."""
    if point.value is None:
        shape = f'<path d="M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8" stroke="{color}" stroke-width="2">'
        return f"{shape}<title>{escape(title)}</title></path>"
    fill = "none" if point.failed else color
    shape = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" stroke="{color}" fill="{fill}">'
    return f"{shape}<title>{escape(title)}</title></circle>"


def _segment(x1: float, y1: float, x2: float, y2: float, color: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"/>'


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
