"""The closed loop's standard suite, without and with pruners: what is committed, and the tables of docs/closed_loop.md.

    fastdrive sim drive --suite standard --pruners none,reconpruner --drop 0.5 --workers 2 --out DIR --json half.json
    fastdrive sim drive --suite standard --pruners none --workers 2 --out DIR --json all.json
    python -m benchmarks.studies.closed_loop all.json half.json ...      # into benchmarks/results, then the page
    python -m benchmarks.studies.closed_loop                             # the page alone

The first file is the JSON of the call without a pruner, each other one that of a call with the row ``none`` and one or
more pruners. All must be of one ``--out``, so that the rows without a pruner are the same runs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import RESULTS, ROOT
from benchmarks.studies.summary import summarize, to_text
from benchmarks.studies.tiny_card import filled
from fastdrive_sim.drive.summary import LOWER_IS_BETTER

FILE, PAGE = RESULTS / "closed_loop_standard.json", ROOT / "docs" / "closed_loop.md"
WRITER = "benchmarks/studies/closed_loop.py"
SUITE_COMMAND = "fastdrive sim drive --suite standard --pruners none --workers 2 --out DIR --json F"
COMMAND = "fastdrive sim drive --suite standard --pruners none,PRUNER --drop DROP --workers 2 --out DIR --json F"
FULL, WITHOUT_PRUNER = "none", ("expert", "constant-velocity", "none")
MAIN = ("collision_rate", "route_completion", "epdms_style")
FAMILY = ("collision_rate", "epdms_style")  # of which the difference is kept for each family
CHANGED = 0.5  # difference of the EPDMS-style score from which on a run is listed
LISTED = "reconpruner"  # what the names of rows begin with whose runs are listed; others are there for comparison
FAULTS = ("collision", "off_road", "wrong_way", "red_light", "failed")  # events that explain a lost run
SCORES = {
    "collision_rate": "collision rate",
    "at_fault_rate": "at-fault rate",
    "neuroncap": "NeuroNCAP",
    "epdms_style": "EPDMS-style",
    "hd_score": "HD-Score",
    "route_completion": "route completion",
    "off_road_rate": "off-road rate",
    "red_light_rate": "red-light rate",
    **{term: term.upper() for term in ("nc", "dac", "ddc", "tlc", "ep", "ttc", "lk", "hc", "ec")},  # HC is comfort
    "refused": "refused plans",
    "plan_deviation_m": "plan deviation (m)",
    "plan_age_s": "plan age (s)",
}  # the others, late plans, superseded frame sets and failed runs, are 0 in lockstep without latency
SMALL = ("refused", "plan_age_s")  # shown with a digit more


def suite_part(call: dict[str, Any]) -> dict[str, Any]:
    """The rows without a pruner, from the JSON of the call of ``fastdrive sim drive`` that has no others.

    Raises:
        ValueError: it has others, which its hash would be of too.
    """
    others = [row["row"] for row in call["rows"] if row["row"] not in WITHOUT_PRUNER]
    if others:
        raise ValueError(f"file 1: it has the row {others[0]}; give the call with `--pruners none` first")
    rows = [_counted(row) for row in call["rows"]]
    families = [
        {"family": each["family"], "row": each["row"], **_family(each)}
        for each in call["families"]
        if each["row"] in WITHOUT_PRUNER
    ]
    hashed = {"deterministic_hash": call["deterministic_hash"]}
    return {"command": SUITE_COMMAND, **hashed, "rows": rows, "families": families}


def _counted(entry: dict[str, Any]) -> dict[str, Any]:
    """With the number of its runs by another name: ``summarize`` leaves ``runs`` out, which are timings elsewhere."""
    return {**entry, "scenarios": entry["runs"]}


def pruner_part(calls: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """``pruners`` of the committed file, from the JSON of calls of ``fastdrive sim drive``.

    Raises:
        ValueError: a call has no row ``none``, or its row is not that of the first call.
    """
    found: dict[str, Any] = {"command": COMMAND, "deterministic_hashes": {}}
    rows, families, comparisons, changed = {}, {}, {}, {}
    for place, call in enumerate(calls):
        full = next((row for row in call["rows"] if row["row"] == FULL), None)
        if full is None or full != next(row for row in calls[0]["rows"] if row["row"] == FULL):
            raise ValueError(f"file {place + 1}: its row `none` is not that of file 1; give calls with one --out")
        own = [row for row in call["rows"] if row["row"] not in WITHOUT_PRUNER]
        names = [row["row"] for row in own]
        if names:
            found["deterministic_hashes"][", ".join(names)] = call["deterministic_hash"]
        rows |= {row["row"]: {**_counted(row), "pruner": Path(row["pruner"]).stem} for row in own}  # of a file its name
        for each in call["families"]:
            if each["row"] in names:
                families.setdefault(each["row"], {})[each["family"]] = _family(each)
        for each in call["comparisons"]:
            by_family = {name: {key: of[key] for key in FAMILY} for name, of in each["families"].items()}
            shown = {"families": by_family} if each["against"] == FULL else {}
            comparisons[each["row"], each["against"]] = {**_counted(_without(each, "families")), **shown}
        listed = [name for name in names if name.startswith(LISTED)]
        for each in _changed(call["runs"], listed):
            changed[each["row"], each["family"], each["seed"]] = each
    lists = {"rows": rows, "comparisons": comparisons, "changed": changed}
    return {**found, **{name: list(entries.values()) for name, entries in lists.items()}, "families": families}


def _without(entry: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != name}


def _family(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name in MAIN} | {"epdms_style_ci95": entry["ci95"]["epdms_style"]}


def _changed(runs: Sequence[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Runs whose EPDMS-style score is far from that of all tokens, those that lost first."""
    full = {(run["family"], run["seed"]): run for run in runs if run["row"] == FULL}
    found = []
    for run in runs:
        other = full[run["family"], run["seed"]]
        if run["row"] not in names or abs(run["epdms_style"] - other["epdms_style"]) <= CHANGED:
            continue
        events = [f"{each['kind']} {each['detail']}".strip() for each in run["events"] if each["kind"] in FAULTS]
        found.append(
            {key: run[key] for key in ("row", "family", "seed", "ending", "epdms_style")}
            | {"unpruned_ending": other["ending"], "unpruned_epdms_style": other["epdms_style"], "events": events}
        )
    return sorted(found, key=lambda run: (run["row"], run["epdms_style"] - run["unpruned_epdms_style"]))


