"""``fastdrive export verify``: an engine compared with torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastdrive_export.commands.options import add_source_arguments, plain, say
from fastdrive_node.cli import write_json
from fastdrive_node.commands.options import add_device_arguments, add_json_argument, at_least_one, pruning_ratio
from fastdrive_node.errors import ModelError
from fastdrive_node.types import ONNX_PROVIDERS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Run an engine and torch in float32 on the same images, compare tokens, kept sets and answers (of a language\n"
        "engine: logits, answers), and write the figures into the manifest and --json, before\n"
        "anything is timed and again at the end. Exits 1 where the engine is too far off;\n"
        "the node then refuses it."
    )
    parser.epilog = (
        "example:\n  fastdrive export verify engines/vision.onnx --dataset data/sim_val --sets 200 --json out.json"
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="engine file")
    add_source_arguments(parser, "the one that it was built from")
    add = parser.add_argument
    add("--dataset", type=Path, metavar="DIR", help="a dataset of any layout that `train` reads (synthetic images)")
    add("--split", metavar="S", help="of the dataset (all)")
    add("--sets", type=at_least_one, default=8, metavar="N", help="frame sets (%(default)s)")
    add(
        "--drop",
        type=pruning_ratio,
        metavar="P",
        help="pruning ratio of the compared answers (0.5; language: 0, 0.5, 0.75)",
    )
    add("--no-plans", action="store_true", help="compare tokens and kept sets, or logits, only; not the answers")
    add_device_arguments(parser, dtype=False)  # the reference is float32
    add("--provider", choices=ONNX_PROVIDERS, default="auto", help="what onnxruntime runs on (%(default)s)")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Raises InputError or ModelError for the files, ModelError too where the engine is too far from torch."""
    from fastdrive_node.engines.manifest import read_manifest

    manifest = read_manifest(args.file)  # before what takes seconds to import

    from fastdrive_export.parity import verify_engine
    from fastdrive_export.samples import dataset_samples, synthetic_samples
    from fastdrive_node.devices import choose_device
    from fastdrive_node.families import load_vla

    vla = load_vla(args.vla or Path(manifest.source.vla), choose_device(args.device, "--device"))
    if args.dataset is None:
        samples = synthetic_samples(vla, args.sets)
    else:
        samples = dataset_samples(vla, args.dataset, args.split, args.sets)
    pruner = args.pruner or (Path(manifest.source.pruner) if manifest.part == "vision" else _shipped_pruner(vla.path))

    def write_comparison(found) -> None:
        """Keep what was compared where the timing does not come to its end; standard output gets the end only."""
        if args.json not in (None, "-"):
            write_json(found.model_dump(mode="json"), args.json)

    parity = verify_engine(
        args.file, vla, pruner, samples, args.drop, args.provider, not args.no_plans, write_comparison
    )
    figures = parity.model_dump(mode="json")
    say(args, "\n".join(f"{name:20} {plain(value)}" for name, value in figures.items()))
    write_json(figures, args.json)
    if not parity.passed:
        raise ModelError(_distance(args.file, figures))


def _distance(file: Path, figures: dict) -> str:
    if "kept_overlap" in figures:
        other = f"kept_overlap {min(figures['kept_overlap'].values()):.4f}"
    else:
        other = f"same_tokens {figures['same_tokens']:.4f}"
    return (
        f"{file}: parity: cosine {figures['cosine']:.5f}, {other}: too far from torch; "
        "build it with --precision bf16 or fp32, or with more blocks in --fp32-mlp"
    )


def _shipped_pruner(vla_dir: Path) -> Path | None:
    """It chooses the tokens of pruned prompts; without one only unpruned prompts are compared."""
    from fastdrive_node.files import SHIPPED_PRUNER

    file = vla_dir / SHIPPED_PRUNER
    return file if file.is_file() else None
