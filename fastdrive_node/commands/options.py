"""Arguments that several commands share. Nothing here imports torch: ``--help`` is fast."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastdrive_node.errors import UsageError
from fastdrive_node.types import DTYPES, MAX_DROP, VISION_BACKENDS, PruningRatio

DROP_HELP = f"pruning ratio in [0, {MAX_DROP}] (default: 0.5 with a pruner, else 0)"
PRUNER_HELP = "a ReconPruner's file, or the name of a pruner (default: the file in the VLA directory)"
JSON_HELP = "write the figures as JSON; '-' is standard output"


def pruning_ratio(text: str) -> PruningRatio:
    """A pruning ratio; an argparse type."""
    try:
        return PruningRatio(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text} is not in [0, {MAX_DROP}]; give a pruning ratio such as 0.5"
        ) from None


def at_least_one(text: str) -> int:
    """A count; an argparse type."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give 1 or more")
    return int(text)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """``--vla``, ``--pruner`` and ``--drop``."""
    add = parser.add_argument
    add("--vla", type=Path, metavar="DIR", help="VLA directory (default: the shipped tiny one)")
    add("--pruner", type=Path, metavar="FILE", help=PRUNER_HELP)
    add("--drop", type=pruning_ratio, metavar="P", help=DROP_HELP)


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """``--backend``, ``--engine`` and ``--language-engine``; without them all parts run in torch."""
    add = parser.add_argument
    add("--backend", choices=VISION_BACKENDS, help="what runs vision encoder and pruner (default: torch)")
    add("--engine", type=Path, metavar="FILE", help="for another backend than torch, from `fastdrive export build`")
    language = "runs the language model by onnxruntime; from `fastdrive export build --part language`"
    add("--language-engine", type=Path, metavar="FILE", help=language)


def add_device_arguments(parser: argparse.ArgumentParser, dtype: bool = True) -> None:
    """``--device``, and ``--dtype`` where it may be chosen."""
    help_text = "what torch runs on: cpu, cuda, cuda:<index>, or auto: cuda where there is one (%(default)s)"
    parser.add_argument("--device", default="auto", metavar="D", help=help_text)
    if not dtype:
        return
    help_text = "of weights and activations; auto: bfloat16 on a GPU, float32 on a CPU (%(default)s)"
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help=help_text)


def add_ray_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="work on a Ray cluster: auto (that of this machine), local:2 (two workers here), HOST:6379 or "
        "ray://HOST:10001; needs the extra [cluster]",
    )


def check_engine_arguments(backend: str | None, engine: Path | None) -> None:
    """Raises UsageError for an engine file without the backend that runs it."""
    if engine is not None and backend in (None, "torch"):
        raise UsageError("--engine: give --backend onnxruntime or tensorrt with it")


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", help=JSON_HELP)
