"""Arguments that the commands over a dataset have in common. Nothing here imports torch: `--help` works without it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fastdrive_node.commands.options import add_device_arguments
from fastdrive_node.errors import UsageError
from fastdrive_node.files import SHIPPED_PRUNER

if TYPE_CHECKING:
    from rich.table import Table

    from fastdrive_node.cluster import Cluster
    from fastdrive_node.families import Vla
    from fastdrive_training.data.adapters import ImageSource
    from fastdrive_training.data.sampling import Shard

KEPT = "finished {} are kept; give the same command again, and it goes on"  # for ``interrupted_with``


def add_dataset_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dataset", metavar="DATASET", help="nuScenes schema (simulated or real), KITTI, Waymo, or folder"
    )
    parser.add_argument("--vla", metavar="DIR", help="VLA directory (the shipped tiny one)")
    parser.add_argument("--pruner", metavar="FILE", help=f"ReconPruner file ({SHIPPED_PRUNER} in the VLA directory)")
    parser.add_argument("--split", metavar="S", help="train, val, test, or one of nuScenes' (all items)")
    parser.add_argument("--limit", metavar="N", type=int, help="so many items only, evenly spread")
    add_device_arguments(parser)
    parser.add_argument("--json", metavar="FILE", help="write the figures here; - is standard output")


def open_dataset(args: argparse.Namespace, cluster: Cluster | None = None) -> tuple[ImageSource, Vla]:
    """The dataset that the arguments name, with the cameras of the VLA in its order, and the VLA.

    Where workers of a cluster load the VLA, it is here without weights, on the CPU, in the dtype that theirs has.

    Raises:
        UsageError: --limit is below 1.
        InputError, ModelError: the dataset, device or VLA cannot be used.
    """
    import torch  # heavy imports, not needed for --help

    from fastdrive_node.devices import choose_device, choose_dtype
    from fastdrive_node.families import load_vla
    from fastdrive_node.families.spec import load_spec
    from fastdrive_training.data.adapters import open_source

    require_positive("--limit", args.limit)
    device = torch.device(cluster.device) if cluster else choose_device(args.device, "--device")
    cameras = tuple(load_spec(vla_dir(args)).cameras)
    masks = getattr(args, "masks", None)
    source = open_source(args.dataset, args.split, masks=masks, cameras=cameras, all_splits=True)
    dtype = choose_dtype(args.dtype, device)
    if cluster:
        return source, load_vla(vla_dir(args), "cpu", dtype, frozenset())
    return source, load_vla(vla_dir(args), device, dtype)


@contextmanager
def interrupted_with(hint: str) -> Iterator[None]:
    """Ctrl-C in the block says what is kept, and how to go on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(hint) from stop


def figures_table(title: str, first: str, *columns: str) -> Table:
    """A table for people: names in the first column, figures in the others."""
    from rich.table import Table

    result = Table(title=title)
    result.add_column(first, no_wrap=True)
    for name in columns:
        result.add_column(name, justify="right")
    return result


def names(text: str) -> tuple[str, ...]:
    """``A,B`` as a tuple; an argparse type."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def shard_of(text: str) -> Shard:
    """``I/N`` as a part of the work; an argparse type."""
    from fastdrive_training.data.sampling import Shard

    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not int(match[1]) < int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r}: write I/N with I from 0 to N - 1, as in 0/4")
    return Shard(int(match[1]), int(match[2]))


def require_positive(option: str, value: int | None) -> None:
    """Raises UsageError for a number below 1; None is no number."""
    if value is not None and value < 1:
        raise UsageError(f"{option} {value}: must be at least 1")


def vla_dir(args: argparse.Namespace) -> Path:
    """The VLA directory of the arguments, or the shipped one. Raises ModelError where there is none."""
    from fastdrive_node.families.spec import default_vla_dir

    return Path(args.vla) if args.vla else default_vla_dir()


def pruner_file(args: argparse.Namespace) -> Path:
    """The pruner file of the arguments, or the one beside the VLA."""
    return Path(args.pruner) if args.pruner else vla_dir(args) / SHIPPED_PRUNER
