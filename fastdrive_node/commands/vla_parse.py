"""``fastdrive vla parse``: recorded answers to waypoints or refusals, without the model."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from fastdrive_node.cli import write_json
from fastdrive_node.commands.options import add_json_argument

EXAMPLE = """example:
  fastdrive vla parse models/impromptu answers.jsonl --json parsed.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Read recorded answers of a VLA by the grammar of its vla.json. ANSWERS.jsonl has one answer a line: a JSON "
        'text, or an object with "text". Waypoints are of the rear axle in the ego frame, in metres.'
    )
    parser.epilog = EXAMPLE
    parser.add_argument("vla", metavar="DIR", type=Path, help="VLA directory; only its vla.json is read")
    parser.add_argument("answers", metavar="ANSWERS.jsonl", type=Path, help="recorded answers")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> None:
    from fastdrive_node.errors import AnswerError
    from fastdrive_node.families.spec import load_spec
    from fastdrive_node.planning.answer_format import parse_trajectory, read_answers

    spec = load_spec(args.vla)
    results: list[dict] = []
    for text in read_answers(args.answers):
        try:
            results.append({"waypoints": parse_trajectory(text, spec).waypoints_m.tolist()})
        except AnswerError as error:
            results.append({"reason": str(error)})
    parsed = sum("waypoints" in result for result in results)
    out = sys.stderr if args.json == "-" else sys.stdout
    print(f"{parsed} parsed, {len(results) - parsed} refused", file=out)
    reasons = Counter(result["reason"].rpartition(": ")[0] for result in results if "reason" in result)
    for reason, count in reasons.most_common(10):
        print(f"{count:6}  {reason}", file=out)
    write_json({"parsed": parsed, "refused": len(results) - parsed, "answers": results}, args.json)
