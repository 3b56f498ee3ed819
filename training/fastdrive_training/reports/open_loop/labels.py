"""Numbers and names as people read them, the same on the page and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastdrive_training.evaluation.intervals import Difference
    from fastdrive_training.reports.open_loop.figures import Figure, ResultRow


@dataclass(frozen=True)
class TailHead:
    """A column of the tails."""

    title: str
    unit: str  # metres, or a fraction in percent
    digits: int


TITLES = {
    "l2_avg_to_t": "L2",
    "collision_polygon": "collision",
    "collision_any": "any collision",
    "intersection": "intersection",
    "off_drivable": "off-drivable",
}
ORDER = tuple(TITLES)
TAILS = {
    "loss_90_samples": TailHead("90 % of the loss in", "% of samples", 1),
    "worst5_loss": TailHead("worst 5 %, loss", "m", 3),
    "new_collisions": TailHead("new collisions", "%", 2),
    "gone_collisions": TailHead("gone", "%", 2),
}
UNITS = {"l2_avg_to_t": "m"}  # the others are fractions, in percent
NAMES = {"reconpruner": "ReconPruner"}
NOTHING, MINUS, TIMES = "\u2013", "\u2212", "\u00d7"
_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"))


def name_of(pruner: str) -> str:
    return NAMES.get(pruner, pruner)


def names_of(pruners: Sequence[str]) -> str:
    """``a, b and c``."""
    names = [name_of(pruner) for pruner in pruners]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def unit_of(figure: str) -> str:
    return UNITS.get(figure, "%")


def value_text(value: float, figure: str, unit: bool = False, sign: bool = False) -> str:
    """Metres with three decimals, fractions as percent with two; a difference has a ``sign``, and is in m or pp."""
    meters = figure in UNITS
    number = round(value if meters else 100 * value, 3 if meters else 2)
    text = format(number, ("+" if sign and number else "") + (".3f" if meters else ".2f"))
    text = text.removeprefix("-") if not number else text.replace("-", MINUS)
    return f"{text} {'pp' if sign and not meters else unit_of(figure)}" if unit else text


def interval_text(ends: tuple[float, float] | None, figure: str, sign: bool = False) -> str:
    return "" if ends is None else " to ".join(value_text(end, figure, sign=sign) for end in ends)


def relative_text(relative: float | None) -> str:
    """``97.9 %``; empty where there is nothing to compare with."""
    return "" if relative is None else f"{100 * relative:,.1f} %"


def paired_text(paired: Difference, figure: str) -> str:
    """``+0.002 m, 95 % -0.001 to +0.004``."""
    ends = interval_text(paired.interval, figure, sign=True)
    return f"{value_text(paired.difference, figure, unit=True, sign=True)}, 95 % {ends}"


def tokens_text(tokens: float | None) -> str:
    """A mean of several samples has one decimal."""
    return NOTHING if tokens is None else f"{tokens:,.0f}" if float(tokens).is_integer() else f"{tokens:,.1f}"


def tail_text(value: float | None, name: str) -> str:
    head = TAILS[name]
    return NOTHING if value is None else f"{value if head.unit == 'm' else 100 * value:.{head.digits}f}"


def percent_text(fraction: float) -> str:
    return f"{100 * fraction:g} %"


def ratio_text(line: ResultRow) -> str:
    return f"{tokens_text(line.tokens)} tokens ({MINUS}{percent_text(line.drop)})"


def refused_text(line: ResultRow) -> str:
    return f"{line.refused:.3g} of {line.samples:,}" if line.refused else "0"


def figure_text(figure: Figure | None, name: str) -> str:
    return NOTHING if figure is None else value_text(figure.value, name)


def amount_text(value: float | None, digits: int = 3) -> str:
    """Three significant digits, without an exponent: ``12.3``, ``1,230``."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.{digits}g}"


def operations_text(value: float | None) -> str:
    """Floating-point operations with T, G or M."""
    if value is None:
        return NOTHING
    step, letter = next(((step, letter) for step, letter in _STEPS if value >= step), _STEPS[-1])
    return f"{value / step:.3g} {letter}"


def times_text(whole: float | None, own: float | None) -> str:
    """How many times less a cost is than without pruning: ``3.7x``; empty where one is not known."""
    return f"{whole / own:.2f}{TIMES}" if whole and own else ""
