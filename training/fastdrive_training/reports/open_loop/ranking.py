"""Who is first, and how ReconPruner compares with the first, with random and with the oracle."""

from __future__ import annotations

from dataclasses import dataclass

from fastdrive_training.evaluation.intervals import Difference
from fastdrive_training.reports.open_loop.figures import GROUND_TRUTH, SUBJECT, ResultRow, Tables
from fastdrive_training.reports.open_loop.labels import name_of, names_of, paired_text, ratio_text, value_text
from fastdrive_training.reports.pruner_run.findings import Level

JUDGED = ("l2_avg_to_t", "collision_polygon", "collision_any")
RANDOM, ORACLE = "random", "oracle"


@dataclass(frozen=True)
class Statement:
    """How ReconPruner compares in one figure at one ratio."""

    drop: float
    figure: str
    first: tuple[str, ...]  # the pruners with the lowest mean; several where they are equal
    is_first: bool
    within: bool | None  # of the paired interval of first; None where it is first, or where nothing can be paired
    against_random: str | None  # better, level or worse by the paired interval; None where it was not run
    against_oracle: str | None
    text: str

    @property
    def level(self) -> Level:
        """Good: first or level with it, and not worse than random; bad: worse than random."""
        if self.against_random == "worse":
            return Level.BAD
        holds = (self.is_first or self.within) and self.against_random in ("better", None)
        return Level.GOOD if holds else Level.WATCH


def statements(tables: Tables) -> list[Statement]:
    """One for each ratio and judged figure; none where ReconPruner was not run."""
    found = (_state(tables, drop, figure) for figure in JUDGED for drop in tables.lines)
    return [statement for statement in found if statement is not None]


def summary(found: list[Statement]) -> tuple[Level, str]:
    """All statements in one line."""
    if not found:
        return Level.WATCH, f"{name_of(SUBJECT)} was not run: nobody is compared with it"
    first, level = sum(one.is_first for one in found), sum(bool(one.within) for one in found)
    text = f"{name_of(SUBJECT)} is first in {first} of {len(found)} comparisons"
    if first < len(found):
        text += f", level with first in {level} more"
    levels = [one.level for one in found]
    return next(one for one in (Level.BAD, Level.WATCH, Level.GOOD) if one in levels), text


def verdict_of(paired: Difference) -> str:
    """What the interval of ReconPruner's figure less another's says; lower is better."""
    low, high = paired.interval
    return "better" if high < 0 else "worse" if low > 0 else "level"


def _state(tables: Tables, drop: float, figure: str) -> Statement | None:
    subject = tables.at(drop, SUBJECT)
    ranked = [line for line in tables.lines[drop] if line.is_ranked and figure in line.figures]
    if subject is None or figure not in subject.figures:
        return None
    best = min(line.figures[figure].value for line in ranked)
    first = [line for line in ranked if line.figures[figure].value == best]
    is_first = subject in first
    against = {name: _against(tables, drop, figure, name) for name in (RANDOM, ORACLE, first[0].pruner)}
    leader = against[first[0].pruner]
    within = None if is_first or leader is None else verdict_of(leader) != "worse"
    random, oracle = (paired and verdict_of(paired) for paired in (against[RANDOM], against[ORACLE]))
    parts = [_first_text(subject, first, figure, leader, within)]
    parts += [_other_text(figure, other, paired) for other in (RANDOM, ORACLE) if (paired := against[other])]
    text = f"{ratio_text(subject)}: {' '.join(parts)}"
    return Statement(drop, figure, tuple(line.pruner for line in first), is_first, within, random, oracle, text)


def _against(tables: Tables, drop: float, figure: str, name: str) -> Difference | None:
    """ReconPruner's figure less another's."""
    paired = tables.paired.get((drop, name, figure))
    return None if paired is None else paired.swapped


def _first_text(
    subject: ResultRow, first: list[ResultRow], figure: str, paired: Difference | None, within: bool | None
) -> str:
    own, best = (value_text(line.figures[figure].value, figure, unit=True) for line in (subject, first[0]))
    if subject in first:
        others = [line.pruner for line in first if line is not subject]
        return f"{name_of(SUBJECT)} is first with {own}" + (f", as {names_of(others)}." if others else ".")
    leader = names_of([line.pruner for line in first])
    if paired is None:
        return f"first is {leader} with {best}; {name_of(SUBJECT)} has {own}, and nothing can be paired."
    place = "within the paired interval of first" if within else "behind first by more than the paired interval"
    return f"first is {leader} with {best}; {name_of(SUBJECT)} has {own}, {place} ({paired_text(paired, figure)})."


def _other_text(figure: str, other: str, paired: Difference) -> str:
    word = verdict_of(paired)
    against = "choosing by the ground truth" if other in GROUND_TRUTH else "random"
    joined = {"better": "Better than", "level": "Level with", "worse": "Worse than"}[word]
    return f"{joined} {against} ({paired_text(paired, figure)})."