def suite_table(figures: dict[str, Any]) -> str:
    """Collision rate / route completion / EPDMS-style of the rows without a pruner, in all and by family."""
    cells: dict[str, dict[str, str]] = {"all": {row["row"]: _three(row) for row in figures["rows"]}}
    for each in figures["families"]:
        cells.setdefault(f"`{each['family']}`", {})[each["row"]] = _three(each)
    lines = ["| family | expert | constant velocity | models/tiny_drive |", "|---|---|---|---|"]
    for name in ("all", *sorted(cells.keys() - {"all"})):
        lines.append(f"| {name} | {' | '.join(cells[name][row] for row in WITHOUT_PRUNER)} |")
    return "\n".join(lines)


def _three(entry: dict[str, Any]) -> str:
    return " / ".join(f"{entry[name]:.2f}" for name in MAIN)


def row_table(figures: dict[str, Any]) -> str:
    """Each row with its intervals."""
    full = next(row for row in figures["rows"] if row["row"] == FULL)
    lines = [
        "| row | tokens kept | collisions | route completion | EPDMS-style |",
        "|---|---|---|---|---|",
        _row("all tokens", full),
    ]
    lines += [_row(row["row"], row) for row in figures["pruners"]["rows"]]
    return "\n".join(lines)


def _row(name: str, row: dict[str, Any]) -> str:
    cells = (f"{row[key]:.2f} ({row['ci95'][key][0]:.2f} to {row['ci95'][key][1]:.2f})" for key in MAIN)
    return f"| {name} | {100 * row['kept']:.0f} % | {' | '.join(cells)} |"


