"""The figures of a command's JSON that are worth committing: one row a line, six digits, without curves and bins.

fastdrive evaluate data/sim_test --split test --json runs/tiny_evaluate.json
python -m benchmarks.studies.summary runs/tiny_evaluate.json benchmarks/results/tiny_evaluate.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

LEFT_OUT = {
    *("l2_at_t", "intersection", "judged"),  # of `evaluate`; the L2 averaged to t and the collision rate stay
    *("reliability_before", "reliability_after", "precision_by_camera"),  # of `calibrate` and `score --calibrated`
    "by_keyframe",  # of `score` with temporal terms
    *("p90_ms", "p99_ms", "worst_ms", "runs"),  # of timings; median and least stay
}
DIGITS = 6


def summarize(value: Any) -> Any:
    """The value without what is left out, numbers rounded to six significant digits."""
    if isinstance(value, dict):
        kept = {name: summarize(entry) for name, entry in value.items() if name not in LEFT_OUT}
        return {name: entry for name, entry in kept.items() if not _is_left_out(value[name])}
    if isinstance(value, list):
        return [summarize(entry) for entry in value if not _is_left_out(entry)]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _is_left_out(entry: Any) -> bool:
    """Whether it compares a figure that is left out."""
    return isinstance(entry, dict) and entry.get("figure") in LEFT_OUT


def to_text(value: Any, indent: str = "") -> str:
    """JSON with a line for each entry of a list and for each object that holds only flat ones."""
    inner = indent + "  "
    if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        return "[\n" + ",\n".join(inner + json.dumps(entry) for entry in value) + f"\n{indent}]"
    if isinstance(value, dict) and any(_depth(entry) > 1 for entry in value.values()):
        lines = (f"{inner}{json.dumps(name)}: {to_text(entry, inner)}" for name, entry in value.items())
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    return json.dumps(value)


def _depth(value: Any) -> int:
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if entries is None else 1 + max(map(_depth, entries), default=0)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="JSON of a command; its summary replaces it")
    for file in parser.parse_args(arguments).files:
        summary = to_text(summarize(json.loads(file.read_text())))
        file.write_text(summary + "\n")


if __name__ == "__main__":
    main()
