"""The figures of ``fastdrive bench`` as tables of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastdrive_node.benchmark.conditions import attention_answer, cache_answer
from fastdrive_node.benchmark.energy import SILENT

Row = Sequence[object]
OURS, STOCK = "ours", "transformers"
_SPREAD = {"ms": "ms", "p90_ms": "p90", "p99_ms": "p99", "worst_ms": "worst", "jitter_ms": "jitter"}


@dataclass(frozen=True)
class Table:
    """Cells of a table, and what a reader must know of it."""

    title: str
    header: Row
    rows: Sequence[Row]
    note: str = ""


STEPS = {
    "transformers": "transformers, generate",
    "lean": "this package, all tokens",
    "pruning": "+ pruning",
    "forced": "+ forced tokens",
    "drafts": "+ drafts",
    "engines": "+ engines",
}


def tables(figures: dict[str, Any]) -> Iterator[Table]:
    yield _stages(figures)
    yield _ablation(figures)
    if figures["large"] is not None:
        yield _large(figures["large"])
    yield _costs(figures)
    yield _floor(figures["floor"])
    if figures["engines"] is not None:
        yield Table("Engines", ("", ""), list(figures["engines"].items()))
    yield Table("What is asked of such figures", ("", ""), list(_questions(figures)))


def milliseconds(value: float) -> str:
    return f"{value:.2f}"


def _stages(figures: dict[str, Any]) -> Table:
    stages = dict(figures["stages"])
    if figures["paced"] is not None:
        stages[f"camera_to_plan, one each {figures['paced']['period_s']:g} s"] = figures["paced"]
    parts = list(_SPREAD.values())[1:]
    header = ("", "ours, ms", *parts, "transformers, ms", *parts, "ratio")
    note = (
        f"Medians; jitter is the standard deviation. Both take turns; before each run the machine rests for "
        f"{figures['rest_s'] * 1e3:g} ms or more, until the threads of the run before sleep."
    )
    return Table("Stages", header, [_stage(name, times) for name, times in stages.items()], note)


def _stage(name: str, times: dict[str, float]) -> Row:
    cells = [[milliseconds(times[f"{who}_{part}"]) for part in _SPREAD] for who in (OURS, STOCK)]
    return (name, *cells[0], *cells[1], f"{times['transformers_ms'] / times['ours_ms']:.2f}")


def _ablation(figures: dict[str, Any]) -> Table:
    rows = [
        (STEPS[row["with"]], milliseconds(row["median_ms"]), f"{row['forwards']:g}", f"{row['speedup']:.2f}")
        for row in figures["ablation"]
    ]
    note = (
        "Forwards are those behind the prefill, mean of the frame sets. The drafts of the forced tokens hold what the "
        "answer's format forces, and a token that no answer has in place of each token of a number; each is verified "
        "as other drafts are, so the answer is that of plain greedy decoding."
    )
    return Table(
        "From patches to the answer, one thing more in each row", ("", "ms", "forwards", "times faster"), rows, note
    )


def _large(figures: dict[str, Any]) -> Table:
    names = {
        "transformers": f"transformers, all {figures['tokens']} tokens",
        "ours": f"ours, {figures['kept_tokens']} tokens",
        "engines": f"ours by the language engine, {figures['kept_tokens']} tokens",
        "prune": "pruner",
    }
    rows = [_large_row(names[name], times, figures["speedup"].get(name)) for name, times in figures["rows"].items()]
    limit = figures["arithmetic_ratio"]
    note = (
        f"The VLA's own language model on {figures['tokens']} random visual tokens of one image, 57 x 57 as in the "
        f"paper, and the text of its prompt, {figures['prompt_tokens']} tokens in all. Only the prefill, without "
        "drafts, in turns; no image is encoded and no answer is written. The pruner runs in torch."
    )
    if limit is not None:
        note += f" The pruned prefill has {limit:g} times fewer operations, the pruner left out."
    return Table(
        f"Prefill at {figures['tokens']} visual tokens",
        ("", *_SPREAD.values(), "ratio with the pruner", "without"),
        rows,
        note,
    )


def _large_row(name: str, times: dict[str, Any], speedup: dict[str, float | None] | None) -> Row:
    if "error" in times:
        return (name, times["error"], *[""] * 6)
    spread = [milliseconds(times["median_ms" if part == "ms" else part]) for part in _SPREAD]
    ratios = [None, None] if speedup is None else [speedup["prefill"], speedup["prefill_alone"]]
    return (name, *spread, *("" if value is None else f"{value:.2f}" for value in ratios))


def _costs(figures: dict[str, Any]) -> Table:
    rows: list[Row] = [
        ("plans a second, one after the other", *_both(figures["plans_per_s"], ".2f")),
        ("weights, MiB", *_both(figures["weights_mib"], ".1f")),
        ("peak of the process, MiB: one figure, for it holds both", figures["peak_memory_mib"], ""),
    ]
    if figures["gpu_peak_mib"] is not None:
        rows.append(("peak of the GPU's memory in a run, MiB", *_both(figures["gpu_peak_mib"], "d")))
    energy = figures["energy"]
    joules = energy["joules_per_plan"]
    notes = [
        "All from camera to plan. Weights are those of model and pruner; of engines the size of their files. What runs "
        "in torch in both is in memory once."
    ]
    if joules is None:
        rows.append(("energy of a plan", SILENT, SILENT))
    else:
        for counter in joules[OURS]:
            rows.append((f"energy of a plan, {counter}, J", *(f"{joules[who][counter]:.3f}" for who in (OURS, STOCK))))
        notes.append(
            f"Energy is that of the whole package or board during {energy['plans']} plans one after the other, idle "
            "power and other processes included."
        )
    note = " ".join([*notes, *(f"{reason}." for reason in energy["reasons"])])
    return Table("Throughput, memory and energy", ("", "ours", "transformers"), rows, note)


def _both(values: dict[str, float], form: str) -> Row:
    return [format(values[who], form) for who in (OURS, STOCK)]


def _floor(bounds: dict[str, Any]) -> Table:
    named = {"encode": bounds["encode"], **{f"prefill, {name}": row for name, row in bounds["prefill"].items()}}
    named["decode, one forward"] = bounds["decode"]
    header = (
        "",
        "tokens",
        "GFLOP",
        "of it attention",
        "weights, MB",
        "at least, ms",
        *("ours, ms", "times that", "transformers, ms", "times that"),
    )
    note = (
        f"At least: the operations at {bounds['gflops_per_s']:g} GFLOP/s, or the weights read once at "
        f"{bounds['gbytes_per_s']:g} GB/s, whichever is longer. The rates are the best of torch's matrix product and "
        "of its copies (read and written) on this machine; another runtime may do better. Small weights stay in the "
        "processor's cache. A forward of ours runs a draft's tokens, of which one is counted. With an engine, encode "
        "has the pruner's scores in it, which are not counted."
    )
    return Table("What this machine needs at least", header, [_bound(name, row) for name, row in named.items()], note)


def _bound(name: str, row: dict[str, Any]) -> Row:
    cells: list[object] = []
    for who in (OURS, STOCK):
        ms = row["measured_ms"].get(who)
        cells += ["", ""] if ms is None else [milliseconds(ms), f"{ms / row['least_ms']:.1f}"]
    work = (f"{row['gflop']:.3f}", f"{row['attention_gflop']:.3f}", f"{row['gbytes'] * 1e3:.1f}")
    return (name, row["tokens"], *work, f"{row['least_ms']:.3f}", *cells)


def _questions(figures: dict[str, Any]) -> Sequence[Row]:
    same, of = figures["equal_answers"]
    full, all_of = figures["equal_to_transformers"]
    return (
        ("Can it be reproduced?", f"{figures['command']}; commit {figures['commit']}, seed 0"),
        ("Does the baseline use fast attention?", attention_answer(figures["baseline"])),
        ("Does the baseline use its cache?", cache_answer(figures["baseline"])),
        (
            "Is the pruner's time included?",
            f"yes, {milliseconds(figures['prune_ms'])} ms (an engine scores while it encodes), in every figure from "
            "camera or patches on and in the prefill's ratio at the top; not in the rows of prefill and decode",
        ),
        (
            "Are the answers equal?",
            f"all tokens against transformers: {full} of {all_of}; drafts and engines against plain greedy decoding of "
            f"the same pruned prompt: {same} of {of}",
        ),
    )
