r"""One table of rows from several run folders: seeds of a trained pruner, its controls, and what another folder has.

A run folder has one pruner file, so each seed and each control has a folder of its own; `--cache` keeps the tower's
tokens once for all:

    E="fastdrive evaluate data/sim_test --split test --vla models/tiny_wide --no-timing --cache runs/features"
    $E --seeds 3 --pruners none,random,uniform,coverage,prune2drive,oracle --out runs/wide
    for s in 0 1 2; do
        $E --pruners reconpruner --pruner runs/plan_$s/reconpruner.safetensors --out runs/wide_plan_$s
    done
    $E --pruners reconpruner --pruner runs/bias/reconpruner.safetensors --out runs/wide_bias
    python -m benchmarks.studies.pruner_seeds --base runs/wide --ours reconpruner-plan \
        --row reconpruner-plan=runs/wide_plan_0:reconpruner,runs/wide_plan_1:reconpruner,runs/wide_plan_2:reconpruner \
        --row camera-bias=runs/wide_bias:reconpruner --unranked camera-bias \
        --json benchmarks/results/seeds_wide.json
    python -m benchmarks.studies.seed_tables    # into the pages that have marks for it

A figure is the mean of the seeds' figures; for differences and relative performance the seeds are averaged sample by
sample, and only samples that both rows answered count. The intervals are of the scenes: what another training would
give is in the span of the seeds alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.studies.paired_runs import LEAST
from benchmarks.studies.run_rows import Cell, NamedRow, RunRow, Runs
from benchmarks.studies.seed_tables import figures_table, verdict_table
from benchmarks.studies.summary import summarize, to_text
from benchmarks.studies.wide_table import FIGURES
from fastdrive_training.evaluation.intervals import paired_difference, relative_performance

L2 = FIGURES[0]
RANDOM, WHOLE, STRAIGHT, ORACLE = "random", "none", "constant-velocity", "oracle"
NOT_PRUNED = (WHOLE, STRAIGHT)  # one row each, at ratio 0
Base = tuple[Path, Sequence[str]]  # a run folder and the pruners that are taken from it; none named: all


def compare(bases: Sequence[Base], rows: Sequence[NamedRow], ours: str, unranked: Sequence[str] = ()) -> dict:
    """The figures of every row, and what they say of ``ours``.

    Args:
        bases: rows that are taken as they are; of a base without names all that ``rows`` does not name.
        rows: rows with sources of their own.
        ours: the row that the others are compared with.
        unranked: rows that are shown and that ``ours`` need not be ahead of; ``oracle``, which knows the ground truth,
            always is.

    Returns ``rows`` (at each ratio; ``less_ours`` as :func:`difference` has it), ``verdicts`` (see :func:`verdict`) and
    what they belong to.
    Raises ValueError: runs of different evaluations, or a row that is missing, or there twice.
    """
    runs = Runs()
    chosen = _all_rows(runs, bases, rows)
    cells = {row.name: runs.cells(row) for row in chosen}
    drops = _common_drops(cells, ours, unranked)
    whole = cells[WHOLE][0.0]
    ranked = [name for name in cells if name not in (*NOT_PRUNED, ORACLE, *unranked)]
    return {
        "dataset": runs.dataset,
        "ours": ours,
        "unranked": [name for name in cells if name in (ORACLE, *unranked)],
        "samples": len(whole.scenes),
        "scenes": len(set(whole.scenes)),
        "sources": {row.name: [str(source) for source in row.sources] for row in chosen},
        "rows": [
            {"pruner": name, "drop": drop, **_figures(by_drop[drop], whole, cells[ours][drop] if drop else None)}
            for name, by_drop in cells.items()
            for drop in ((0.0,) if name in NOT_PRUNED else drops)
        ],
        "verdicts": [verdict(cells, ours, ranked, drop, figure) for drop in drops for figure in FIGURES],
    }


def _all_rows(runs: Runs, bases: Sequence[Base], rows: Sequence[NamedRow]) -> list[NamedRow]:
    """None first, then those of the bases, then those with sources of their own, and constant velocity last."""
    own = {row.name for row in rows}
    taken = []
    for run, names in bases:
        chosen = names or [name for name in runs.names(run) if name not in own]
        taken += [NamedRow(name, (RunRow(run, name),)) for name in chosen]
    places = {WHOLE: 0, STRAIGHT: 2}
    found = sorted([*taken, *rows], key=lambda row: places.get(row.name, 1))
    names = [row.name for row in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"the row {twice[0]} is there twice; name the pruners of a --base that it takes, as RUN:A,B")
    return found


def _common_drops(cells: dict[str, dict[float, Cell]], ours: str, unranked: Sequence[str]) -> list[float]:
    """The ratios of ``ours``, which every pruner must have. Raises ValueError: one lacks them, or a row is missing."""
    for name in (ours, RANDOM, WHOLE, *unranked):
        if name not in cells:
            raise ValueError(f"no row {name}; name it with --row, or give a --base that has it")
    drops = list(cells[ours])
    for name, by_drop in cells.items():
        if name not in NOT_PRUNED and not set(drops) <= set(by_drop):
            raise ValueError(f"{name}: has {_listed(by_drop)} and {ours} {_listed(drops)}; evaluate it at these ratios")
    return drops


def _listed(drops: Iterable[float]) -> str:
    return ", ".join(f"{drop:g}" for drop in drops)


def _figures(cell: Cell, whole: Cell, ours: Cell | None) -> dict:
    """Of one row and ratio; ``l2_of_seeds`` are the least and the largest, ``relative_l2`` as in docs/open_loop.md."""
    seeds = cell.means(L2)
    figures = {"seeds": len(seeds), "refused": cell.refused, **{figure: cell.mean(figure) for figure in FIGURES}}
    figures["l2_of_seeds"] = [min(seeds), max(seeds)]
    if ours is not None:
        figures["relative_l2"] = relative_performance(whole.values[L2], cell.values[L2])
    if ours is not None and ours is not cell:
        figures["less_ours"] = {figure: difference(cell, ours, figure) for figure in FIGURES}
    return figures


def difference(first: Cell, second: Cell, figure: str) -> list[float]:
    """How much larger a figure of the first row is, and the ends of the paired 95 % interval by scene.

    Raises ValueError: fewer than two scenes, or samples, are known to both.
    """
    found = paired_difference(first.values[figure], second.values[figure], first.scenes)
    if found is None:
        raise ValueError(f"{figure} is not known of two samples of each row; evaluate on a dataset that tells it")
    return [found.difference, *found.interval]


def verdict(cells: dict[str, dict[float, Cell]], ours: str, ranked: Sequence[str], drop: float, figure: str) -> dict:
    """Where ``ours`` is among the ranked rows in a figure; differences are ``ours`` less the other, above 0 is worse.

    All are paired: over the samples that both answered. ``best_other`` is the row that ``ours`` is worst against, and
    ``ahead`` are all rows that are better than ``ours``, clear of zero. ``place`` is ``behind`` where there are such;
    ``first`` where no row is better in the mean, which alone is not significant: the interval of ``less_best_other``
    says whether the lead is; else ``within``.
    """
    own = cells[ours][drop]
    less = {name: difference(own, cells[name][drop], figure) for name in ranked if name != ours}
    best = max(less, key=lambda name: less[name][0])
    ahead = [name for name, (_, low, _) in less.items() if low > LEAST]
    random = difference(own, cells[RANDOM][drop], figure)
    return {
        **{"drop": drop, "figure": figure},
        "place": "behind" if ahead else "within" if less[best][0] > LEAST else "first",
        **{"best_other": best, "less_best_other": less[best], "ahead": ahead},
        **{"better_than_random": random[2] < -LEAST, "less_random": random},
        "less_whole": difference(own, cells[WHOLE][0.0], figure),
    }


def parse_base(text: str) -> Base:
    """Of ``RUN`` or ``RUN:A,B``."""
    run, _, names = text.partition(":")
    return Path(run), names.split(",") if names else []


def parse_row(text: str) -> NamedRow:
    """Of ``NAME=RUN:PRUNER,RUN:PRUNER``. Raises ArgumentTypeError where it is not of this form."""
    name, _, sources = text.partition("=")
    pairs = [source.rpartition(":") for source in sources.split(",")]
    if not name or not all(run and pruner for run, _, pruner in pairs):
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=RUN:PRUNER,RUN:PRUNER")
    return NamedRow(name, tuple(RunRow(Path(run), pruner) for run, _, pruner in pairs))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--base", type=parse_base, action="append", required=True, metavar="RUN[:A,B]", help="rows as they are (all)")
    add("--row", type=parse_row, action="append", default=[], metavar="NAME=RUN:PRUNER,...", help="the seeds of a row")
    add("--ours", required=True, metavar="NAME", help="the row that the others are compared with")
    add("--unranked", default="", metavar="A,B", help="rows outside of the ranking, as the oracle always is")
    add("--json", type=Path, metavar="FILE", help="write the figures here, as a summary")
    args = parser.parse_args(arguments)
    unranked = [name for name in args.unranked.split(",") if name]
    try:
        found = summarize(compare(args.base, args.row, args.ours, unranked))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(figures_table(found), verdict_table(found), sep="\n\n")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(to_text(found) + "\n")


if __name__ == "__main__":
    main()
