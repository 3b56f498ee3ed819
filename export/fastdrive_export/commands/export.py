"""``fastdrive export``: engines, from building to the question whether one is right."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastdrive_node.cli import write_json
from fastdrive_node.engines.manifest import BACKENDS, FileInfo, Manifest, check_files, read_manifest
from fastdrive_node.errors import InputError, ModelError
from fastdrive_node.types import ONNX_PROVIDERS

PARTS = ("vision", "language")


@dataclass(frozen=True)
class Subcommand:
    """``run`` returns the figures for ``--json``."""

    summary: str
    description: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], dict]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "One file that turns six images into scored tokens: the vision tower, the pruner and the top-K; with "
        "--part language another one for the language model. A manifest beside each says what it was made from."
    )
    parser.epilog = "`fastdrive export SUBCOMMAND --help` shows more. " + SUBCOMMANDS["build"].example
    subparsers = parser.add_subparsers(dest="subcommand", metavar="SUBCOMMAND", required=True)
    for name, subcommand in SUBCOMMANDS.items():
        child = subparsers.add_parser(
            name,
            help=subcommand.summary,
            description=subcommand.description,
            epilog=subcommand.example,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        subcommand.add_arguments(child)
        child.add_argument("--json", metavar="F", help="write the figures as JSON; '-' is standard output")


def run(args: argparse.Namespace) -> None:
    figures = SUBCOMMANDS[args.subcommand].run(args)
    write_json(figures, args.json)
    if args.subcommand == "verify" and not figures["passed"]:
        if "kept_overlap" in figures:
            other = f"kept_overlap {min(figures['kept_overlap'].values()):.4f}"
        else:
            other = f"same_tokens {figures['same_tokens']:.4f}"
        raise ModelError(
            f"{args.file}: parity: cosine {figures['cosine']:.5f}, {other}: too far from torch; "
            "build it with --precision bf16 or fp32, or with more blocks in --fp32-mlp"
        )


def _say(args: argparse.Namespace, text: str) -> None:
    print(text, file=sys.stderr if args.json == "-" else sys.stdout)


def _model_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--vla", type=Path, metavar="DIR", help=f"VLA directory ({default})")
    parser.add_argument("--pruner", type=Path, metavar="FILE", help="ReconPruner file (the one in the VLA directory)")


def _build_arguments(parser: argparse.ArgumentParser) -> None:
    _model_arguments(parser, "the shipped tiny one")
    add = parser.add_argument
    add("--part", choices=PARTS, default="vision", help="tower and pruner, or the language model (%(default)s)")
    add("--backend", choices=tuple(BACKENDS.values()), default="onnxruntime", help="what will run it (%(default)s)")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the engine and its manifest")
    add("--precision", choices=("fp32", "fp16", "bf16"), default="fp32", help="of the matrix products (%(default)s)")
    add("--opset", type=int, choices=(17, 18), help="17 for TensorRT 8.5 and 8.6, 18 for all others (by the backend)")
    add("--max-keep", type=int, metavar="K", help="tokens that it gives at most, of all cameras (all)")
    add(
        "--fp32-mlp",
        type=int,
        nargs="*",
        metavar="BLOCK",
        help="blocks whose MLP ends in float32 (the last one in fp16, none in bf16)",
    )
    add(
        "--workspace-mib", type=int, default=2048, metavar="M", help="TensorRT: scratch memory of a layer (%(default)s)"
    )
    add("--optimization-level", type=int, choices=range(6), default=3, help="TensorRT 8.6 and later (%(default)s)")


def _build(args: argparse.Namespace) -> dict:
    from fastdrive_export.build import GraphOptions, build_onnx

    options = GraphOptions(args.precision, args.opset, args.max_keep, args.fp32_mlp)
    if args.part == "language":
        from fastdrive_export.language_build import build_language

        _check_language_options(args)
        file, manifest = build_language(args.vla, args.out, options)
    elif args.backend == "tensorrt":
        from fastdrive_export.tensorrt_build import BuilderSettings, build_tensorrt

        settings = BuilderSettings(args.workspace_mib, args.optimization_level)
        file, manifest = build_tensorrt(args.vla, args.pruner, args.out, options, settings)
    else:
        file, manifest = build_onnx(args.vla, args.pruner, args.out, options)
    for name, facts in manifest.files.items():
        _say(args, f"{file.with_name(name)}  {facts.bytes / 1e6:.1f} MB")
    _say(args, f"compare it with torch: fastdrive export verify {file}")
    return {"file": str(file), "manifest": manifest.model_dump(mode="json")}


def _check_language_options(args: argparse.Namespace) -> None:
    if args.backend != "onnxruntime":
        raise InputError("--part language: is built for onnxruntime only; leave --backend out")
    if args.pruner is not None:
        raise InputError("--part language: has no pruner; leave --pruner out")


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="engine file")


def _inspect(args: argparse.Namespace) -> dict:
    manifest = read_manifest(args.file)
    check_files(args.file, manifest)
    layers = _layers(args.file, manifest)
    _say(args, "\n".join([*_manifest_lines(manifest), "", *_layer_lines(layers)]))
    return {"manifest": manifest.model_dump(mode="json"), "layers": layers}


def _layers(file: Path, manifest: Manifest) -> list[dict]:
    if manifest.kind == "onnx":
        from fastdrive_export.layers import layer_table

        return layer_table(file)
    from fastdrive_export.tensorrt_build import plan_layers

    return plan_layers(file, manifest)


def _manifest_lines(manifest: Manifest) -> list[str]:
    content = manifest.model_dump(mode="json")
    lines = [f"{'kind':18} {manifest.kind}"]
    for name, facts in manifest.files.items():
        lines.append(_file_line(name, facts))
    for section in ("graph", "source", "versions", "target", "parity"):
        if content[section] is None:
            lines.append(f"{section:18} {'never compared with torch' if section == 'parity' else '-'}")
            continue
        for name, value in content[section].items():
            lines.append(f"{section + '.' + name:34} {_plain(value)}")
    return lines


def _file_line(name: str, facts: FileInfo) -> str:
    return f"{'file':18} {name}, {facts.bytes} bytes, SHA-256 {facts.sha256[:12]}"


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "-"
    return str(value)


def _layer_lines(layers: list[dict]) -> list[str]:
    if layers and "parameters" not in layers[0]:
        return [f"{row['name'][:70]:70} {row['type'][:20]:20} {row['precision']}" for row in layers]
    lines = [f"{'part':20} {'nodes':>6} {'parameters':>12} {'GMAC':>9}  products in"]
    for row in layers:
        types = ", ".join(f"{name} x{count}" for name, count in row["types"].items()) or "-"
        lines.append(f"{row['part']:20} {row['nodes']:6} {row['parameters']:12,} {row['macs'] / 1e9:9.3f}  {types}")
    total = [sum(row[name] for row in layers) for name in ("nodes", "parameters", "macs")]
    return [*lines, f"{'all':20} {total[0]:6} {total[1]:12,} {total[2] / 1e9:9.3f}"]


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="engine file")
    _model_arguments(parser, "the one that it was built from")
    add = parser.add_argument
    add("--dataset", type=Path, metavar="DIR", help="pictures of a dataset in the nuScenes schema (synthetic ones)")
    add("--split", metavar="S", help="of the dataset (all)")
    add("--sets", type=int, default=8, metavar="N", help="sets of pictures (%(default)s)")
    add("--drop", type=float, metavar="P", help="pruning ratio of the compared answers (0.5; language: 0, 0.5, 0.75)")
    add("--no-plans", action="store_true", help="compare tokens and kept sets, or logits, only; not the answers")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="of torch; auto: cuda where there is one")
    add("--provider", choices=ONNX_PROVIDERS, default="auto", help="what onnxruntime runs on (%(default)s)")


def _verify(args: argparse.Namespace) -> dict:
    manifest = read_manifest(args.file)
    if args.sets < 1:
        raise InputError(f"--sets: {args.sets}; give 1 or more")
    import torch

    from fastdrive_export.language_parity import verify_language
    from fastdrive_export.parity import verify_engine
    from fastdrive_export.samples import dataset_samples, synthetic_samples
    from fastdrive_node.families.loading import load_vla

    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device: 'cuda', but torch finds no GPU; use cpu or auto")
    vla = load_vla(
        args.vla or Path(manifest.source.vla), "cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu"
    )
    if args.dataset is None:
        samples = synthetic_samples(vla, args.sets)
    else:
        samples = dataset_samples(vla, args.dataset, args.split, args.sets)
    if manifest.part == "language":
        pruner = args.pruner or _shipped_pruner(vla.path)
        parity = verify_language(args.file, vla, pruner, samples, args.drop, args.provider, not args.no_plans)
    else:
        pruner = args.pruner or Path(manifest.source.pruner)
        parity = verify_engine(args.file, vla, pruner, samples, args.drop, args.provider, not args.no_plans)
    figures = parity.model_dump(mode="json")
    _say(args, "\n".join(f"{name:20} {_plain(value)}" for name, value in figures.items()))
    return figures


def _shipped_pruner(vla_dir: Path) -> Path | None:
    """Chooses the tokens of pruned prompts; without one, unpruned prompts alone are compared."""
    from fastdrive_node.planning.loading import SHIPPED_PRUNER

    file = vla_dir / SHIPPED_PRUNER
    return file if file.is_file() else None


SUBCOMMANDS = {
    "build": Subcommand(
        "write an engine",
        "Write an engine for a VLA directory and its pruner, with a manifest beside it. A TensorRT engine must be "
        "built on the machine that runs it. --part language writes one for the language model, which needs no pruner.",
        "example:\n  fastdrive export build --vla my_vla --backend onnxruntime --precision fp16 --out engines\n",
        _build_arguments,
        _build,
    ),
    "inspect": Subcommand(
        "print the manifest and the layers",
        "Check an engine against its manifest, and print both the manifest and a table of the network's parts.",
        "example:\n  fastdrive export inspect engines/vision.onnx\n",
        _inspect_arguments,
        _inspect,
    ),
    "verify": Subcommand(
        "compare an engine with torch",
        "Run an engine and torch in float32 on the same pictures, compare tokens, kept sets and answers (of a language "
        "engine logits and answers), and write the figures into the manifest. Exits 1 where the engine is too far off; "
        "the node refuses it from then on.",
        "example:\n  fastdrive export verify engines/vision.onnx --dataset data/sim_val --sets 200 --json out.json\n",
        _verify_arguments,
        _verify,
    ),
}
