"""How many tokens of each camera a pruner keeps, from the run folder of an evaluation.

fastdrive evaluate data/sim_test --split test --vla models/tiny_wide --no-timing --out runs/wide
python -m benchmarks.studies.kept_by_camera runs/wide --vla models/tiny_wide --pruners reconpruner,reconpruner-plan \\
    --json benchmarks/results/kept_by_camera.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.studies.paired_runs import rows_of
from benchmarks.studies.summary import to_text
from fastdrive_node.families import read_vla


def kept_by_camera(run: Path, pruners: Sequence[str], cameras: Sequence[str], tokens: int) -> list[dict]:
    """Mean number of kept tokens of each camera, a row for each pruner and ratio.

    Args:
        tokens: of one camera; all have equally many.

    Raises ValueError: a pruner is not in the run, or a token is of none of the cameras.
    """
    found = rows_of(run)
    missing = set(pruners) - {name for name, _ in found}
    if missing:
        raise ValueError(f"{run}: has no row of {min(missing)}; evaluate it there")
    rows = []
    for (name, drop), tables in found.items():
        if name not in pruners:
            continue
        kept = [np.asarray(each) // tokens for table in tables for each in table.column("kept").to_pylist()]
        counts = np.array([np.bincount(each, minlength=len(cameras)) for each in kept])
        if counts.shape[1] > len(cameras):
            raise ValueError(f"{run}: tokens of more than {len(cameras)} cameras of {tokens}; give the run's own --vla")
        rows.append({"pruner": name, "drop": drop, **dict(zip(cameras, counts.mean(0).round(1).tolist(), strict=True))})
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the evaluation")
    parser.add_argument("--vla", type=Path, required=True, help="its VLA directory")
    parser.add_argument("--pruners", required=True, metavar="A,B")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    args = parser.parse_args(arguments)
    vla = read_vla(args.vla)
    cameras = vla.spec.cameras
    try:
        rows = kept_by_camera(args.run, args.pruners.split(","), cameras, vla.tokens // len(cameras))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    text = to_text({"tokens_of_a_camera": vla.tokens // len(cameras), "rows": rows})
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
