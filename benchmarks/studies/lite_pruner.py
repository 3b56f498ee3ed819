r"""A lite pruner of several seeds against the full pruner that it was distilled from: token scores and plans.

    fastdrive evaluate data/sim_test --split test --pruners none,reconpruner --no-timing --out runs/eval_full
    for seed in 0 1 2; do
      fastdrive train distil_tiny_lite --set seed=$seed --set out=runs/lite_$seed
      fastdrive evaluate data/sim_test --split test --pruner runs/lite_$seed/reconpruner.safetensors \
          --pruners reconpruner --no-timing --out runs/eval_lite_$seed
    done
    python -m benchmarks.studies.lite_pruner data/sim_test --split test \
        --pruners models/tiny/reconpruner.safetensors runs/lite_{0,1,2}/reconpruner.safetensors \
        --runs runs/eval_full runs/eval_lite_{0,1,2} --json benchmarks/results/lite_pruner.json

The first pruner and run are the full one's. Scores are compared with mask coverage as by ``fastdrive score``; plans by
paired intervals over scenes, of each seed, and of the mean over the seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.studies.paired_runs import Key, rows_of, values_of
from benchmarks.studies.summary import summarize, to_text
from fastdrive_node.families import VISION, Vla, load_vla
from fastdrive_node.families.spec import default_vla_dir
from fastdrive_node.pruning.checkpoint import load_pruner
from fastdrive_training.data.adapters import ImageSource, open_source
from fastdrive_training.data.token_cache import encode_items
from fastdrive_training.evaluation.intervals import paired_difference
from fastdrive_training.scoring.score import score_figures, score_tokens

FIGURES = ("l2_avg_to_t", "collision_polygon", "collision_any")
MEAN = "lite, mean"


def names_of(count: int) -> list[str]:
    """Of so many pruners, the full one first."""
    return ["full", *(f"lite {seed}" for seed in range(count - 1))]


def scores(source: ImageSource, vla: Vla, files: Sequence[Path]) -> list[dict[str, Any]]:
    """The figures of ``fastdrive score`` of each pruner file; the images are encoded once."""
    pruners = [load_pruner(file, vla) for file in files]
    found: list[list[np.ndarray]] = [[] for _ in files]
    covered = []
    for item, tokens in encode_items(source, vla, "scoring"):
        covered.append(item.coverage(vla.spec.cameras, vla.grid))
        for pruner, own in zip(pruners, found, strict=True):
            own.append(score_tokens(pruner, tokens[None].numpy(), vla.grid))
    pairs = zip(names_of(len(files)), found, strict=True)
    return [{"pruner": name, **score_figures(np.concatenate(own), np.stack(covered))} for name, own in pairs]


def plans(runs: Sequence[Path]) -> dict[str, list[dict[str, Any]]]:
    """``rows``: figures of each run and ratio; ``comparisons``: each lite run, and their mean, less the full one.

    Raises ValueError: the runs are of different samples.
    """
    tables = [rows_of(run) for run in runs]
    rows = [
        {"pruner": name if key[0] == "reconpruner" else key[0], "drop": key[1], **_figures(own[key])}
        for name, own in zip(names_of(len(runs)), tables, strict=True)
        for key in own
    ]
    found = []
    for key in (key for key in tables[0] if key[0] == "reconpruner"):
        for figure in FIGURES:
            found += _differences(tables, key, figure)
    return {"rows": rows, "comparisons": found}


def _figures(tables: list[pa.Table]) -> dict[str, float | int]:
    means = {figure: float(np.nanmean(values_of(tables, figure))) for figure in FIGURES}
    return {**means, "refused": sum(sum(table.column("refused").to_pylist()) for table in tables)}


def _differences(tables: Sequence[dict[Key, list[pa.Table]]], key: Key, figure: str) -> list[dict[str, Any]]:
    if any(own[key][0].column("sample") != tables[0][key][0].column("sample") for own in tables):
        raise ValueError("the runs are evaluations of different samples")
    scenes = tables[0][key][0].column("scene").to_pylist()
    full, *each = (values_of(own[key], figure) for own in tables)
    subjects = {**dict(zip(names_of(len(tables))[1:], each, strict=True)), MEAN: np.nanmean(each, axis=0)}
    found = []
    for name, values in subjects.items():
        pair = paired_difference(values, full, scenes)
        if pair is not None:
            row = {"pruner": name, "drop": key[1], "figure": figure, "difference": pair.difference}
            found.append({**row, "interval_95": list(pair.interval), "samples": pair.samples})
    return found


def tables(report: dict[str, Any]) -> list[str]:
    """In Markdown: the token scores, and the plans with their differences."""
    heads = ["pruner", "AUROC", "average precision", "recall at keep 0.75 / 0.5 / 0.25", "above zero"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in report["scores"]:
        recall = " / ".join(f"{row['recall'][keep]:.3f}" for keep in ("0.75", "0.5", "0.25"))
        cells = (f"{row['auroc']:.4f}", f"{row['average_precision']:.3f}", recall, f"{row['positive_share']:.3f}")
        lines.append(f"| {row['pruner']} | {' | '.join(cells)} |")
    drops = sorted({row["drop"] for row in report["comparisons"]})
    plans = ["| pruner | " + " | ".join(f"drop {drop:g}" for drop in drops) + " |", "|---" * (len(drops) + 1) + "|"]
    known = {(row["pruner"], row["drop"], row["figure"]): row for row in report["comparisons"]}
    means = {(row["pruner"], row["drop"]): row for row in report["rows"]}
    for name in (*dict.fromkeys(row["pruner"] for row in report["rows"] if row["pruner"] != "none"), MEAN):
        cells = []
        for drop in drops:
            own, pair = means.get((name, drop)), known.get((name, drop, "l2_avg_to_t"))
            text = "" if own is None else f"{own['l2_avg_to_t']:.3f} ({own['refused']})"
            if pair is not None:
                low, high = (1000 * end for end in pair["interval_95"])
                text += f" {1000 * pair['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
            cells.append(text.strip())
        plans.append(f"| {name} | {' | '.join(cells)} |")
    return ["\n".join(lines), "\n".join(plans)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="with masks")
    parser.add_argument("--split", help="of the dataset (all)")
    parser.add_argument("--vla", type=Path, metavar="DIR", help="VLA directory (the shipped tiny one)")
    parser.add_argument("--pruners", type=Path, nargs="+", required=True, metavar="FILE", help="the full one first")
    parser.add_argument("--runs", type=Path, nargs="+", required=True, metavar="DIR", help="in the same order")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    args = parser.parse_args(arguments)
    if len(args.pruners) != len(args.runs):
        parser.error(f"--runs: {len(args.runs)} runs of {len(args.pruners)} pruners; give one for each")
    judged = plans(args.runs)
    vla = load_vla(args.vla or default_vla_dir(), parts=frozenset({VISION}))
    source = open_source(args.dataset, args.split, cameras=vla.spec.cameras, all_splits=True)
    found = {"dataset": args.dataset.name, "split": args.split, "scores": scores(source, vla, args.pruners), **judged}
    text = to_text(summarize(found))
    print(*tables(json.loads(text)), sep="\n\n")
    if args.json is not None:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
