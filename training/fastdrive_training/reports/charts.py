"""Line charts as SVG inside a page: colors and text follow the page's light or dark mode, a title and a description
serve screen readers, and lines differ by their dashes too."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

MAX_POINTS = 400  # of one line; more are averaged in bins
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
# Colors that stand for the page's variables until the SVG is written.
INK, GRID, _BAND, FAINT = "#010101", "#020202", "#030303", "#040404"
SERIES = ("#0a0001", "#0a0002", "#0a0003", "#0a0004")
_VARIABLES = {
    INK: "var(--ink)",
    GRID: "var(--grid)",
    _BAND: "var(--band)",
    FAINT: "var(--faint)",
    **{color: f"var(--series-{place})" for place, color in enumerate(SERIES, start=1)},
}
DASHES = ("-", (0, (6, 1.5)), (0, (7, 1.5, 1.5, 1.5)), (0, (1.5, 1.5)))
_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:g} %")
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "fastdrive",  # the same run gives the same page
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.parse_math": False,
}

ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", _XLINK)


@dataclass(frozen=True)
class Line:
    """One line. ``series`` 0..3 picks color and dashes, so that a thing looks the same on every chart."""

    name: str
    x: np.ndarray
    y: np.ndarray
    series: int = 0
    noisy: bool = False  # single steps: drawn faint, with their moving average over it
    points: bool = False  # few values: each gets a dot
    joined: bool = True


@dataclass(frozen=True)
class Chart:
    """What is drawn. ``summary`` is the description for screen readers; the lines' ends are added to it."""

    title: str
    lines: tuple[Line, ...]
    y_label: str
    x_label: str = "step"
    summary: str = ""
    log_y: bool = False
    percent: bool = False  # y is a fraction in 0..1
    unit_x: bool = False  # x is a fraction in 0..1
    from_zero: bool = False
    until: float | None = None  # x up to which a band marks the warm-up
    level: tuple[float, str] | None = None  # a horizontal line and its name


@dataclass(frozen=True)
class DrawnChart:
    """A chart of the page."""

    title: str
    svg: Markup


def draw(chart: Chart, name: str) -> Markup:
    """The chart as an ``<svg>`` element. ``name`` (a letter, then letters, digits, -) makes its ids unique."""
    with page_style():
        figure = Figure(figsize=(4.7, 3.0), layout="constrained")
        axes = figure.add_subplot()
        _axes(axes, chart)
        for line in chart.lines:
            _line(axes, line, plain=len(chart.lines) == 1)
        _limits(axes, chart)
        if len(chart.lines) > 1 or chart.level:
            handles, labels = axes.get_legend_handles_labels()
            figure.legend(
                handles, labels, loc="outside upper left", ncols=3, frameon=False, fontsize=10, columnspacing=1.2
            )
        return page_svg(figure, name, chart.title, describe(chart))


