"""The tables of ``pruner_seeds`` as Markdown, written into every page that has marks for them.

python -m benchmarks.studies.seed_tables

The marks of benchmarks/results/seeds_wide.json in a page, those of its verdicts with ``verdicts`` for ``figures``::

    <!-- seeds_wide figures: written by benchmarks/studies/seed_tables.py -->
    <!-- end of seeds_wide figures -->
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path

from benchmarks import RESULTS, ROOT
from benchmarks.studies.paired_runs import is_clear
from benchmarks.studies.tiny_card import filled
from benchmarks.studies.wide_table import FIGURES, UNITS, joined, number

WRITER = "benchmarks/studies/seed_tables.py"
MARK = re.compile(rf"^<!-- ((\w+) (figures|verdicts)): written by {WRITER} -->$", re.MULTILINE)
PLACES = """\
Differences are paired, over the samples that both answered; below zero is better, and a star is clear of zero. The best
other is the row that does best against ours. `first`: no other row is better in the mean, which alone is not
significant. `behind`: those named are better, clear of zero. `within`: another row is better, none clear of zero."""


def figures_table(found: dict) -> str:
    """L2 in m / vehicles hit in % / off the road in % of each row and ratio, and what is left of the unpruned L2.

    In brackets the span of the seeds' L2 where there are several, and at the end the refused answers. A star: the
    paired 95 % interval of the difference to our row is clear of zero.
    """
    drops = sorted({row["drop"] for row in found["rows"]} - {0.0})
    heads = ["pruner", "seeds", *(f"drop {drop:g}" for drop in drops), "relative L2 [%]"]
    lines = [heads, ["---"] * len(heads)]
    for pruner in dict.fromkeys(row["pruner"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["pruner"] == pruner]
        cells = [_cell(row) for row in rows] + [""] * (len(drops) - len(rows))
        relative = " / ".join(f"{100 * row['relative_l2']:.1f}" for row in rows if row.get("relative_l2") is not None)
        lines.append([pruner, str(rows[0]["seeds"]), *cells, relative])
    return _markdown(lines)


def _cell(row: dict) -> str:
    less, seeds = row.get("less_ours", {}), row["l2_of_seeds"]
    shown = [number(row[name], name) + ("*" if name in less and is_clear(less[name][1:]) else "") for name in FIGURES]
    if row["seeds"] > 1:
        shown[0] += f" ({' to '.join(number(each, FIGURES[0]) for each in seeds)})"
    return joined(shown, row["refused"])


def verdict_table(found: dict) -> str:
    """For each ratio and figure our place among the ranked rows, and our paired differences; and what a place means."""
    random = "better than random"
    heads = ["drop", "figure", found["ours"], "place", "the best other", "less that", random, "less all tokens"]
    lines = [heads, ["---"] * len(heads)]
    figures = {(row["pruner"], row["drop"]): row for row in found["rows"]}
    for one in found["verdicts"]:
        drop, name, best = one["drop"], one["figure"], one["best_other"]
        place = " ".join([one["place"], ", ".join(one["ahead"])]).strip()
        random = ("yes, " if one["better_than_random"] else "no, ") + _difference(one["less_random"], name)
        own, other = (number(figures[pruner, drop][name], name) for pruner in (found["ours"], best))
        cells = [f"{drop:g}", UNITS[name][0], own, place, f"{best} {other}"]
        lines.append([*cells, _difference(one["less_best_other"], name), random, _difference(one["less_whole"], name)])
    return f"{_markdown(lines)}\n\n{PLACES}"


def _difference(value: list[float], figure: str) -> str:
    shown, low, high = (number(each, figure, "+") for each in value)
    return f"{shown}{'*' if is_clear(value[1:]) else ''} ({low} to {high})"


def _markdown(lines: Iterable[list[str]]) -> str:
    return "\n".join("|" + "|".join(f" {cell} " if cell else " " for cell in line) + "|" for line in lines)


def complete(page: str, results: Path = RESULTS) -> str:
    """The page with everything between marks written anew from the JSON that the marks name.

    Raises:
        OSError: that file is missing.
        ValueError: a mark has no end.
    """
    for part, name, kind in MARK.findall(page):
        found = json.loads((results / f"{name}.json").read_text())
        page = filled(page, part, figures_table(found) if kind == "figures" else verdict_table(found), WRITER)
    return page


def pages(root: Path = ROOT) -> list[Path]:
    """The pages that have marks."""
    found = [root / "README.md", *(root / "models").glob("*/README.md"), *(root / "docs").rglob("*.md")]
    return sorted(page for page in found if page.is_file() and MARK.search(page.read_text(encoding="utf-8")))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(arguments)
    for page in pages():
        page.write_text(complete(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
