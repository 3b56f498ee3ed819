"""``fastdrive metrics``: the figures of every open-loop convention for plans in a file."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from fastdrive_node.cli import write_json

if TYPE_CHECKING:
    from rich.table import Table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Judge the predictions of a JSON file as UniAD, ST-P3, VAD, BEV-Planner and SparseDrive / Impromptu-VLA do:\n"
        "L2, collision of the ego box, intersection with the road boundary. The file holds `scenarios`, each with\n"
        "`name`, `pred_xy_fwd_left` (null: a refused answer), `gt_xy_fwd_left`, `obstacles` and `boundary`; metres,\n"
        "x forward, y left, six steps of 0.5 s; a box is [x, y, yaw, length, width]. The JSON holds the figures of\n"
        "each scenario by its name."
    )
    parser.epilog = "example:\n  fastdrive metrics scenarios.json --json -"
    parser.add_argument("vectors", metavar="VECTORS.json", help="scenarios: predictions, ground truth, objects")
    parser.add_argument("--json", metavar="FILE", help="write the figures here; - is standard output")


def run(args: argparse.Namespace) -> None:
    """Raises InputError where the file or something in it is wrong."""
    from rich.console import Console  # heavy imports, not needed for --help

    from fastdrive_training.evaluation.metrics.vectors import figures, load_scenarios

    by_name = {scenario.name: figures(scenario) for scenario in load_scenarios(args.vectors)}
    Console(file=sys.stderr, width=None if sys.stderr.isatty() else 120).print(table(by_name))
    write_json(by_name, args.json)


def table(by_name: dict[str, dict]) -> Table:
    """The 3 s figures for people."""
    from rich.table import Table

    result = Table(title="at 3 s")
    result.add_column("scenario")
    for name in ("L2 avg-to-t [m]", "L2 at t [m]", "polygons", "ST-P3", "VAD", "UniAD", "BEV-Planner", "boundary"):
        result.add_column(name, justify="right")
    for name, row in by_name.items():
        if "refused" in row:
            result.add_row(name, "refused")
            continue
        bev = row["BEV-Planner"]["3s"]
        values = [
            row["plain"]["avg_to_1s_2s_3s"][2],
            row["plain"]["at_1s_2s_3s"][2],
            row["SparseDrive_ImpromptuVLA"]["obj_box_col_avg_to_1s_2s_3s"][2],
            row["STP3_avg_to_t"]["3s"]["obj_box_col"],
            row["VAD_avg_to_t"]["3s"]["obj_box_col"],
            row["UniAD_at_t"]["reported_box_col_1s_2s_3s"][2],
            bev["obj_box_col_any"],
            bev.get("boundary_intersection_any"),
        ]
        result.add_row(name, *("-" if value is None else f"{value:.3f}" for value in values))
    return result
