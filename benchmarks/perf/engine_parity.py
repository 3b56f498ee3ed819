"""An ONNX engine of a random tower and pruner against torch, at toy or full size, without a VLA directory.

    python -m benchmarks.perf.engine_parity --size 3b --json benchmarks/results/engine_parity_3b_fp32.json

At the 3B size the float32 engine is 3 GB, so its weights lie in a file of their own; 16 GB of memory are needed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.perf.random_models import SIZES
from benchmarks.perf.random_source import random_source
from fastdrive_export.build import GraphOptions, write_engine
from fastdrive_export.source import Source
from fastdrive_node.cli import write_json
from fastdrive_node.devices import describe
from fastdrive_node.engines.graph_info import STANDARD
from fastdrive_node.engines.onnx_runner import OnnxRunner
from fastdrive_node.engines.vision_engine import EngineVision


@torch.inference_mode()
def compare(source: Source, options: GraphOptions, folder: Path) -> dict:
    """Write the engine, run it and torch on the same random image. Times are of one run each, after one before."""
    start = time.perf_counter()
    manifest = write_engine(source, options, folder)
    built_s = time.perf_counter() - start
    file = folder / next(iter(manifest.files))
    height, width = source.vla.spec.image_size
    images = np.random.default_rng(0).integers(0, 256, (len(source.vla.spec.cameras), height, width, 3), dtype=np.uint8)
    start = time.perf_counter()
    runner = OnnxRunner(file, manifest, torch.device("cpu"))
    opened_s = time.perf_counter() - start
    engine = EngineVision(file, manifest, runner, torch.device("cpu"))
    visual, engine_ms = _timed(lambda: engine.encode(engine.preprocess(images)))
    tokens, scores = visual.raster(), visual.scores
    expected, torch_ms = _timed(lambda: source.vision.encode_patches(source.vision.preprocess(images)))
    expected_scores = source.pruner(expected, source.vla.grid)
    half = source.vla.tokens // 2
    kept = [set(each.flatten().argsort(descending=True)[:half].tolist()) for each in (scores, expected_scores)]
    cosine = torch.cosine_similarity(tokens, expected, dim=-1)
    return {
        "precision": manifest.graph.precision,
        "opset": manifest.graph.opset,
        "tokens": source.vla.tokens,
        "files": {name: file.bytes for name, file in manifest.files.items()},
        "cosine": float(cosine.mean()),
        "cosine_min": float(cosine.min()),
        "max_abs_error": float((tokens - expected).abs().max()),
        "token_std": float(expected.std()),
        "score_max_abs_error": float((scores - expected_scores).abs().max()),
        "kept_overlap": {"0.5": len(kept[0] & kept[1]) / half},
        "build_s": round(built_s, 2),
        "open_s": round(opened_s, 2),
        "engine_ms": round(engine_ms, 1),
        "torch_encode_ms": round(torch_ms, 1),
        **describe(torch.device("cpu")),
    }


def _timed(run: Callable) -> tuple[Any, float]:
    run()
    start = time.perf_counter()
    result = run()
    return result, (time.perf_counter() - start) * 1e3


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp32")
    parser.add_argument("--opset", type=int, choices=(17, 18), default=18)
    parser.add_argument("--cameras", type=int, default=1)
    parser.add_argument("--image", type=int, nargs=2, default=(140, 168), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep the engine here (a temporary folder)")
    parser.add_argument("--json", metavar="F", default="-")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        source = random_source(args.size, args.cameras, tuple(args.image), folder, args.seed)
        figures = compare(source, GraphOptions(args.precision, args.opset, operators=STANDARD), folder)
    write_json({"size": args.size, "cameras": args.cameras, "image_size": list(args.image), **figures}, args.json)


if __name__ == "__main__":
    main()
