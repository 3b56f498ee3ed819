"""Arguments that the subcommands of ``fastdrive sim`` share."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fastdrive_node.commands.options import add_json_argument

if TYPE_CHECKING:
    from fastdrive_sim.sources import ImageSpec

Spec = TypeVar("Spec", bound="ImageSpec")


def size(text: str) -> tuple[int, int]:
    """``280x168`` as (width, height), both 1 or more; an argparse type."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write WIDTHxHEIGHT, as in 280x168")
    return int(match[1]), int(match[2])


def add_image_arguments(parser: argparse.ArgumentParser, needs_seed: bool = True) -> None:
    """What is written where, from which world, and as which images."""
    from fastdrive_sim.domains import DEFAULT_DOMAIN, DOMAINS  # with numpy, which `sim drive --help` is without
    from fastdrive_sim.rig import DEFAULT_RIG, RIGS
    from fastdrive_sim.scenarios import DEFAULT, SCENARIOS

    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to write")
    parser.add_argument("--seed", type=int, required=needs_seed, help="decides the worlds; same seed, same bytes")
    parser.add_argument("--size", type=size, default=(280, 168), metavar="WxH", help="of each image (280x168)")
    parser.add_argument("--jpeg-quality", type=int, default=92, help="1 to 100 (92)")
    scenarios = "; ".join(f"{name}: {scenario.summary}" for name, scenario in SCENARIOS.items())
    parser.add_argument("--scenario", choices=tuple(SCENARIOS), default=DEFAULT, help=scenarios)
    rigs = "; ".join(f"{name}: {len(cameras)} cameras" for name, cameras in RIGS.items())
    parser.add_argument("--rig", choices=tuple(RIGS), default=DEFAULT_RIG, help=f"{rigs} (%(default)s)")
    looks = "; ".join(f"{name}: {domain.summary}" for name, domain in DOMAINS.items())
    parser.add_argument("--domain", choices=tuple(DOMAINS), default=DEFAULT_DOMAIN, help=f"{looks} (%(default)s)")
    add_json_argument(parser)


def read_spec(args: argparse.Namespace, kind: type[Spec]) -> Spec:
    """A ``DatasetSpec`` or ``BagSpec`` of the arguments. Raises UsageError for one that is out of range."""
    width, height = args.size
    values = {**vars(args), "width": width, "height": height}
    return kind(**{field.name: values[field.name] for field in fields(kind)})
