"""``fastdrive vla init``: a VLA directory from a checkpoint as it is on the Hub."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

EXAMPLE = """examples:
  fastdrive vla init Impromptu-VLA-3B models/impromptu --template impromptu-1v
  fastdrive vla init Impromptu-VLA-3B models/impromptu6 --template impromptu-6v --preamble-in-prompt
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write vla.json and prompt.txt to OUT, beside links to the files of the checkpoint in HF_DIR. No file is "
        "copied, HF_DIR is not changed. Then `fastdrive vla check OUT` shows what the model will be asked."
    )
    parser.epilog = EXAMPLE
    add = parser.add_argument
    add("source", metavar="HF_DIR", type=Path, help="folder with config.json, tokenizer.json and *.safetensors")
    add("out", metavar="OUT", type=Path, help="folder to make; HF_DIR itself is allowed")
    add("--template", required=True, metavar="T", help="impromptu-1v, impromptu-6v, impromptu-waymo, or tiny")
    add("--camera-size", type=_size, metavar="WxH", help="of the cameras (default: those of the template)")
    add("--max-pixels", type=int, metavar="N", help="of an image that the model reads (default: as it was trained)")
    help_text = "give the model the constant beginning of its answer, so that it decodes fewer tokens"
    add("--preamble-in-prompt", action="store_true", help=help_text)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text}: give width x height in px, such as 1600x900")
    height, width = int(match[2]), int(match[1])
    if min(height, width) < 32 or max(height, width) > 16384:
        raise argparse.ArgumentTypeError(f"{text}: give sides of 32 to 16384 px")
    return height, width


def run(args: argparse.Namespace) -> None:
    from fastdrive_node.errors import UsageError
    from fastdrive_node.families.loading import read_config
    from fastdrive_node.families.templates import TEMPLATES, init_vla

    if args.template not in TEMPLATES:
        raise UsageError(f"--template {args.template}: use {', '.join(TEMPLATES)}")
    if args.max_pixels is not None and not 784 <= args.max_pixels <= 1 << 26:
        raise UsageError(f"--max-pixels {str(args.max_pixels)[:20]}: give 784 to {1 << 26}")
    if str(args.out) in ("", "."):
        raise UsageError("OUT: give the name of a folder")
    family, config = read_config(args.source)
    multiple = family.pixels_per_token(config)
    spec = init_vla(
        args.source, args.out, args.template, multiple, args.camera_size, args.max_pixels, args.preamble_in_prompt
    )
    height, width = spec.image_size
    tokens = (height // multiple) * (width // multiple)
    print(f"{args.out}: {', '.join(spec.cameras)}; images of {width}x{height} px, {tokens} visual tokens each")
    print(f"next: fastdrive vla check {args.out}")
