"""Write the figures of models/tiny/README.md from the JSON files in benchmarks/results.

Example: python -m benchmarks.studies.tiny_card
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks import RESULTS, ROOT

CARD = ROOT / "models" / "tiny" / "README.md"
HEAD = ("pruner", "drop", "tokens", "1 s", "2 s", "3 s", "mean", "refused")


def figures(results: Path = RESULTS) -> str:
    """Tables and sentences in Markdown, from ``tiny_evaluate``, ``tiny_evaluate_shuffled`` and ``tiny_score``."""
    evaluate, shuffled, score = (
        json.loads((results / f"{name}.json").read_text())
        for name in ("tiny_evaluate", "tiny_evaluate_shuffled", "tiny_score")
    )
    own, blind = _row(evaluate, "none"), _row(shuffled, "none")
    straight = _row(evaluate, "constant-velocity")
    others = [row for row in evaluate["rows"] if row["pruner"] not in ("none", "constant-velocity")]
    rows = [_cells(own), _cells(blind, "none, images of another scene"), *map(_cells, others), _cells(straight)]
    l2 = _average(own)
    recall = " / ".join(f"{score['recall'][key]:.3f}" for key in ("0.75", "0.5", "0.25"))
    fractions = (f"{score[name]:.2f}" for name in ("positive_share", "foreground_share"))
    return "\n".join(
        [
            _table(HEAD, rows),
            "",
            f"{own['samples']} keyframes. The L2 is {l2 / _average(straight):.2f} times a constant-velocity plan's; "
            f"with another scene's images it is {_average(blind) / l2:.2f} times its own.",
            "",
            _table(
                (
                    "AUROC",
                    "average precision",
                    "recall at keep 0.75 / 0.5 / 0.25",
                    "positive tokens",
                    "foreground pixels",
                ),
                [(f"{score['auroc']:.3f}", f"{score['average_precision']:.3f}", recall, *fractions)],
            ),
        ]
    )


def _row(data: dict, pruner: str) -> dict:
    return next(row for row in data["rows"] if row["pruner"] == pruner)


def _average(row: dict) -> float:
    return row["l2_avg_to_t"]["avg"]


def _cells(row: dict, name: str | None = None) -> tuple[str, ...]:
    errors = ("-" if value is None else f"{value:.2f}" for value in row["l2_avg_to_t"].values())
    return (name or row["pruner"], f"{row['drop']:.2f}", str(row.get("tokens") or "-"), *errors, str(row["refused"]))


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def ablation(results: Path = RESULTS) -> str:
    """The tables of ``pruner_ablation``."""
    return (results / "pruner_ablation.md").read_text(encoding="utf-8").strip()


def filled(card: str, part: str, text: str, writer: str = "benchmarks/studies/tiny_card.py") -> str:
    """The card with ``text`` between the two marks of ``part``.

    Raises:
        ValueError: a mark is missing.
    """
    begin, end = f"<!-- {part}: written by {writer} -->", f"<!-- end of {part} -->"
    for mark in (begin, end):
        if mark not in card:
            raise ValueError(f"the mark {mark} is not found; put it on a line of the page")
    before, after = card.index(begin) + len(begin), card.index(end)
    return f"{card[:before]}\n{text}\n{card[after:]}"


def complete(card: str) -> str:
    """The card with every part written anew."""
    return filled(filled(card, "figures", figures()), "ablation", ablation())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    CARD.write_text(complete(CARD.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
