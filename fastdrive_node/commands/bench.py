"""``fastdrive bench``: every stage against plain transformers in one run on this machine."""

from __future__ import annotations

import argparse
import sys

from fastdrive_node.cli import write_json
from fastdrive_node.commands.options import add_device_arguments, add_json_argument, add_model_arguments
from fastdrive_node.errors import UsageError

EXAMPLE = """example:
  fastdrive bench --drop 0.75 --json bench.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Time this package against plain transformers (sdpa attention, the same weights and inputs) stage by stage, "
        "in turns. transformers reads all visual tokens. Both start from preprocessed images and write as many tokens "
        "as transformers' own answer has. Times are medians."
    )
    parser.epilog = EXAMPLE
    add_model_arguments(parser)
    parser.add_argument("--runs", type=int, default=20, metavar="N", help="timed runs of each stage (default: 20)")
    add_device_arguments(parser)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> None:
    from fastdrive_node.benchmark.comparison import compare  # heavy imports, not needed for --help
    from fastdrive_node.devices import choose_device, choose_dtype
    from fastdrive_node.planning.loading import open_pipeline

    if args.runs < 1:
        raise UsageError(f"--runs: {args.runs}; give 1 or more")
    device = choose_device(args.device, "--device")
    pipeline = open_pipeline(args.vla, args.pruner, args.drop, device=device, dtype=choose_dtype(args.dtype, device))
    figures = compare(pipeline, args.runs)
    print(table(figures), file=sys.stderr if args.json == "-" else sys.stdout)
    write_json(figures, args.json)


def table(figures: dict) -> str:
    """The figures in lines for people."""
    lines = ["stage           ours [ms]   transformers [ms]"]
    for name, times in figures["stages"].items():
        lines.append(f"{name:12} {times['ours_ms']:12.2f} {times['transformers_ms']:19.2f}")
        if name == "encode":
            lines.append(f"{'prune':12} {figures['prune_ms']:12.2f} {'-':>19}")
    lines.append(
        f"{figures['kept_tokens']} of {figures['tokens']} visual tokens, {figures['answer_tokens']} answer tokens, "
        f"{figures['device']}"
    )
    lines.append(
        f"{figures['speedup_end_to_end']:.2f} times faster end to end, {figures['speedup_prefill']:.2f} times in the "
        f"prefill; the answer without dropping is {'the same' if figures['same_text'] else 'ANOTHER'}"
    )
    return "\n".join(lines)
