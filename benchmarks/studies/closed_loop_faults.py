"""The closed loop under faults: scores against severity, with all tokens and with those that a pruner keeps.

    fastdrive sim drive --runs 2 --pruners none,reconpruner --drop 0.5 --fault black:0.5 --fault ... --out DIR --json F
    python -m benchmarks.studies.closed_loop_faults F      # into benchmarks/results, then the page and its picture
    python -m benchmarks.studies.closed_loop_faults        # page and picture alone

``F`` is the JSON of one call with the row ``none`` and one pruner; which faults it has is told by its rows.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import RESULTS, ROOT
from benchmarks.studies.closed_loop import FULL, PAGE, WITHOUT_PRUNER, is_clear
from benchmarks.studies.summary import summarize, to_text
from benchmarks.studies.tiny_card import filled
from fastdrive_sim.drive.families import FAMILIES
from fastdrive_sim.drive.faults import FAULTS
from fastdrive_sim.drive.report.severity import fault_lines

FILE, PICTURE = RESULTS / "closed_loop_faults.json", ROOT / "docs" / "images" / "closed_loop_faults.png"
WRITER = "benchmarks/studies/closed_loop_faults.py"
SHOWN = ("epdms_style", "collision_rate", "route_completion", "refused")
ROW = ("row", "pruner", "drop", "fault", "failed", *SHOWN)


def figures_of(call: dict[str, Any]) -> dict[str, Any]:
    """What is committed, from the JSON of a call of ``fastdrive sim drive``.

    Raises:
        ValueError: there is no row ``none``, no pruner or more than one, no fault, or a run failed.
    """
    rows = [row for row in call["rows"] if row["row"] not in WITHOUT_PRUNER or row["row"] == FULL]
    own = {(row["pruner"], row["drop"]) for row in rows}
    if len(own) != 2 or FULL not in {pruner for pruner, _ in own}:
        raise ValueError("give a call with `--pruners none,PRUNER` and one --drop")
    if not any(row["fault"] for row in rows):
        raise ValueError("no row has a fault; give --fault NAME:SEVERITY")
    failed = [row["row"] for row in rows if row["failed"]]
    if failed:
        raise ValueError(f"runs of {', '.join(failed)} failed, so their rows cannot be compared; drive them again")
    kept = [
        {
            **{key: row[key] for key in ROW},
            "pruner": Path(row["pruner"]).stem,
            "scenarios": row["runs"],
            "ci95": _only(row["ci95"]),
        }
        for row in rows
    ]
    return {
        "command": command(kept),
        "deterministic_hash": call["deterministic_hash"],
        "rows": kept,
        "comparisons": [
            {"row": each["row"], "against": each["against"], "differences": _only(each["differences"])}
            for each in call["comparisons"]
        ],
    }


def _only(values: dict[str, Any]) -> dict[str, Any]:
    return {key: values[key] for key in SHOWN}


def command(rows: list[dict[str, Any]]) -> str:
    """The call whose rows these are."""
    faults = " ".join(dict.fromkeys(f"--fault {row['fault']}" for row in rows if row["fault"]))
    pruned = next(row for row in rows if row["pruner"] != FULL)
    seeds = pruned["scenarios"] // len(FAMILIES)
    return (
        f"fastdrive sim drive --runs {seeds} --pruners none,{Path(pruned['pruner']).stem} "
        f"--drop {pruned['drop']:g} {faults} --workers 2 --out DIR --json F"
    )


def table(figures: dict[str, Any]) -> str:
    """EPDMS-style score / collision rate by fault and severity, and what the pruner changes under the fault."""
    rows = {(row["pruner"], row["fault"]): row for row in figures["rows"]}
    against = {(each["row"], each["against"]): each["differences"] for each in figures["comparisons"]}
    pruner = next(name for name, _ in rows if name != FULL)
    title = next(row["row"] for row in figures["rows"] if row["pruner"] == pruner and not row["fault"])
    lines = [f"| fault | severity | all tokens | {title} | difference |", "|---|---|---|---|---|"]
    for fault in dict.fromkeys(row["fault"] for row in figures["rows"]):
        cells = []
        for name in (FULL, pruner):
            row = rows[name, fault]
            clean = rows[name, None]["row"]
            star = "*" if fault and is_clear(against[row["row"], clean]["epdms_style"]) else ""
            cells.append(f"{row['epdms_style']:.2f}{star} / {row['collision_rate']:.2f}")
        found = against[rows[pruner, fault]["row"], rows[FULL, fault]["row"]]["epdms_style"]
        low, high = found["ci95"]
        bold = "**" if is_clear(found) else ""
        cells.append(f"{bold}{found['difference']:+.2f}{bold} ({low:+.2f} to {high:+.2f})")
        name, _, severity = (fault or "none:").partition(":")
        unit = f" {FAULTS[name].unit}" if fault else ""
        lines.append(f"| {f'`{name}`' if fault else name} | {severity}{unit} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(figures: dict[str, Any], file: Path = PICTURE) -> None:
    """The score against the severity of each fault, with 95 % intervals."""
    from matplotlib.figure import Figure

    faults = fault_lines(figures)
    picture = Figure(figsize=(11, 4.6), layout="constrained")
    axes = picture.subplots(2, (len(faults) + 1) // 2, sharey=True, squeeze=False).flat
    for each in axes:
        each.set_visible(False)
    for place, (fault, lines) in zip(picture.axes, faults.items(), strict=False):
        place.set_visible(True)
        for row, points in lines.items():
            known = [(each.severity, each.value, each.interval) for each in points if each.value is not None]
            at, bounds = [severity for severity, _, _ in known], [pair or (value, value) for _, value, pair in known]
            place.plot(at, [value for _, value, _ in known], marker="o", markersize=3, label=row)
            place.fill_between(at, [low for low, _ in bounds], [high for _, high in bounds], alpha=0.2)
        place.set_title(fault, fontsize=9)
        place.set_xlabel(FAULTS[fault].unit, fontsize=7)
        place.set_ylim(0, 1)
    picture.axes[0].set_ylabel("EPDMS-style", fontsize=8)
    picture.axes[0].legend(loc="lower left", fontsize=7)
    picture.savefig(file, dpi=110)


def complete(page: str, figures: dict[str, Any] | None = None) -> str:
    """The page with its table written anew, from the committed figures unless others are given."""
    return filled(page, "faults and pruners", table(figures or json.loads(FILE.read_text())), WRITER)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "file", type=Path, nargs="?", help="JSON of `fastdrive sim drive`; none: page and picture alone"
    )
    file = parser.parse_args(arguments).file
    if file is not None:
        try:
            figures = summarize(figures_of(json.loads(file.read_text())))
        except ValueError as error:
            parser.error(f"{file}: {error}")
        FILE.write_text(to_text(figures) + "\n")
    PAGE.write_text(complete(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    draw(json.loads(FILE.read_text()))


if __name__ == "__main__":
    main()
