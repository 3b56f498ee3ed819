"""The open-loop figures of models/tiny_wide as Markdown, written into its card; its VLA never met a pruner.

fastdrive evaluate data/sim_test --split test --vla models/tiny_wide --no-timing --out runs/wide \\
    --json benchmarks/results/open_loop_wide.json
python -m benchmarks.studies.paired_runs runs/wide runs/wide --pruner reconpruner-plan \\
    --json benchmarks/results/open_loop_wide_paired.json
python -m benchmarks.studies.summary benchmarks/results/open_loop_wide*.json
python -m benchmarks.studies.wide_table
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from benchmarks import RESULTS

CARD = RESULTS.parents[1] / "models/tiny_wide/README.md"
OURS, DROPS = "reconpruner-plan", (0.25, 0.5, 0.75)
BEGIN, END = "<!-- figures: written by benchmarks/studies/wide_table.py -->", "<!-- end of figures -->"
FIGURES = ("l2_avg_to_t", "collision_any")


def table(results: Path = RESULTS, name: str = "open_loop_wide") -> str:
    """L2 in m / vehicles hit in percent, and refused answers in brackets, of each pruner at each ratio.

    A star: the paired 95 % interval of the difference to ``OURS`` is clear of zero.
    """
    found = json.loads((results / f"{name}.json").read_text())
    apart = {
        (one["other"], one["drop"], one["figure"])
        for one in json.loads((results / f"{name}_paired.json").read_text())["comparisons"]
        if not one["interval_95"][0] <= 0 <= one["interval_95"][1]
    }
    lines = ["| pruner | drop 0.25 | drop 0.5 | drop 0.75 |", "|---|---|---|---|"]
    for pruner in dict.fromkeys(row["pruner"] for row in found["rows"]):
        by_drop = {
            drop: [row for row in found["rows"] if (row["pruner"], row["drop"]) == (pruner, drop)]
            for drop in (0.0, *DROPS)
        }
        if by_drop[0.0]:  # constant velocity, and all tokens
            lines.append(f"| {pruner} | {_cell(by_drop[0.0], ('', ''))} | | |")
        else:
            stars = {d: tuple("*" if (pruner, d, figure) in apart else "" for figure in FIGURES) for d in DROPS}
            lines.append(f"| {pruner} | " + " | ".join(_cell(by_drop[drop], stars[drop]) for drop in DROPS) + " |")
    return "\n".join(lines)


def relative_table(pruners: Iterable[str], results: Path = RESULTS, name: str = "open_loop_wide") -> str:
    """What is left of the unpruned L2 and what the worst samples lose, as in docs/open_loop.md."""
    rows = json.loads((results / f"{name}.json").read_text())["rows"]
    lines = ["| pruner | drop 0.25 | drop 0.5 | drop 0.75 |", "|---|---|---|---|"]
    for pruner in pruners:
        cells = []
        for drop in DROPS:
            row = next(row for row in rows if (row["pruner"], row["drop"]) == (pruner, drop))
            tails, kept = row["tails"], row["relative_performance"]["l2_avg_to_t"]
            worst = f"{tails['worst5_loss']:.2f} / {100 * tails['new_collisions']:.1f}"
            cells.append(f"{100 * kept:.1f} / {100 * tails['loss_90_samples']:.0f} / {worst}")
        lines.append(f"| {pruner} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(rows: list[dict], stars: tuple[str, str]) -> str:
    l2 = np.mean([row["l2_avg_to_t"]["avg"] for row in rows])
    hits = 100 * np.mean([row["collision_any"]["avg"] for row in rows])
    refused = np.mean([row["refused"] for row in rows])
    return f"{l2:.3f}{stars[0]} / {hits:.2f}{stars[1]}" + (f" ({refused:.0f})" if refused >= 0.5 else "")


def filled(card: str, results: Path = RESULTS) -> str:
    """The card with its figures between the marks. Raises ValueError: the marks are not there."""
    before, begin, rest = card.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the marks {BEGIN} and {END} are not found")
    compared = ("random", "uniform", "coverage", "reconpruner", OURS)
    parts = [table(results), CAPTION, relative_table(compared, results)]
    return before + begin + "\n" + "\n\n".join(parts) + "\n" + end + after


CAPTION = (
    "Relative performance in L2 (unpruned over pruned, paired) in percent / percent of the keyframes that hold 90 %\n"
    "of the loss / mean loss in metres of the worst 5 % / new collisions in percent\n"
    "([what these are](../../docs/open_loop.md#what-is-counted)):"
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", type=Path, default=CARD, help="the file to write into (models/tiny_wide/README.md)")
    card = parser.parse_args(arguments).card
    card.write_text(filled(card.read_text()))


if __name__ == "__main__":
    main()