def difference_table(figures: dict[str, Any]) -> str:
    """Paired differences of every score to all tokens, bold where the interval does not hold 0, and what follows."""
    full = next(row for row in figures["rows"] if row["row"] == FULL)
    against = _against_all_tokens(figures)
    lines = ["| score | all tokens | " + " | ".join(against) + " |", "|---" * (len(against) + 2) + "|"]
    for key, title in SCORES.items():
        digits = 4 if key in SMALL else 3
        cells = (_difference(each["differences"][key], digits) for each in against.values())
        lines.append(f"| {title} | {full[key]:.{digits}f} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *map(_verdict, figures["pruners"]["comparisons"])])


def _verdict(comparison: dict[str, Any]) -> str:
    """In which scores a row is better and worse than another one, in a line."""
    groups: dict[str, list[str]] = {"worse in": [], "better in": [], "not told apart in": []}
    for key, title in SCORES.items():
        found = comparison["differences"][key]
        is_higher_worse = key in LOWER_IS_BETTER
        word = "worse in" if (found["difference"] > 0) == is_higher_worse else "better in"
        groups[word if is_clear(found) else "not told apart in"].append(title)
    told = "; ".join(f"{word} {', '.join(titles)}" for word, titles in groups.items() if titles)
    against = "all tokens" if comparison["against"] == FULL else comparison["against"]
    return f"- {comparison['row']} against {against}: {told}."


def _against_all_tokens(figures: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["row"]: each for each in figures["pruners"]["comparisons"] if each["against"] == FULL}


def is_clear(found: dict[str, Any]) -> bool:
    """Whether the interval of a difference does not hold 0."""
    low, high = found["ci95"]
    return low > 0 or high < 0


def _difference(found: dict[str, Any], digits: int) -> str:
    value, low, high = (f"{each:+.{digits}f}" for each in (found["difference"], *found["ci95"]))
    bold = "**" if is_clear(found) else ""
    return f"{bold}{value}{bold} ({low} to {high})"


def family_table(figures: dict[str, Any]) -> str:
    """Collision rate / EPDMS-style of each family and row; a star where the latter's difference is clear of 0."""
    cells = {each["family"]: {FULL: each} for each in figures["families"] if each["row"] == FULL}
    for row, families in figures["pruners"]["families"].items():
        for name, each in families.items():
            cells[name][row] = each
    against = _against_all_tokens(figures)
    lines = ["| family | all tokens | " + " | ".join(against) + " |", "|---" * (len(against) + 2) + "|"]
    for name in sorted(cells):
        shown = [_family_cell(cells[name][FULL])]
        for row, each in against.items():
            shown.append(_family_cell(cells[name][row]) + "*" * is_clear(each["families"][name]["epdms_style"]))
        lines.append(f"| `{name}` | {' | '.join(shown)} |")
    return "\n".join(lines)


def _family_cell(entry: dict[str, Any]) -> str:
    return f"{entry['collision_rate']:.2f} / {entry['epdms_style']:.2f}"


def changed_table(figures: dict[str, Any]) -> str:
    """Where the loss is, and the runs that a pruner changed most, with what happened in them."""
    lines = ["| row | run | all tokens | pruned | events |", "|---|---|---|---|---|"]
    for run in figures["pruners"]["changed"]:
        scores = (f"{run[name]:.2f}" for name in ("unpruned_epdms_style", "epdms_style"))
        events = "; ".join(dict.fromkeys(event.replace("_", " ") for event in run["events"])) or run["ending"]
        lines.append(f"| {run['row']} | `{run['family']}-{run['seed']}` | {' | '.join(scores)} | {events} |")
    told = (_losses(each, figures["pruners"]["changed"]) for each in _against_all_tokens(figures).values())
    return "\n".join([*told, "", *lines])


def _losses(comparison: dict[str, Any], changed: Sequence[dict[str, Any]]) -> str:
    """Where the loss of a row is, in a line."""
    own = [run["epdms_style"] - run["unpruned_epdms_style"] for run in changed if run["row"] == comparison["row"]]
    lost, loss = sum(each < 0 for each in own), comparison["loss"]
    unharmed, worst = (f"{100 * loss[name]:.0f} %" for name in ("unharmed", "share_of_worst5"))
    text = (
        f"- {comparison['row']}: {unharmed} of the scenarios lose nothing, and the worst 5 % of them have {worst} of "
    )
    counts = f"; runs that lose more than {CHANGED:g}: {lost}, that gain more: {len(own) - lost}"
    return f"{text}what is lost{counts if comparison['row'].startswith(LISTED) else ''}."


PARTS = {
    "standard suite": suite_table,
    "pruner rows": row_table,
    "differences of pruners": difference_table,
    "families and pruners": family_table,
    "runs that pruning changed": changed_table,
}


def complete(page: str, figures: dict[str, Any] | None = None) -> str:
    """The page with its tables written anew, from the committed figures unless others are given."""
    shown: dict[str, Any] = figures or json.loads(FILE.read_text())
    for part, table in PARTS.items():
        page = filled(page, part, table(shown), WRITER)
    return page


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", help="JSON of `fastdrive sim drive`; none: the page alone")
    files = parser.parse_args(arguments).files
    if files:
        calls = [json.loads(file.read_text()) for file in files]
        try:
            figures = summarize({**suite_part(calls[0]), "pruners": pruner_part(calls)})
        except ValueError as error:
            parser.error(str(error))
        FILE.write_text(to_text(figures) + "\n")
    PAGE.write_text(complete(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
