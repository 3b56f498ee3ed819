"""What the subcommands of ``fastdrive export`` share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def say(args: argparse.Namespace, text: str) -> None:
    """Print for people: on standard error where standard output carries the JSON."""
    print(text, file=sys.stderr if args.json == "-" else sys.stdout)


def add_source_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--vla", type=Path, metavar="DIR", help=f"VLA directory ({default})")
    parser.add_argument("--pruner", type=Path, metavar="FILE", help="ReconPruner file (the one in the VLA directory)")


def plain(value: object) -> str:
    """A figure or an entry of a manifest in one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "-"
    return str(value)
