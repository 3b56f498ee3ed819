"""How much faster a pruned prefill is at the size of a 3B, on the CPU, beside what the arithmetic allows.

    python -m benchmarks.studies.prefill_3b --json benchmarks/results/prefill_3b.json

Two regimes: the paper's 3249 visual tokens alone, and what Impromptu-VLA reads of one front image with its text.
Random weights in float32. This package's prefill runs with 2 and with 4 layers on all tokens and on the kept ones, and
the full ReconPruner on the visual tokens; all take turns. What two layers add, 18 times, is the prefill of the 36.
Embeddings and the output layer are left out. Counted: FLOPs of matrix products, and half of a causal attention matrix.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.perf.random_models import SIZES as MODEL_SIZES
from benchmarks.perf.random_models import ModelSize, TorchLanguage, build_model, build_pruner, random_vla
from benchmarks.studies.pruner_cost import LAYERS, layer_flops
from benchmarks.studies.pruner_memory import SIZES, PrunerSize
from benchmarks.studies.summary import summarize, to_text
from benchmarks.studies.three_b import machine
from fastdrive_node.benchmark.timing import Case, measure
from fastdrive_node.pruning.select import keep_count

FEW, MORE = 2, 4  # layers that are timed
SHALLOW = {"depth": 1, "fullatt_block_indexes": [0]}  # of a vision encoder, which does not run
VOCABULARY = 256


@dataclass(frozen=True)
class Regime:
    """What a prompt holds."""

    grid: tuple[int, int]  # visual tokens: rows, columns
    text: int  # other tokens
    drop: float

    @property
    def visual(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def kept(self) -> int:
        """Visual tokens of the pruned prompt."""
        return keep_count(self.visual, self.drop)

    @property
    def lengths(self) -> tuple[int, int]:
        """Tokens of the whole and of the pruned prompt."""
        return self.text + self.visual, self.text + self.kept


REGIMES = {
    "3249 visual tokens": Regime((57, 57), 0, 0.75),
    "336 visual tokens and 586 of text": Regime((14, 24), 586, 0.5),
}


def counted(size: PrunerSize, layers: int, regime: Regime) -> tuple[float, float]:
    """The limit of the speed-up by FLOPs, without and with the pruner, which is a layer that sees all visual tokens."""
    whole, pruned = (layers * layer_flops(size, tokens) for tokens in regime.lengths)
    visual = regime.visual
    pruner = layer_flops(size, visual) + 2 * visual**2 * size.text["hidden_size"]  # attention in both directions
    return whole / pruned, whole / (pruned + pruner)


def _prefill(language: TorchLanguage, embeddings: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    tokens = embeddings if kept is None else embeddings[:, kept]
    length = tokens.shape[1]
    positions = language.position_inputs(torch.arange(length).expand(3, 1, length))
    return language.forward(tokens, positions, language.cache(1, length))


@torch.inference_mode()
def timed(shape: ModelSize, layers: int, regime: Regime, runs: int) -> dict[str, Any]:
    """Milliseconds of prefills of all ``layers`` and of the pruner, and the speed-up without and with it."""
    cpu, whole = torch.device("cpu"), regime.lengths[0]
    cases: dict[str, Case] = {}
    embeddings = torch.randn(1, whole, shape.text["hidden_size"])
    kept = torch.cat([torch.randperm(regime.visual)[: regime.kept].sort().values, torch.arange(regime.visual, whole)])
    for depth in (FEW, MORE):
        text = {**shape.text, "num_hidden_layers": depth, "vocab_size": VOCABULARY}
        model = build_model(replace(shape, text=text, vision={**shape.vision, **SHALLOW}), cpu, torch.float32, 0)
        language = TorchLanguage(random_vla(model, shape.scenes[0], 1))
        for name, places in (("all", None), ("kept", kept)):
            cases[f"{name} {depth}"] = Case(
                lambda _, language=language, places=places: _prefill(language, embeddings, places)
            )
    pruner = build_pruner(model, 0).module
    assert pruner is not None
    cases["pruner"] = Case(lambda _: pruner(embeddings[:, : regime.visual], regime.grid))
    ms = {name: each.median_ms for name, each in measure(cases, runs, cpu, warm_up=1).items()}
    all_ms, kept_ms = (layers * (ms[f"{n} {MORE}"] - ms[f"{n} {FEW}"]) / (MORE - FEW) for n in ("all", "kept"))
    return {
        "all_ms": all_ms,
        "kept_ms": kept_ms,
        "pruner_ms": ms["pruner"],
        "speedup": all_ms / kept_ms,
        "speedup_with_pruner": all_ms / (kept_ms + ms["pruner"]),
    }


def figures(name: str, runs: int) -> dict[str, Any]:
    """Of one regime."""
    regime, layers = REGIMES[name], LAYERS["3B"]
    limit, limit_with_pruner = counted(SIZES["3B"], layers, regime)
    found = timed(MODEL_SIZES["3b"], layers, regime, runs)
    return {
        "visual": regime.visual,
        "text": regime.text,
        "kept": regime.kept,
        "drop": regime.drop,
        "limit": limit,
        "limit_with_pruner": limit_with_pruner,
        **found,
        "reached": found["speedup"] / limit,
        "reached_with_pruner": found["speedup_with_pruner"] / limit_with_pruner,
    }


def table(regimes: dict[str, Any]) -> str:
    """In Markdown."""
    lines = [
        "| prompt | drop | limit | measured | limit with the pruner | measured with it |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in regimes.items():
        alone = f"{row['limit']:.2f} | {row['speedup']:.2f} ({row['reached']:.0%})"
        pruner = f"{row['limit_with_pruner']:.2f} | {row['speedup_with_pruner']:.2f} ({row['reached_with_pruner']:.0%})"
        lines.append(f"| {name} | {row['drop']:g} | {alone} | {pruner} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="of each case (%(default)s)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    if args.runs < 1:
        parser.error(f"--runs: {args.runs}; give 1 or more")
    load = os.getloadavg()[0]
    rows = {name: figures(name, args.runs) for name in REGIMES}
    print(table(rows))
    if args.json is not None:
        report = {"machine": machine(), "threads": torch.get_num_threads(), "load": load, "runs": args.runs}
        args.json.write_text(to_text(summarize({**report, "regimes": rows})) + "\n")


if __name__ == "__main__":
    main()
