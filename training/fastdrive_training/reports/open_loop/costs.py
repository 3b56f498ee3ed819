"""What a pruner costs, beside no pruning."""

from __future__ import annotations

from dataclasses import dataclass

from fastdrive_training.reports.open_loop.figures import ResultRow, Tables
from fastdrive_training.reports.open_loop.labels import TIMES, amount_text, operations_text, times_text, tokens_text

HEADS = ("tokens", "FLOPs", "pruner", "prefill", "both", "decode", "peak memory")
NOTES = ("last layer", "", "ms", "ms", "ms", "ms a token", "MB")


@dataclass(frozen=True)
class CostCell:
    """A cost, and how many times less it is than without pruning (empty where that is not known)."""

    text: str
    times: str = ""


@dataclass(frozen=True)
class CostRow:
    """The costs of a pruner at a ratio, in the order of ``HEADS``."""

    pruner: str
    drop: float
    cells: tuple[CostCell, ...]


def cost_rows(tables: Tables) -> list[CostRow]:
    """Without pruning, then ratio by ratio; empty where nothing was measured."""
    lines = [line for lines in tables.lines.values() for line in lines]
    measured = [line for line in ([tables.whole, *lines] if tables.whole else lines) if line.costs]
    return [_row(line, tables.whole) for line in measured]


def _row(line: ResultRow, whole: ResultRow | None) -> CostRow:
    base = {} if whole is None or line is whole else _costs(whole)
    own = _costs(line)
    cells = [CostCell(_tokens(line), times_text(None if whole is None or line is whole else whole.tokens, line.tokens))]
    cells += [
        CostCell(
            operations_text(own.get(name)) if name == "flops" else amount_text(own.get(name)),
            times_text(base.get(name), own.get(name)),
        )
        for name in ("flops", "pruner_ms", "prefill_ms", "both_ms", "decode_ms_per_token", "peak_memory_mb")
    ]
    return CostRow(line.pruner, line.drop, tuple(cells))


def _costs(line: ResultRow) -> dict[str, float]:
    """With ``both_ms``, pruner and prefill; a pruner inside of the language model has its time in the prefill."""
    costs = dict(line.costs)
    if "prefill_ms" in costs:
        costs["both_ms"] = costs["prefill_ms"] + costs.get("pruner_ms", 0.0)
    return costs


def _tokens(line: ResultRow) -> str:
    """With those of each layer where they differ: ``48 (192 x 2, 48 x 2)``."""
    text = tokens_text(line.tokens)
    if not line.tokens_by_layer or len(set(line.tokens_by_layer)) == 1:
        return text
    runs: list[list[float]] = []
    for count in line.tokens_by_layer:
        if runs and runs[-1][0] == count:
            runs[-1][1] += 1
        else:
            runs.append([count, 1])
    return f"{text} ({', '.join(f'{tokens_text(count)} {TIMES} {times:g}' for count, times in runs)})"
