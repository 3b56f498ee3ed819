r"""What full and lite pruners cost beside the prefill that they shorten, at full size, on the paper's 3249 tokens.

    python -m benchmarks.studies.pruner_cost --json benchmarks/results/pruner_cost.json

Counted: FLOPs of matrix products and attention; half of the attention matrix where it is causal. Timed, with --runs
above 0: one layer of the language model with random weights on 3249 and on 812 tokens, and each pruner, which take
turns; a prefill is as many such layers as the model has. Text, embeddings and the last product are left out: they are
small, and the pruner's fraction is so slightly above what it is in a real prompt.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.studies.pruner_memory import FAMILY, SIZES, PrunerSize
from benchmarks.studies.summary import summarize, to_text
from benchmarks.studies.three_b import machine
from fastdrive_node.benchmark.timing import Case, measure
from fastdrive_node.pruning.lite import narrow_sizes
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_node.pruning.select import keep_count

LAYERS = {"3B": 36, "7B": 28}
SIDE = 57  # tokens of a row and column of the paper's image
TOKENS, DROP = SIDE * SIDE, 0.75
WIDTHS = (256, 512, 768)  # of lite pruners; the recipes have 512


def pruners(size: PrunerSize, device: str) -> dict[str, ReconPruner]:
    """The full pruner and the lite ones by name, with random weights."""
    text = size.config().text_config
    found = {}
    with torch.device(device):
        for width in (None, *WIDTHS):
            sizes = text if width is None else narrow_sizes(FAMILY, text, width)
            own = ReconPruner(FAMILY, sizes, token_width=width and size.text["hidden_size"])
            found["full" if width is None else f"lite {width}"] = own.requires_grad_(False).eval()
    return found


def causal_layer(size: PrunerSize, device: str) -> torch.nn.Module:
    """A layer of the language model, with random weights."""
    with torch.device(device):
        layer = FAMILY.pruner_layer(size.config().text_config)
    layer.self_attn.is_causal = True
    return layer.requires_grad_(False).eval()


def layer_flops(size: PrunerSize, tokens: int) -> int:
    """Of a causal layer on so many tokens."""
    layer, width = causal_layer(size, "meta"), size.text["hidden_size"]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(torch.zeros(1, tokens, width, device="meta"), (1, tokens), False)
    attention = 4 * tokens**2 * width  # two products, two FLOPs each
    return counter.get_total_flops() - attention // 2


def count(size: PrunerSize, layers: int) -> dict[str, Any]:
    """FLOPs of a prefill and of each pruner, and what follows for the speed-up."""
    kept = keep_count(TOKENS, DROP)
    prefill, pruned = (layers * layer_flops(size, tokens) for tokens in (TOKENS, kept))
    rows = []
    for name, pruner in pruners(size, "meta").items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            pruner(torch.zeros(1, TOKENS, pruner.width, device="meta"), (SIDE, SIDE))
        rows.append({"pruner": name, **_row(prefill, pruned, counter.get_total_flops())})
        rows[-1]["parameters"] = sum(parameter.numel() for parameter in pruner.parameters())
    return {"layers": layers, "tokens": TOKENS, "kept": kept, "limit": prefill / pruned, "rows": rows}


def _row(prefill: float, pruned: float, cost: float) -> dict[str, float]:
    """A pruner's fraction of the unpruned prefill, and how many times faster pruner and pruned prefill are."""
    return {"share": cost / prefill, "speedup": prefill / (pruned + cost)}


def time_layers(size: PrunerSize, layers: int, runs: int, dtype: torch.dtype) -> dict[str, Any]:
    """As ``count``, from medians in ms on the CPU; ``limit`` is without a pruner."""
    torch.manual_seed(0)
    kept, width = keep_count(TOKENS, DROP), size.text["hidden_size"]
    layer = causal_layer(size, "cpu").to(dtype)
    whole = torch.randn(1, TOKENS, width, dtype=dtype)
    ready = {name: pruner.to(dtype) for name, pruner in pruners(size, "cpu").items()}
    cases = {
        "layer": Case(lambda _: layer(whole, (1, TOKENS), False)),
        "pruned layer": Case(lambda _: layer(whole[:, :kept], (1, kept), False)),
        **{name: Case(lambda _, own=own: own(whole, (SIDE, SIDE))) for name, own in ready.items()},
    }
    ms = {name: each.median_ms for name, each in measure(cases, runs, torch.device("cpu"), warm_up=1).items()}
    prefill, pruned = layers * ms.pop("layer"), layers * ms.pop("pruned layer")
    rows = [{"pruner": name, "ms": own, **_row(prefill, pruned, own)} for name, own in ms.items()]
    settings = {"dtype": str(dtype).removeprefix("torch."), "threads": torch.get_num_threads(), "timed_runs": runs}
    return {**settings, "prefill_ms": prefill, "pruned_ms": pruned, "limit": prefill / pruned, "rows": rows}


def table(report: dict[str, Any]) -> str:
    """In Markdown: fractions and speed-ups, counted for each size, and timed where they were."""
    names = [row["pruner"] for row in next(iter(report["counted"].values()))["rows"]]
    columns = {f"{name}, counted": one for name, one in report["counted"].items()}
    columns |= {f"{name}, timed": one for name, one in report["timed"].items()}
    lines = ["| pruner | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines.append("| none | " + " | ".join(f"{one['limit']:.2f}x" for one in columns.values()) + " |")
    for place, name in enumerate(names):
        cells = [one["rows"][place] for one in columns.values()]
        lines.append(
            f"| {name} | " + " | ".join(f"{100 * c['share']:.2f} %, {c['speedup']:.2f}x" for c in cells) + " |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each at 3B; 0: only count (%(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="(%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    args = parser.parse_args(argv)
    timed = {}
    if args.runs:
        timed["3B"] = time_layers(SIZES["3B"], LAYERS["3B"], args.runs, getattr(torch, args.dtype))
    counted = {name: count(SIZES[name], layers) for name, layers in LAYERS.items()}
    report = json.loads(to_text(summarize({"machine": machine(), "counted": counted, "timed": timed})))
    print(table(report))
    if args.json is not None:
        args.json.write_text(to_text(report) + "\n")


if __name__ == "__main__":
    main()
