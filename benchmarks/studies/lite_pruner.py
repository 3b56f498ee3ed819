r"""A lite pruner of several seeds against the full pruner that it was distilled from: token scores and plans.

    fastdrive evaluate data/sim_test --split test --pruners none,reconpruner --no-timing --out runs/eval_full
    for seed in 0 1 2; do
      fastdrive train distil_tiny_lite --set seed=$seed --set out=runs/lite_$seed
      fastdrive evaluate data/sim_test --split test --pruner runs/lite_$seed/reconpruner.safetensors \
          --pruners reconpruner --no-timing --out runs/eval_lite_$seed
    done
    python -m benchmarks.studies.lite_pruner data/sim_test --split test \
        --pruners models/tiny/reconpruner.safetensors runs/lite_{0,1,2}/reconpruner.safetensors \
        --runs runs/eval_full runs/eval_lite_{0,1,2} --fit data/sim_val --json benchmarks/results/lite_pruner.json

The first pruner and run are the full one's. Scores are compared with mask coverage as by ``fastdrive score``; plans by
paired intervals over scenes, of each seed, and of the mean over the seeds. ``--fit`` adds a control: the linear
function of a token that is nearest to the full pruner's scores on this dataset.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from benchmarks.studies.paired_runs import Key, rows_of, values_of
from benchmarks.studies.summary import summarize, to_text
from fastdrive_node.families import VISION, Vla, load_vla
from fastdrive_node.families.spec import default_vla_dir
from fastdrive_node.pruning.checkpoint import load_pruner
from fastdrive_training.data.adapters import ImageSource, open_source
from fastdrive_training.data.sampling import evenly_spaced
from fastdrive_training.data.token_cache import encode_items
from fastdrive_training.distil.trainer import overlap
from fastdrive_training.evaluation.intervals import known_mean, paired_difference
from fastdrive_training.scoring.score import score_figures, score_tokens

FIGURES = ("l2_avg_to_t", "collision_polygon", "collision_any")
MEAN, LINEAR = "lite, mean", "linear"
FITTED = 200  # keyframes of --fit
DROPS = (0.25, 0.5, 0.75)


def names_of(count: int) -> list[str]:
    """Of so many pruners, the full one first."""
    return ["full", *(f"lite {seed}" for seed in range(count - 1))]


def scores(source: ImageSource, vla: Vla, files: Sequence[Path], fit: ImageSource | None) -> list[dict[str, Any]]:
    """The figures of ``fastdrive score`` of each pruner file, and which of the full one's tokens it chooses, too."""
    pruners: dict[str, Any] = {
        name: load_pruner(file, vla) for name, file in zip(names_of(len(files)), files, strict=True)
    }
    if fit is not None:
        pruners[LINEAR] = linear_pruner(fit, vla, pruners["full"])
    found: dict[str, list[np.ndarray]] = {name: [] for name in pruners}
    covered = []
    for item, tokens in encode_items(source, vla, "scoring"):
        covered.append(item.coverage(vla.spec.cameras, vla.grid))
        for name, pruner in pruners.items():
            found[name].append(score_tokens(pruner, tokens[None].numpy(), vla.grid))
    all_scores = {name: np.concatenate(own) for name, own in found.items()}
    coverage, full = np.stack(covered), torch.from_numpy(all_scores["full"])
    return [
        {"pruner": name, **score_figures(own, coverage), "overlap": overlap(torch.from_numpy(own), full)}
        for name, own in all_scores.items()
    ]


def linear_pruner(source: ImageSource, vla: Vla, full: nn.Module) -> nn.Module:
    """The linear function of a token that is nearest to a pruner's scores, by least squares on ``FITTED`` keyframes."""
    items = [source[int(index)] for index in evenly_spaced(len(source), FITTED)]
    tokens = torch.stack([own for _, own in encode_items(items, vla, "fitting")]).flatten(0, 1)  # [images, n, D]
    with torch.inference_mode():
        wanted = full(tokens, vla.grid).flatten()
    rows = torch.cat([tokens.flatten(0, 1), torch.ones(len(wanted), 1)], 1)
    weights = torch.linalg.lstsq(rows.double(), wanted.double()[:, None], driver="gelsd").solution.float()
    return _Linear(weights[:-1, 0], weights[-1, 0])


class _Linear(nn.Module):
    """Scores of tokens by themselves."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)

    def forward(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        return tokens @ self.weight + self.bias


def plans(runs: Sequence[Path]) -> dict[str, list[dict[str, Any]]]:
    """``rows``: figures of each run and ratio; ``comparisons``: each lite run, and their mean, less the full one.

    Raises ValueError: the runs are of different samples.
    """
    tables = [rows_of(run) for run in runs]
    rows = [
        {"pruner": name if key[0] == "reconpruner" else key[0], "drop": key[1], **_figures(own[key])}
        for name, own in zip(names_of(len(runs)), tables, strict=True)
        for key in own
        if key[0] in ("none", "reconpruner")
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
    subjects = {**dict(zip(names_of(len(tables))[1:], each, strict=True)), MEAN: known_mean(each)}
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
    heads.append("of the full one's tokens at drop 0.25 / 0.5 / 0.75")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in report["scores"]:
        recall = " / ".join(f"{row['recall'][keep]:.3f}" for keep in ("0.75", "0.5", "0.25"))
        same = " / ".join(f"{row['overlap'][f'{drop:g}']:.3f}" for drop in DROPS)
        cells = (f"{row['auroc']:.4f}", f"{row['average_precision']:.3f}", recall, f"{row['positive_share']:.3f}", same)
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
    parser.add_argument("--fit", type=Path, metavar="DATASET", help="adds the nearest linear function of a token")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    args = parser.parse_args(arguments)
    if len(args.pruners) != len(args.runs):
        parser.error(f"--runs: {len(args.runs)} runs of {len(args.pruners)} pruners; give one for each")
    judged = plans(args.runs)
    vla = load_vla(args.vla or default_vla_dir(), parts=frozenset({VISION}))
    source = open_source(args.dataset, args.split, cameras=vla.spec.cameras, all_splits=True)
    fit = None if args.fit is None else open_source(args.fit, cameras=vla.spec.cameras, all_splits=True)
    scored = scores(source, vla, args.pruners, fit)
    found = {"dataset": args.dataset.name, "split": args.split, "scores": scored, **judged}
    text = to_text(summarize(found))
    print(*tables(json.loads(text)), sep="\n\n")
    if args.json is not None:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
