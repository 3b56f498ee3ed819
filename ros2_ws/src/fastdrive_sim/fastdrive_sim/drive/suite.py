"""Which runs a drive consists of: suites of scenarios, and the rows that drive each of them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from fastdrive_node.errors import UsageError
from fastdrive_sim.drive.families import FAMILIES
from fastdrive_sim.drive.types import CONSTANT_VELOCITY, EXPERT, DriveRow

SUITES = {"standard": 16, "smoke": 1}  # seeds of each family
TRAINING_SEEDS = 10**9  # scenarios of datasets have seeds from here on, and no drive has them
FULL = "none"  # the pruner that keeps everything


@dataclass(frozen=True)
class ScenarioKey:
    """One scenario of a suite."""

    family: str
    seed: int


def scenarios(suite: str, families: Sequence[str], runs: int | None, seed: int) -> list[ScenarioKey]:
    """
    Args:
        suite: a key of ``SUITES``.
        families: all of them where empty; one that is named twice counts once.
        runs: scenarios of each family; None for the suite's number.
        seed: of the first scenario of each family; the next ones follow.

    Raises:
        UsageError: an unknown suite or family, or a seed that is for training.
    """
    if suite not in SUITES:
        raise UsageError(f"--suite {suite}: give one of {', '.join(SUITES)}")
    check_families(families)
    number = SUITES[suite] if runs is None else runs
    if seed + number > TRAINING_SEEDS:
        raise UsageError(
            f"--seed {seed}: seeds from {TRAINING_SEEDS} on are those of training data; give a smaller one"
        )
    return [ScenarioKey(name, seed + index) for name in dict.fromkeys(families or FAMILIES) for index in range(number)]


def check_families(names: Sequence[str]) -> None:
    """Raises UsageError for one that there is not."""
    for name in names:
        if name not in FAMILIES:
            near = difflib.get_close_matches(name, FAMILIES, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UsageError(f"--family {name}: unknown; {hint}give one of {', '.join(FAMILIES)}")


def rows(
    pruners: Sequence[str], drops: Sequence[float], faults: Sequence[tuple[str, float]], latency_s: float
) -> list[DriveRow]:
    """The expert, constant velocity, and each pruner at each ratio without and with each fault.

    Raises UsageError for two rows that have one name.
    """
    chosen = [DriveRow(EXPERT, latency_s=latency_s), DriveRow(CONSTANT_VELOCITY, latency_s=latency_s)]
    for fault, severity in (("", 0.0), *faults):
        for pruner in pruners:
            ratios = (0.0,) if pruner == FULL else drops
            chosen += [DriveRow(pruner, float(drop), fault, severity, latency_s) for drop in ratios]
    chosen = list(dict.fromkeys(chosen))
    names = [row.name for row in chosen]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise UsageError(
            f"two rows are called {double}: give a pruner's file another name, and ratios and severities that differ "
            "in six digits"
        )
    return chosen
