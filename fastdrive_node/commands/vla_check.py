"""``fastdrive vla check``: what a VLA is asked, what that costs, and what does not fit."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fastdrive_node.cli import write_json
from fastdrive_node.commands.options import add_device_arguments, add_json_argument

if TYPE_CHECKING:
    from fastdrive_node.planning.inspection import VlaReport

EXAMPLE = """examples:
  fastdrive vla check models/impromptu
  fastdrive vla check models/impromptu front.jpg --json check.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Show the prompt that a VLA is given, its tokens, memory and expected time on this machine, and every mismatch "
        "between vla.json and the checkpoint. Weights of the tower and the language layers are not read. Exit 1 where "
        "there are problems."
    )
    parser.epilog = EXAMPLE
    parser.add_argument("vla", metavar="DIR", type=Path, help="VLA directory")
    parser.add_argument("images", metavar="IMAGE", nargs="*", type=Path, help="one of each camera, to compare sizes")
    add_device_arguments(parser, dtype=False)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> None:
    from fastdrive_node.commands.plan import order_images
    from fastdrive_node.devices import choose_device
    from fastdrive_node.errors import ModelError
    from fastdrive_node.families.spec import load_spec
    from fastdrive_node.planning.inspection import check_vla

    images = order_images(args.images, load_spec(args.vla).cameras) if args.images else []
    report = check_vla(args.vla, images, choose_device(args.device, "--device"))
    print(table(report), file=sys.stderr if args.json == "-" else sys.stdout)
    write_json(report.to_dict(), args.json)
    if report.problems:
        raise ModelError(f"{args.vla}: problems: {len(report.problems)}, see above")


def table(report: VlaReport) -> str:
    """The report in lines for people."""
    answer, (height, width) = report.answer_tokens, report.image_size
    others = "".join(f", of {name} {size[1]}x{size[0]} px" for name, size in report.image_sizes.items())
    lines = [
        "prompt:",
        *(f"  {line}" for line in report.prompt.splitlines()),
        "an answer:",
        f"  {report.example_answer}",
        f"family {report.family}; images of {width}x{height} px" + others,
        f"{report.visual_tokens} visual and {report.text_tokens} text tokens in the prompt; {answer.total} in this "
        f"answer: {answer.constant} constant, {answer.forced} forced, {answer.free} free",
        f"parameters: {report.parameters['vision'] / 1e9:.2f} B vision, {report.parameters['language'] / 1e9:.2f} B "
        f"language; {report.free_memory_gb:.1f} GB of memory are free",
    ]
    for dtype, memory in report.memory_gb.items():
        cost = report.cost[dtype]
        lines.append(
            f"as {dtype}: {memory:.2f} GB; about {cost.prefill_s:.2f} s to prefill and {cost.decode_s:.2f} s to "
            "decode, without pruning, by the machine's measured speed"
        )
    lines += [f"PROBLEM: {problem}" for problem in report.problems]
    return "\n".join(lines)
