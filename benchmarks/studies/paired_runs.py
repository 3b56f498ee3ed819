r"""Rows of one evaluation against those of another with the same samples: two pruner files on one VLA, for example.

fastdrive evaluate data/sim_val --split val --pruner A --out runs/a
fastdrive evaluate data/sim_val --split val --pruner B --pruners none,reconpruner --out runs/b
python -m benchmarks.studies.paired_runs runs/b runs/a --json paired.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fastdrive_training.evaluation.intervals import FIGURES, known_mean, paired_difference, sample_figures

Key = tuple[str, float]
LEAST = 1e-9  # an end of an interval nearer to 0 than this is 0


def rows_of(run: Path) -> dict[Key, list[pa.Table]]:
    """The lines of each pruner and ratio, a table for each seed. Raises ValueError: no finished run is there."""
    if not (run / "samples.parquet").is_file():
        raise ValueError(f"{run}: no finished run; make it with `fastdrive evaluate ... --out {run}`")
    table = pq.read_table(run / "samples.parquet")
    found: dict[Key, list[pa.Table]] = {}
    names = [table.column(name).to_pylist() for name in ("pruner", "drop", "seed")]
    for pruner, drop, seed in sorted(set(zip(*names, strict=True))):
        of_row = (pc.field("pruner") == pruner) & (pc.field("drop") == drop) & (pc.field("seed") == seed)
        found.setdefault((pruner, drop), []).append(table.filter(of_row))
    return found


def is_clear(interval: Sequence[float]) -> bool:
    """Whether zero lies outside of an interval and not at its ends."""
    low, high = interval
    return low > LEAST or high < -LEAST


def values_of(tables: Sequence[pa.Table], figure: str) -> np.ndarray:
    """A figure of each sample, float64 [samples]; the mean over the seeds that answered it."""
    return known_mean([sample_figures(table, figure) for table in tables])


def compare(first: Path, second: Path, pruner: str = "reconpruner") -> list[dict]:
    """``pruner`` of the first run less every row of the second at its ratio, and less its unpruned row.

    Raises ValueError: the runs are of different samples.
    """
    ours, theirs = rows_of(first), rows_of(second)
    found = []
    for (name, drop), tables in theirs.items():
        subjects = [key for key in ours if key[0] == pruner and (key[1] == drop or name == "none")]
        for key in subjects:
            if first == second and key == (name, drop):
                continue
            if ours[key][0].column("sample") != tables[0].column("sample"):
                raise ValueError(f"{first} and {second} are evaluations of different samples")
            scenes = tables[0].column("scene").to_pylist()
            for figure in FIGURES:
                difference = paired_difference(values_of(ours[key], figure), values_of(tables, figure), scenes)
                if difference is not None:
                    row = {"drop": key[1], "other": name, "figure": figure, "difference": difference.difference}
                    found.append({**row, "interval_95": difference.interval, "samples": difference.samples})
    return found


def table_of(run: Path) -> str:
    """L2 in metres, collisions in per cent and refused answers of each row, in Markdown."""
    lines = ["| pruner | drop | L2 | collisions | refused |", "|---|---|---|---|---|"]
    for (name, drop), tables in rows_of(run).items():
        l2, hits = (np.nanmean(values_of(tables, figure)) for figure in ("l2_avg_to_t", "collision_polygon"))
        refused = np.mean([sum(table.column("refused").to_pylist()) for table in tables])
        lines.append(f"| {name} | {drop:g} | {l2:.3f} | {100 * hits:.2f} | {refused:g} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, help="folder of the run whose pruner is judged")
    parser.add_argument("second", type=Path, help="folder of the run that it is judged against")
    parser.add_argument("--pruner", default="reconpruner", metavar="NAME", help="of the first run (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the differences here")
    args = parser.parse_args(arguments)
    try:
        print(table_of(args.first), table_of(args.second), sep="\n\n")
        differences = compare(args.first, args.second, args.pruner)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for row in differences:
        low, high = row["interval_95"]
        clear = " *" if is_clear(row["interval_95"]) else ""
        what = f"{row['figure']} at {row['drop']:g} less {row['other']}"
        print(f"{what}: {row['difference']:+.4f} [{low:+.4f}, {high:+.4f}]{clear}")
    if args.json:
        args.json.write_text(json.dumps({"pruner": args.pruner, "comparisons": differences}, indent=1) + "\n")


if __name__ == "__main__":
    main()
