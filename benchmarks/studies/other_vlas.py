"""The open-loop table on models/tiny and on VLAs that were trained with other prunings, as Markdown.

Example: python -m benchmarks.studies.other_vlas
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks import RESULTS

VLAS = {
    "by foreground (models/tiny)": "open_loop_sim",
    "either": "open_loop_vla_mixed",
    "at random": "open_loop_vla_random",
    "never": "open_loop_vla_none",
}
PRUNERS = (
    *("none", "random", "uniform", "fastv", "vispruner", "divprune", "cdpruner", "prune2drive"),
    *("reconpruner", "oracle"),
)
DROPS = (0.25, 0.5, 0.75)


def table(results: Path = RESULTS) -> str:
    """L2 in metres (mean of 1, 2 and 3 s) at 144, 96 and 48 tokens; in brackets how many of 600 answers were refused.

    A star: the paired 95 % interval of the difference to ReconPruner is clear of zero.
    """
    lines = ["| pruned in training | " + " | ".join(PRUNERS) + " |", "|---" * (len(PRUNERS) + 1) + "|"]
    for name, file in VLAS.items():
        figures = json.loads((results / f"{file}.json").read_text())
        cells = [" / ".join(_cell(figures, pruner, drop) for drop in DROPS) for pruner in PRUNERS[1:]]
        lines.append(f"| {name} | {_cell(figures, 'none', 0.0)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(figures: dict, pruner: str, drop: float) -> str:
    rows = [row for row in figures["rows"] if (row["pruner"], row["drop"]) == (pruner, drop)]
    l2 = np.mean([row["l2_avg_to_t"]["avg"] for row in rows])
    refused = np.mean([row["refused"] for row in rows])
    star = any(
        (one["pruner"], one["drop"], one["figure"]) == (pruner, drop, "l2_avg_to_t")
        and not one["interval_95"][0] <= 0 <= one["interval_95"][1]
        for one in figures["comparisons"]
    )
    return f"{l2:.2f}{'*' if star else ''}" + (f" ({refused:.0f})" if refused >= 1 else "")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files (benchmarks/results)")
    results = parser.parse_args(arguments).results
    print(table(results))


if __name__ == "__main__":
    main()
