"""Arguments that the commands over a dataset share."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from fastdrive_node.devices import choose_device
from fastdrive_node.errors import UsageError
from fastdrive_node.families.loading import Vla, load_vla
from fastdrive_node.planning.loading import SHIPPED_PRUNER, default_vla_dir
from fastdrive_training.data.nuscenes.keyframes import KeyframeDataset

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def add_dataset_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="folder in the nuScenes schema, simulated or real")
    parser.add_argument("--vla", metavar="DIR", help="VLA directory (the shipped tiny one)")
    parser.add_argument("--pruner", metavar="FILE", help=f"ReconPruner file ({SHIPPED_PRUNER} in the VLA directory)")
    parser.add_argument("--split", metavar="S", help="train, val, test, or one of nuScenes' (all keyframes)")
    parser.add_argument("--limit", metavar="N", type=int, help="so many keyframes only, evenly spread")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: cuda where there is one")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32", help="of the VLA (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the figures here; - is standard output")


def open_dataset(args: argparse.Namespace) -> tuple[KeyframeDataset, Vla]:
    """The dataset and VLA that the arguments name. Raises FastDriveError that names what cannot be used."""
    if args.limit is not None and args.limit < 1:
        raise UsageError(f"--limit {args.limit}: must be at least 1")
    device = choose_device(args.device, "--device")
    dataset = KeyframeDataset(args.dataset, args.split)
    return dataset, load_vla(vla_dir(args), device, DTYPES[args.dtype])


def vla_dir(args: argparse.Namespace) -> Path:
    """The VLA directory of the arguments, or the shipped one. Raises ModelError where there is none."""
    return Path(args.vla) if args.vla else default_vla_dir()


def pruner_file(args: argparse.Namespace) -> Path:
    """The pruner file of the arguments, or the one beside the VLA."""
    return Path(args.pruner) if args.pruner else vla_dir(args) / SHIPPED_PRUNER
