"""The tables of the page: rows with intervals, differences between rows, families against rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from fastdrive_sim.drive.summary import LOWER_IS_BETTER, MAIN, not_comparable

TITLES = {
    "collision_rate": "collisions",
    "at_fault_rate": "at fault",
    "neuroncap": "NeuroNCAP",
    "epdms_style": "EPDMS-style",
    "hd_score": "HD-Score",
    "route_completion": "route",
    "off_road_rate": "off road",
    "red_light_rate": "red light",
    "comfort": "comfort",
    "refused": "refused",
    "late": "late",
    "superseded": "superseded",
    "plan_deviation_m": "plan deviation, m",
    "plan_age_s": "plan age, s",
    "kept": "tokens kept",
    "worst5_epdms_style": "worst 5 %",
}
SCORES = (
    "collision_rate", "neuroncap", "epdms_style", "worst5_epdms_style", "hd_score", "route_completion", "off_road_rate",
    "red_light_rate", "comfort", "refused", "late", "superseded", "plan_age_s", "plan_deviation_m", "kept",
)  # fmt: skip
TERMS = ("nc", "dac", "ddc", "tlc", "ep", "ttc", "lk", "hc", "ec")
PERCENT = (
    "collision_rate", "at_fault_rate", "route_completion", "off_road_rate", "red_light_rate", "comfort", "refused",
    "late", "superseded", "kept",
)  # fmt: skip
NOTHING = "-"


def number(value: float | None, figure: str, sign: bool = False) -> str:
    """A figure as text."""
    if value is None:
        return NOTHING
    if figure in PERCENT:
        return f"{100 * value:{'+' if sign else ''}.1f} %"
    return f"{value:{'+' if sign else ''}.{2 if figure in ('neuroncap', 'plan_age_s') else 3}f}"


def score_table(figures: dict[str, Any]) -> str:
    """A line for each row, with the interval below each figure, and which rows cannot be compared."""
    told = "".join(f'<p class="bad">{escape(each)}.</p>' for each in map(not_comparable, figures["rows"]) if each)
    return _rows_table(figures["rows"], SCORES) + told


def term_table(figures: dict[str, Any]) -> str:
    """The terms of the EPDMS-style score."""
    return _rows_table(figures["rows"], TERMS)


def _rows_table(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    head = ["row", "runs", "failed", *(TITLES.get(name, name.upper()) for name in names)]
    body = [[row["row"], row["runs"], row["failed"], *(_with_interval(row, name) for name in names)] for row in rows]
    return table(head, body)


class HtmlCell(str):
    """Text that is HTML already."""


def _with_interval(row: dict[str, Any], name: str) -> HtmlCell:
    interval = row["ci95"].get(name)
    text = f"<small>{number(interval[0], name)} to {number(interval[1], name)}</small>" if interval else ""
    return HtmlCell(f"<td>{number(row[name], name)}{text}</td>")


def difference_table(figures: dict[str, Any]) -> str:
    """Paired differences; coloured where their interval does not hold 0."""
    names = ("collision_rate", "neuroncap", "epdms_style", "hd_score", "route_completion", "comfort")
    head = ["row", "against", "runs", "left out", *(TITLES[name] for name in names), "loss in the worst 5 %", "no loss"]
    body = []
    for each in figures["comparisons"]:
        loss = each["loss"]
        cells = [_difference(each["differences"].get(name), name) for name in names]
        ends = [_share(loss["share_of_worst5"]), _share(loss["unharmed"])]
        body.append([each["row"], each["against"], each["runs"], each["failed"], *cells, *ends])
    return table(head, body) if body else '<p class="faint">No row to compare with.</p>'


def _share(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.0f} %"


def _difference(found: dict[str, Any] | None, name: str) -> HtmlCell:
    if found is None:
        return HtmlCell(f"<td>{NOTHING}</td>")
    interval, kind = found["ci95"], ""
    if interval and (interval[0] > 0 or interval[1] < 0):
        kind = ' class="bad"' if (interval[0] > 0) == (name in LOWER_IS_BETTER) else ' class="good"'
    small = f"<small>{number(interval[0], name, True)} to {number(interval[1], name, True)}</small>" if interval else ""
    return HtmlCell(f"<td{kind}>{number(found['difference'], name, True)}{small}</td>")


def heat_maps(figures: dict[str, Any]) -> str:
    """Families x rows, one table a figure; the page's script shows one of them."""
    options = "".join(f'<option value="{name}">{TITLES[name]}</option>' for name in _main_first())
    maps = "".join(_heat_map(figures, name, hidden=index > 0) for index, name in enumerate(_main_first()))
    return f'<label>Figure <select id="heat">{options}</select></label>{maps}'


def _main_first() -> list[str]:
    return sorted(MAIN, key=lambda name: name != "epdms_style")


def _heat_map(figures: dict[str, Any], name: str, hidden: bool) -> str:
    rows = [row["row"] for row in figures["rows"]]
    cells = {(each["family"], each["row"]): each for each in figures["families"]}
    families = list(dict.fromkeys(each["family"] for each in figures["families"]))
    most = 5.0 if name == "neuroncap" else 1.0
    body = [[family, *(_heat_cell(cells.get((family, row)), name, most) for row in rows)] for family in families]
    return (
        f'<div class="wide heat" id="heat-{name}"{" hidden" if hidden else ""}>{table(["family", *rows], body)}</div>'
    )


def _heat_cell(cell: dict[str, Any] | None, name: str, most: float) -> HtmlCell:
    if cell is None or cell[name] is None:
        return HtmlCell(f"<td>{NOTHING}</td>")
    loss = cell[name] / most if name in LOWER_IS_BETTER else 1 - cell[name] / most
    percent = round(75 * min(max(loss, 0.0), 1.0))
    style = f"background: color-mix(in srgb, var(--series-2) {percent}%, transparent)"
    interval = cell["ci95"][name]
    title = f' title="{number(interval[0], name)} to {number(interval[1], name)}"' if interval else ""
    return HtmlCell(f'<td style="{style}"{title}>{number(cell[name], name)}</td>')


def worst_table(figures: dict[str, Any]) -> str:
    """The worst 5 % of each row's runs."""
    head = ["row", "family", "seed", "ending", "EPDMS-style", "of unpruned", "NeuroNCAP", "route"]
    body = [
        [
            each["row"], each["family"], each["seed"], each["ending"], number(each["epdms_style"], "epdms_style"),
            number(each["unpruned_epdms_style"], "epdms_style"), number(each["neuroncap"], "neuroncap"),
            number(each["route_completion"], "route_completion"),
        ]
        for each in figures["worst"]
    ]  # fmt: skip
    return table(head, body)


def table(head: Sequence[str], body: Iterable[Sequence[object]]) -> str:
    """HTML of a table; cells that are ``HtmlCell`` are whole ``<td>`` elements."""
    heads = "".join(f'<th scope="col">{escape(str(cell))}</th>' for cell in head)
    rows = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in body)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


def _cell(value: object) -> str:
    return value if isinstance(value, HtmlCell) else f"<td>{escape(str(value))}</td>"
