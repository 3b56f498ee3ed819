"""``fastdrive export build``: an engine with its manifest."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastdrive_export.commands.options import add_source_arguments, say
from fastdrive_node.cli import write_json
from fastdrive_node.commands.options import add_json_argument, at_least_one
from fastdrive_node.errors import UsageError
from fastdrive_node.types import ENGINE_OPERATORS, VISION_BACKENDS

PARTS = ("vision", "language")
BACKENDS = tuple(name for name in VISION_BACKENDS if name != "torch")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write an engine for a VLA directory and its pruner, with a manifest beside it: the vision tower, the pruner\n"
        "and the top-K in one file. --part language writes one for the language model, which needs no pruner. A\n"
        "TensorRT engine must be built on the machine that runs it."
    )
    parser.epilog = (
        "example:\n  fastdrive export build --vla my_vla --backend onnxruntime --precision fp16 --out engines"
    )
    add_source_arguments(parser, "the shipped tiny one")
    add = parser.add_argument
    add("--part", choices=PARTS, default="vision", help="tower and pruner, or the language model (%(default)s)")
    add("--backend", choices=BACKENDS, default="onnxruntime", help="what runs it (%(default)s)")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the engine and its manifest")
    add("--precision", choices=("fp32", "fp16", "bf16"), default="fp32", help="of the matrix products (%(default)s)")
    add("--opset", type=int, choices=(17, 18), help="17 for TensorRT 8.5 and 8.6, 18 for all others (by the backend)")
    help_operators = "onnxruntime for its own, faster on a CPU; standard for all (its own in fp32 where no GPU is)"
    add("--operators", choices=ENGINE_OPERATORS, help=help_operators)
    add("--max-keep", type=at_least_one, metavar="K", help="largest number of tokens, over all cameras (all)")
    help_mlp = "blocks whose MLP ends in float32 (the last one in fp16, none in bf16)"
    add("--fp32-mlp", type=int, nargs="*", metavar="BLOCK", help=help_mlp)
    help_workspace = "TensorRT: scratch memory of a layer in MiB (%(default)s)"
    add("--workspace-mib", type=at_least_one, default=2048, metavar="M", help=help_workspace)
    add("--optimization-level", type=int, choices=range(6), default=3, help="TensorRT 8.6 and later (%(default)s)")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Raises UsageError for options that exclude each other, InputError or ModelError for the VLA or pruner."""
    from fastdrive_export.build import GraphOptions, build_language, build_onnx

    options = GraphOptions(args.precision, args.opset, args.max_keep, args.fp32_mlp, operators=args.operators)
    if args.part == "language":
        _check_language_options(args)
        file, manifest = build_language(args.vla, args.out, options)
    elif args.backend == "tensorrt":
        from fastdrive_export.tensorrt_build import BuilderSettings, build_tensorrt

        if args.operators == "onnxruntime":
            raise UsageError("--operators onnxruntime: is for --backend onnxruntime; give standard, or leave it out")
        settings = BuilderSettings(args.workspace_mib, args.optimization_level)
        file, manifest = build_tensorrt(args.vla, args.pruner, args.out, options, settings)
    else:
        file, manifest = build_onnx(args.vla, args.pruner, args.out, options)
    for name, info in manifest.files.items():
        say(args, f"{file.with_name(name)}  {info.bytes / 1e6:.1f} MB")
    say(args, f"compare it with torch: fastdrive export verify {file}")
    write_json({"file": str(file), "manifest": manifest.model_dump(mode="json")}, args.json)


def _check_language_options(args: argparse.Namespace) -> None:
    if args.backend != "onnxruntime":
        raise UsageError("--part language: only onnxruntime runs it; leave --backend out")
    if args.pruner is not None:
        raise UsageError("--part language: it has no pruner; leave --pruner out")
    if args.max_keep is not None:
        raise UsageError("--part language: --max-keep is for vision engines; leave it out")