@contextmanager
def page_style() -> Iterator[None]:
    """Figures drawn inside have the style of the page."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of glyphs that the font lacks: the page's fonts draw the text
        yield


def page_svg(figure: Figure, name: str, title: str, description: str) -> Markup:
    """A figure drawn with the colors above as an ``<svg>`` element; call it inside of :func:`page_style`."""
    buffer = io.BytesIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    return _for_page(buffer.getvalue(), name, title, description)


def describe(chart: Chart) -> str:
    """The summary, and where each line starts and ends."""
    parts = [chart.summary] if chart.summary else []
    for line in chart.lines:
        if len(line.x):
            ends = [f"{_form(line.y[at], chart.percent)} at {line.x[at]:.4g}" for at in (0, -1)]
            parts.append(f"{line.name}: {ends[0]}, {ends[1]}." if len(line.x) > 1 else f"{line.name}: {ends[0]}.")
    return " ".join(parts)


def binned(x: np.ndarray, y: np.ndarray, most: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most ``most`` points: means of bins of neighbours; float64 [n] each."""
    if len(x) <= most:
        return np.asarray(x, np.float64), np.asarray(y, np.float64)
    edges = np.linspace(0, len(x), most + 1).astype(int)[:-1]
    counts = np.diff([*edges, len(x)])
    return np.add.reduceat(x, edges) / counts, np.add.reduceat(y, edges) / counts


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the ``window`` values around each; fewer at the ends. float64, same length."""
    sums = np.cumsum([0.0, *values])
    at = np.arange(len(values))
    low, high = np.maximum(at - window // 2, 0), np.minimum(at + window // 2 + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def printable(text: str) -> str:
    """Without characters that XML or UTF-8 cannot hold, or that change the text direction; lines and tabs stay."""
    return "".join(mark if mark.isprintable() or mark in "\n\t\u00a0" else "\ufffd" for mark in text)


def frame(axes) -> None:
    """A faint grid behind the lines, and no more of a frame than two axes."""
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[["top", "right"]].set_visible(False)


def _axes(axes, chart: Chart) -> None:
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(printable(chart.y_label))
    frame(axes)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=not chart.unit_x))
    if chart.log_y:
        axes.set_yscale("log")
        values = np.concatenate([line.y for line in chart.lines])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if values.max() < 300 * values.min() else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if chart.percent:
        axes.yaxis.set_major_formatter(_PERCENT)
    axes.xaxis.set_major_formatter(_PERCENT if chart.unit_x else FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if chart.until is not None:
        axes.axvspan(0, chart.until, color=_BAND, linewidth=0)
        axes.text(0.008, 0.985, "warm-up", transform=axes.transAxes, va="top", fontsize=9, color=INK)
    if chart.level is not None:
        value, name = chart.level
        axes.axhline(value, color=INK, linewidth=1.2, linestyle=(0, (1, 2)), label=name)


def _line(axes, line: Line, plain: bool) -> None:
    x, y = binned(line.x, line.y)
    color, dashes = SERIES[line.series], "-" if plain else DASHES[line.series]
    marker = "o" if line.points else None
    if line.noisy and len(x) > 40:
        axes.plot(x, y, color=color, linewidth=0.8, alpha=0.35)
        y = smooth(y, max(3, len(x) // 25))
    style = dashes if line.joined else "none"
    axes.plot(
        x, y, color=color, linewidth=2, linestyle=style, marker=marker, markersize=4.5, label=printable(line.name)
    )


def _limits(axes, chart: Chart) -> None:
    if chart.unit_x:
        axes.set_xlim(-0.01, 1.01)
    low, high = axes.get_ylim()
    if chart.percent:
        axes.set_ylim(max(low, -0.02), min(high, 1.02))
    if chart.from_zero:
        axes.set_ylim(bottom=-0.02 if low < 0.02 else 0)


def _for_page(svg: bytes, name: str, title: str, description: str) -> Markup:
    """Theme colors, unique ids, title and description; the size is left to the page."""
    root = ElementTree.fromstring(svg)
    for element in list(root.iter()):
        for child in list(element):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}title"):
                element.remove(child)
        for key, value in element.attrib.items():
            element.set(key, _attribute(key, value, name))
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-description")
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(f"{{{_SVG}}}{tag}", id=f"{name}-{'title' if tag == 'title' else 'description'}")
        element.text = printable(text)
        root.insert(place, element)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _attribute(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key in ("href", f"{{{_XLINK}}}href"):
        return value.replace("#", f"#{name}-")
    value = re.sub(r"url\(#", f"url(#{name}-", value)
    for color, variable in _VARIABLES.items():
        value = value.replace(color, variable)
    return value


def _form(value: float, percent: bool) -> str:
    return f"{value:.1%}" if percent else f"{value:.3g}"


def positive(lines: Iterable[Line]) -> bool:
    """Whether all values can stand on a logarithmic axis that shows more than a factor of three."""
    values = np.concatenate([np.zeros(0), *(line.y for line in lines)])
    return bool(len(values)) and values.min() > 0 and math.log10(values.max() / values.min()) > 0.5
