"""A figure against the tokens that are kept, and paired differences to ReconPruner, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from fastdrive_training.reports.charts import (
    DASHES,
    FAINT,
    INK,
    SERIES,
    DrawnChart,
    frame,
    page_style,
    page_svg,
    printable,
)
from fastdrive_training.reports.open_loop.figures import GROUND_TRUTH, SUBJECT, ResultRow, Tables
from fastdrive_training.reports.open_loop.labels import (
    MINUS,
    TITLES,
    UNITS,
    name_of,
    percent_text,
    ratio_text,
    unit_of,
    value_text,
)

# Color and dashes of the pruners that stand out; the same on every chart.
PLACES = {SUBJECT: 1, **dict.fromkeys(GROUND_TRUTH, 0), "random": 3}
PANELS_IN = 11.8  # width of all panels together, in inches
BAR_GAP = 0.006  # between two bars at one number of tokens, in parts of the chart's width
LABEL_GAP = 0.045  # least distance of two names, in parts of the chart's height


@dataclass(frozen=True)
class PrunerCurve:
    """A figure of one pruner over its ratios, most tokens first."""

    pruner: str
    tokens: np.ndarray  # float64 [n]
    values: np.ndarray  # float64 [n], m or percent
    ends: np.ndarray  # float64 [n, 2], 95 %; NaN where there is none

    @property
    def text(self) -> str:
        points = ", ".join(f"{y:.3g} at {x:,.4g}" for x, y in zip(self.tokens, self.values, strict=True))
        return f"{name_of(self.pruner)}: {points}."


def ratio_curves(tables: Tables, figure: str) -> DrawnChart | None:
    """All pruners in one chart; None where no row has the figure and a number of tokens."""
    curves = _curves(tables, figure)
    if not curves:
        return None
    title = f"{TITLES[figure]} against kept tokens [{unit_of(figure)}]"
    with page_style():
        canvas = Canvas(figsize=(6.4, 4.4), layout="constrained")
        axes = canvas.add_subplot()
        frame(axes)
        axes.set_xlabel("visual tokens kept")
        axes.set_ylabel(f"{TITLES[figure]} [{unit_of(figure)}]")
        whole = tables.whole.figures.get(figure) if tables.whole is not None else None
        if whole is not None:
            axes.axhline(_scaled(whole.value, figure), color=INK, linewidth=1.2, linestyle=(0, (1, 2)), zorder=1)
        reach = max(curve.tokens.max() for curve in curves) - min(curve.tokens.min() for curve in curves)
        for number, curve in enumerate(sorted(curves, key=lambda curve: curve.pruner in PLACES)):
            _draw(axes, curve, BAR_GAP * reach * (number - len(curves) / 2))
        ticks = sorted({float(x) for curve in curves for x in curve.tokens if x.is_integer()})
        axes.set_xticks(ticks or [float(curves[0].tokens[0])], [f"{tick:,.0f}" for tick in ticks] or None)
        axes.invert_xaxis()
        _names(axes, curves, None if whole is None else _scaled(whole.value, figure))
        svg = page_svg(canvas, f"curve-{figure.replace('_', '-')}", title, " ".join(curve.text for curve in curves))
    return DrawnChart(title, svg)


def paired_chart(tables: Tables, figure: str) -> DrawnChart | None:
    """How much worse than ReconPruner each is, with paired intervals, a panel for each ratio; None without pairs."""
    drops = [drop for drop in tables.lines if _pairs(tables, drop, figure)]
    if not drops or tables.subject != SUBJECT:
        return None
    names = _pair_names(tables, drops, figure)
    title = f"{TITLES[figure]} less ReconPruner's [{'m' if figure in UNITS else 'pp'}], above zero is worse"
    with page_style():
        canvas = Canvas(figsize=(PANELS_IN, 0.9 + 0.26 * len(names)), layout="constrained")
        panels = np.atleast_1d(canvas.subplots(1, len(drops), sharey=True))
        for axes, drop in zip(panels, drops, strict=True):
            _panel(axes, tables, drop, figure, names)
        panels[0].set_yticks(range(len(names)), [printable(name_of(name)) for name in names])
        panels[0].invert_yaxis()
        name = f"paired-{figure.replace('_', '-')}"
        svg = page_svg(canvas, name, title, _paired_text(tables, drops, figure))
    return DrawnChart(title, svg)


def _curves(tables: Tables, figure: str) -> list[PrunerCurve]:
    by_name: dict[str, list[ResultRow]] = {}
    for line in (line for lines in tables.lines.values() for line in lines):
        if figure in line.figures and line.tokens is not None:
            by_name.setdefault(line.pruner, []).append(line)
    curves = []
    for name, lines in by_name.items():
        found = [line.figures[figure] for line in lines]
        values = np.array([_scaled(one.value, figure) for one in found])
        ends = np.array([one.interval or (np.nan, np.nan) for one in found]) * _scaled(1.0, figure)
        curves.append(PrunerCurve(name, np.array([line.tokens for line in lines], np.float64), values, ends))
    return curves


def _scaled(value: float, figure: str) -> float:
    return value if figure in UNITS else 100 * value


def _draw(axes: Axes, curve: PrunerCurve, offset: float) -> None:
    """ReconPruner with a band, the others with a bar at each point, moved ``offset`` tokens so that bars lie apart."""
    place = PLACES.get(curve.pruner)
    color = FAINT if place is None else SERIES[place]
    if curve.pruner == SUBJECT:
        axes.fill_between(curve.tokens, *curve.ends.T, color=color, alpha=0.16, linewidth=0, zorder=1)
    else:
        strong = place is not None
        bars = curve.tokens + offset
        axes.vlines(bars, *curve.ends.T, color=color, linewidth=1.6, alpha=0.7 if strong else 0.3, zorder=2 + strong)
    if place is None:
        axes.plot(curve.tokens, curve.values, color=color, linewidth=1.1, marker="o", markersize=2.5, zorder=2)
    else:
        style = {"linestyle": DASHES[place], "linewidth": 2.2, "marker": "o", "markersize": 4.5}
        axes.plot(curve.tokens, curve.values, color=color, zorder=4, **style)


def _names(axes: Axes, curves: Sequence[PrunerCurve], whole: float | None) -> None:
    """The names at the right ends of the lines, moved apart; thin leaders tell which is whose."""
    low, high = axes.get_ylim()
    ends = [(curve.values[-1], curve.tokens[-1], curve.pruner) for curve in curves]
    if whole is not None:
        ends.append((whole, min(end[1] for end in ends), "none"))
    ends.sort()
    for (value, tokens, name), level in zip(ends, _apart([(end[0] - low) / (high - low) for end in ends]), strict=True):
        color = SERIES[PLACES[name]] if name in PLACES else INK if name == "none" else FAINT
        axes.annotate(
            printable(name_of(name)),
            xy=(tokens, value),
            xytext=(1.05, level),
            textcoords="axes fraction",
            va="center",
            fontsize=9.5,
            color=color,
            fontweight="bold" if name == SUBJECT else "normal",
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "alpha": 0.6, "shrinkA": 1, "shrinkB": 3},
        )


def _apart(levels: Sequence[float]) -> list[float]:
    """Ascending levels moved to at least LABEL_GAP from each other, as little as needed, and within 0..1."""
    pools: list[list[float]] = []  # of neighbours that touch: the sum of their levels less their gaps, and their number
    for place, level in enumerate(levels):
        pools.append([level - place * LABEL_GAP, 1])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
            total, count = pools.pop()
            pools[-1] = [pools[-1][0] + total, pools[-1][1] + count]
    starts = [total / count for total, count in pools for _ in range(int(count))]
    last = 1.0 - LABEL_GAP * (len(levels) - 1)
    return [min(max(start, 0.0), max(last, 0.0)) + place * LABEL_GAP for place, start in enumerate(starts)]


def _pairs(tables: Tables, drop: float, figure: str) -> list[str]:
    return [name for at, name, of in tables.paired if at == drop and of == figure]


def _pair_names(tables: Tables, drops: Sequence[float], figure: str) -> list[str]:
    """By the difference at the last ratio that has one, smallest first."""
    names = dict.fromkeys(name for drop in drops for name in _pairs(tables, drop, figure))

    def place(name: str) -> float:
        found = [tables.paired[drop, name, figure] for drop in drops if (drop, name, figure) in tables.paired]
        return found[-1].difference

    return sorted(names, key=place)


def _panel(axes: Axes, tables: Tables, drop: float, figure: str, names: Sequence[str]) -> None:
    frame(axes)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_title(f"{ratio_of(tables, drop)}", fontsize=10)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    for place, name in enumerate(names):
        paired = tables.paired.get((drop, name, figure))
        if paired is None:
            continue
        color = SERIES[PLACES[name]] if name in PLACES else INK if name == "none" else FAINT
        low, high = (_scaled(end, figure) for end in paired.interval)
        axes.hlines(place, low, high, color=color, linewidth=2)
        axes.plot([_scaled(paired.difference, figure)], [place], "o", color=color, markersize=5)


def ratio_of(tables: Tables, drop: float) -> str:
    """``48 tokens (-75 %)``, by the ranked rows, whose number is fixed; the ratio alone where none has a number."""
    known = [line for line in tables.lines[drop] if line.tokens is not None and line.is_ranked]
    return ratio_text(known[0]) if known else f"{MINUS}{percent_text(drop)}"


def _paired_text(tables: Tables, drops: Sequence[float], figure: str) -> str:
    parts = []
    for drop in drops:
        found = {name: tables.paired[drop, name, figure].difference for name in _pairs(tables, drop, figure)}
        texts = [f"{name_of(name)} {value_text(value, figure, sign=True)}" for name, value in found.items()]
        parts.append(f"{ratio_of(tables, drop)}: {', '.join(texts)}.")
    return " ".join(parts)
