"""The open-loop figures of models/tiny_wide as Markdown, written into its card and README; it never met a pruner.

fastdrive evaluate data/sim_test --split test --vla models/tiny_wide --no-timing --seeds 3 --out runs/wide \\
    --pruners none,random,uniform,coverage,ring-view,fastv,sparsevlm,sparsevlm-unmerged,vispruner,divprune,\\
cdpruner,prune2drive,prune2drive-input,dart,prumerge,matryoshka,reconpruner,reconpruner-plan,\\
reconpruner-plan-pooled,oracle \\
    --json benchmarks/results/open_loop_wide.json
python -m benchmarks.studies.paired_runs runs/wide runs/wide --pruner reconpruner-plan-pooled \\
    --json benchmarks/results/open_loop_wide_paired.json
python -m benchmarks.studies.summary benchmarks/results/open_loop_wide*.json
python -m benchmarks.studies.wide_table   # the comparisons with reconpruner are left out of the committed file

The same with ``_night`` and ``_rain`` behind ``sim_test``, ``runs/wide`` and ``open_loop_wide``, with ``--seeds 3`` too
and with none and the pruners of ``SHOWN``. The card must have the marks of a domain whose figures are there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from benchmarks import RESULTS, ROOT
from benchmarks.studies.paired_runs import is_clear
from benchmarks.studies.tiny_card import filled

CARD, README = ROOT / "models/tiny_wide/README.md", ROOT / "README.md"
DECISION = ROOT / "docs/decisions/0014-the-plan-on-the-kept-tokens.md"
PLAN = "reconpruner-plan"
OURS, DROPS = f"{PLAN}-pooled", (0.25, 0.5, 0.75)
SHOWN = ("random", "uniform", "coverage", "prune2drive", "matryoshka", "reconpruner", PLAN, OURS)
WRITER = "benchmarks/studies/wide_table.py"
UNITS: dict[str, tuple[str, int, int]] = {  # as shown, what the figure is multiplied by, digits
    "l2_avg_to_t": ("L2 [m]", 1, 3),
    "collision_any": ("vehicles hit [%]", 100, 2),
    "off_drivable": ("off the road [%]", 100, 1),
}
FIGURES = tuple(UNITS)
DOMAINS = ("night", "rain")  # that no training saw


def table(results: Path = RESULTS, name: str = "open_loop_wide", pruners: Iterable[str] = ()) -> str:
    """L2 in m / vehicles hit in % / off the road in %, and refused answers in brackets, of each pruner and ratio.

    ``pruners`` are the rows, all without it. A star: the paired 95 % interval of the difference to ``OURS`` is clear
    of zero; in ``open_loop_wide_before``, which is older than ``OURS``, that to ``PLAN``.
    """
    found = json.loads((results / f"{name}.json").read_text())
    apart = told_apart(results, name)
    lines = ["| pruner | drop 0.25 | drop 0.5 | drop 0.75 |", "|---|---|---|---|"]
    for pruner in tuple(pruners) or dict.fromkeys(row["pruner"] for row in found["rows"]):
        by_drop = {
            drop: [row for row in found["rows"] if (row["pruner"], row["drop"]) == (pruner, drop)]
            for drop in (0.0, *DROPS)
        }
        if by_drop[0.0]:  # constant velocity, and all tokens
            cell = _cell(by_drop[0.0], ("", "", ""))
            lines.append(f"| {pruner} | {cell} | | |")
        else:
            stars = {d: tuple("*" if (pruner, d, figure) in apart else "" for figure in FIGURES) for d in DROPS}
            lines.append(f"| {pruner} | " + " | ".join(_cell(by_drop[drop], stars[drop]) for drop in DROPS) + " |")
    return "\n".join(lines)


def told_apart(results: Path = RESULTS, name: str = "open_loop_wide") -> set[tuple[str, float, str]]:
    """The (pruner, ratio, figure) whose paired difference, to the row that :func:`table` says, is clear of zero."""
    return {
        (one["other"], one["drop"], one["figure"])
        for one in json.loads((results / f"{name}_paired.json").read_text())["comparisons"]
        if is_clear(one["interval_95"])
    }


def relative_table(pruners: Iterable[str], results: Path = RESULTS, name: str = "open_loop_wide") -> str:
    """What is left of the unpruned L2 and what the worst samples lose, as in docs/open_loop.md.

    Each is the mean of the seeds' figures; a line below the table names the rows that have several.
    """
    rows = json.loads((results / f"{name}.json").read_text())["rows"]
    lines, notes = ["| pruner | drop 0.25 | drop 0.5 | drop 0.75 |", "|---|---|---|---|"], []
    for pruner in pruners:
        by_drop = [_found(rows, pruner, drop) for drop in DROPS]
        lines.append(f"| {pruner} | {' | '.join(map(_losses, by_drop))} |")
        if len(by_drop[0]) > 1:
            notes.append(f"`{pruner}`: the mean of the figures of {len(by_drop[0])} seeds.")
    return "\n".join(lines + [line for note in notes for line in ("", note)])


def _found(rows: list[dict], pruner: str, drop: float) -> list[dict]:
    """The seeds of a row. Raises ValueError: it is not there."""
    found = [row for row in rows if (row["pruner"], row["drop"]) == (pruner, drop)]
    if not found:
        raise ValueError(f"the committed figures have no row {pruner} at {drop:g}; evaluate it too (--help)")
    return found


def _losses(rows: list[dict]) -> str:
    kept = np.mean([row["relative_performance"]["l2_avg_to_t"] for row in rows])
    names = ("loss_90_samples", "worst5_loss", "new_collisions")
    samples, worst, hits = (np.mean([row["tails"][name] for row in rows]) for name in names)
    return f"{100 * kept:.1f} / {100 * samples:.0f} / {worst:.2f} / {100 * hits:.1f}"


def _cell(rows: list[dict], stars: Sequence[str]) -> str:
    values = (float(np.mean([row[figure]["avg"] for row in rows])) for figure in FIGURES)
    shown = [number(value, figure) + star for value, figure, star in zip(values, FIGURES, stars, strict=True)]
    return joined(shown, float(np.mean([row["refused"] for row in rows])))


def number(value: float, figure: str, sign: str = "") -> str:
    """A figure in the unit of the tables: m or %. ``sign`` is "+" for a difference."""
    _, scale, digits = UNITS[figure]
    return f"{scale * value:{sign}.{digits}f}"


def joined(shown: Iterable[str], refused: float) -> str:
    """The texts of ``FIGURES``, and the refused answers in brackets where there are any."""
    return " / ".join(shown) + (f" ({refused:.0f})" if refused >= 0.5 else "")


def short_table(results: Path = RESULTS) -> str:
    """L2 in m of a few choices at each number of tokens."""
    rows = json.loads((results / "open_loop_wide.json").read_text())["rows"]
    lines = ["| visual tokens | 432 (all) | 324 | 216 | 108 |", "|---|---|---|---|---|"]
    whole = next(row for row in rows if row["pruner"] == "none")["l2_avg_to_t"]["avg"]
    for place, pruner in enumerate((OURS, PLAN, "reconpruner", "prune2drive", "matryoshka", "coverage", "random")):
        l2 = (np.mean([row["l2_avg_to_t"]["avg"] for row in _found(rows, pruner, drop)]) for drop in DROPS)
        first = "" if place else f"{whole:.3f}"
        lines.append(f"| {pruner} | {first} | " + " | ".join(f"{each:.3f}" for each in l2) + " |")
    return "\n".join(lines)


def pages(results: Path = RESULTS) -> dict[Path, dict[str, str]]:
    """What the pages hold, by the name of its marks."""
    card = {"figures": table(results), "losses": relative_table(SHOWN, results)}
    for domain in DOMAINS:
        name = f"open_loop_wide_{domain}"
        if (results / f"{name}.json").exists():
            card[domain] = table(results, name)
    decision = {"figures": table(results, "open_loop_wide_before")}  # of the pruner that was shipped first
    return {CARD: card, README: {"tiny_wide": short_table(results)}, DECISION: decision}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(arguments)
    for page, parts in pages().items():
        text = page.read_text(encoding="utf-8")
        for part, content in parts.items():
            text = filled(text, part, content, WRITER)
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
