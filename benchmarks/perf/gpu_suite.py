"""Every stage against plain transformers at the paper's full size, with random weights, in one call.

    python -m benchmarks.perf.gpu_suite --out benchmarks/results/gpu_suite.json

Needs torch, transformers, numpy and a checkout, which need not be installed; no ROS, weights or network. There are
three steps, which --steps chooses among:

    models   encoding, pruning, prefill, decoding and the whole. transformers reads all visual tokens; this package is
             measured at each pruning ratio; what takes long, and CUDA graphs, at the least and the most.
    compile  tower and pruner by torch.compile.
    engines  TensorRT plans of tower and pruner, built here, against torch. Needs the package onnx, and a TensorRT:
             this Python's, or that of --tensorrt-python, where numpy and cuda-python are enough beside it. Packages
             that are missing here may lie in a folder on PYTHONPATH.

Sides and ratios take turns within a stage. What fails (out of memory) is recorded as an error and the rest goes on;
the JSON is written after each stage, so that an interrupted run leaves what it had.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import torch

if not __package__:  # started by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
if importlib.util.find_spec("jsonschema") is None:  # checks vla.json, of which there is none here
    sys.modules["jsonschema"] = types.ModuleType("jsonschema")

from benchmarks.perf.gpu_compile import NOTE as COMPILE_NOTE
from benchmarks.perf.gpu_compile import vision_cases
from benchmarks.perf.gpu_engines import EngineScene, EngineSettings
from benchmarks.perf.gpu_faster import Faster, encode_cases, prefill_case, pruned
from benchmarks.perf.gpu_report import DROPS, ENDS, STOCK, ours_at, ratios, table
from benchmarks.perf.random_models import (
    SIZES,
    ModelSize,
    Scene,
    TorchLanguage,
    build_model,
    build_pruner,
    build_workload,
)
from fastdrive_node.benchmark.agreement import NOTE, agreement
from fastdrive_node.benchmark.implementations import FastDrive, HfGenerate
from fastdrive_node.benchmark.timing import Case, Timing, measure, ratio
from fastdrive_node.benchmark.workload import Workload
from fastdrive_node.devices import describe
from fastdrive_node.pruning.score_pruner import ScorePruner

STEPS = ("models", "compile", "engines")
PRECISIONS = ("fp16", "fp32", "bf16")
SEED = 0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file (default: standard output)")
    parser.add_argument("--sizes", default="tiny,3b", help="of 3b and tiny, with commas (default: both)")
    parser.add_argument("--steps", default=",".join(STEPS), help="with commas (default: all)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), help="(default: bfloat16 on a GPU, float32 on a CPU)"
    )
    parser.add_argument("--runs", type=int, default=20, help="timed runs; end to end a quarter of them (default: 20)")
    parser.add_argument("--quick", action="store_true", help="2 runs and short answers: to see whether it works")
    parser.add_argument(
        "--compile-backend", metavar="B", default="inductor", help="of torch.compile, or none (default: inductor)"
    )
    parser.add_argument(
        "--draft-forwards", type=int, default=20, help="that an answer takes when it is drafted (default: 20)"
    )
    parser.add_argument("--scenes", metavar="NAMES", default="", help="how their names start (default: all)")
    parser.add_argument("--graphs-on-cpu", action="store_true", help="their rows on a CPU too, step by step: for tests")
    engines = parser.add_argument_group("engines")
    engines.add_argument("--tensorrt-python", type=Path, metavar="P", help="interpreter that has TensorRT")
    engines.add_argument("--precisions", default=",".join(PRECISIONS), help="with commas (default: fp16,fp32,bf16)")
    engines.add_argument(
        "--engine-scenes", metavar="NAMES", default="six_cameras", help="how their names start (default: six_cameras)"
    )
    engines.add_argument("--work", type=Path, metavar="DIR", help="keep plans and timing caches (default: temporary)")
    args = parser.parse_args(argv)
    for name, known in (("sizes", SIZES), ("steps", STEPS), ("precisions", PRECISIONS)):
        unknown = set(getattr(args, name).split(",")) - set(known)
        if unknown:
            parser.error(f"--{name}: {min(unknown)!r} is not one of {', '.join(known)}")
    scenes = [scene.name for size in args.sizes.split(",") for scene in SIZES[size].scenes]
    unknown = [name for name in args.scenes.split(",") if not any(scene.startswith(name) for scene in scenes)]
    if unknown:
        parser.error(f"--scenes: {unknown[0]!r} is the beginning of none of {', '.join(scenes)}")
    if args.runs < 1:
        parser.error("--runs: give 1 or more")
    return args


class Suite:
    """One run of the suite; ``report`` is its JSON."""

    def __init__(self, args: argparse.Namespace):
        self.device = torch.device(args.device)
        self.dtype = getattr(torch, args.dtype or ("bfloat16" if args.device == "cuda" else "float32"))
        self.out: Path | None = args.out
        self.sizes, self.steps = args.sizes.split(","), args.steps.split(",")
        self.runs = 2 if args.quick else args.runs
        self.long_runs = 1 if args.quick else max(3, args.runs // 4)
        self.warm_up = 1 if args.quick else 3
        self.quick = args.quick
        self.draft_forwards = args.draft_forwards
        self.graphs = args.device == "cuda" or args.graphs_on_cpu
        self.backend = None if args.compile_backend == "none" else args.compile_backend
        self.scenes, self.engine_scenes = tuple(args.scenes.split(",")), tuple(args.engine_scenes.split(","))
        self.engines = EngineSettings(
            precisions=tuple(args.precisions.split(",")),
            python=args.tensorrt_python,
            backend=self.backend,
            folder=args.work,
            runs=self.runs,
            warm_up=self.warm_up,
            seed=SEED,
        )
        self.report = {
            "machine": describe(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "attention": "sdpa",
            "weights": f"random, seed {SEED}",
            "quick": args.quick,
            "agreement_note": NOTE,
            "vision_note": COMPILE_NOTE,
            "sizes": {},
        }

    def run(self) -> dict:
        for name in self.sizes:
            entry = self.report["sizes"][name] = {}
            if {"models", "compile"} & set(self.steps):
                self._guarded(entry, lambda name=name, entry=entry: self._size(SIZES[name], entry))
            if "engines" in self.steps:
                self._engines(name, entry.setdefault("engines", {}))
        self.report["finished"] = True
        self._save()
        return self.report

    def _guarded(self, entry: dict, step: Callable[[], None]) -> None:
        """Run a step; its failure becomes an error in ``entry``."""
        try:
            step()
        except Exception as error:
            entry["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            print(f"failed: {entry['error']}", file=sys.stderr)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._save()

    def _save(self) -> None:
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.write_text(json.dumps(self.report, indent=2) + "\n")

    def _engines(self, name: str, entry: dict) -> None:
        for scene in SIZES[name].scenes:
            if scene.name.startswith(self.engine_scenes):
                found = entry[scene.name] = {}
                stage = EngineScene(self.engines, self.device, self._guarded)
                self._guarded(found, lambda scene=scene, stage=stage, found=found: stage.run(name, scene, found))

    @torch.inference_mode()
    def _size(self, size: ModelSize, entry: dict) -> None:
        start = time.perf_counter()
        model = build_model(size, self.device, self.dtype, SEED)
        pruner = build_pruner(model, SEED)
        assert pruner.module is not None
        entry |= {
            "shape": {"vision": size.vision, "text": size.text},
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "pruner_parameters": sum(parameter.numel() for parameter in pruner.module.parameters()),
            "build_s": round(time.perf_counter() - start, 1),
            "scenes": {},
        }
        scenes = [scene for scene in size.scenes if scene.name.startswith(self.scenes)]
        for scene in scenes:
            found = entry["scenes"][scene.name] = {}
            self._guarded(found, lambda scene=scene, found=found: self._scene(model, pruner, size, scene, found))
        if self.dtype != torch.float32 and "models" in self.steps:
            model.float()  # where rounding breaks no ties, both implementations must choose the same tokens
            for scene in scenes:
                found = entry["scenes"][scene.name].setdefault("agreement", {})["float32"] = {}
                self._guarded(found, lambda scene=scene, found=found: self._agree(model, scene, found))

    def _scene(self, model, pruner: ScorePruner, size: ModelSize, scene: Scene, figures: dict) -> None:
        answer = 8 if self.quick else size.answer_tokens
        work = build_workload(model, scene, answer, SEED)
        stages = figures.setdefault("stages", {})
        timings: dict[str, dict[str, Timing]] = {}
        figures |= {
            "images": scene.images,
            "image_size": {"width": scene.width, "height": scene.height},
            "visual_tokens": work.vla.tokens,
            "prompt_tokens": len(work.prompt),
            "answer_tokens": answer,
        }
        if "compile" in self.steps and self.backend is not None:
            compiled = figures.setdefault("compiled", {})
            cases = vision_cases(work, pruner, self.backend, compiled)
            stages["vision"] = self._measured(scene, "vision", cases, self.runs, timings)
            figures["vision_ratios"] = {
                name: ratio(timings["vision"]["ours"], timing) for name, timing in timings["vision"].items()
            }
        if "models" in self.steps:
            self._stages(model, pruner, work, answer, scene, figures, timings)

    def _stages(
        self, model, pruner: ScorePruner, work: Workload, answer: int, scene: Scene, figures: dict, timings: dict
    ) -> None:
        """The step ``models``."""
        faster = Faster(work, lambda drop: self._ours(work, answer, pruner, drop), self.draft_forwards, self.graphs)
        figures["faster"] = faster.figures
        figures["kept_tokens"] = {ours_at(drop): self._ours(work, answer, pruner, drop).keep for drop in DROPS}
        found = figures.setdefault("agreement", {})[self.report["dtype"]] = {}
        self._guarded(found, lambda: self._agree(model, scene, found))
        steps = 4 if self.quick else 17  # the first token of an answer is the prefill's
        for name, cases, runs, parts in (
            ("encode", encode_cases(work), self.runs, 1),
            ("prune", self._prune_cases(work, pruner), self.runs, 1),
            ("prefill", self._prefill_cases(work, pruner, answer) | faster.prefills(), self.runs, 1),
            ("decode_per_token", self._decode_cases(work, pruner, steps), self.long_runs, steps - 1),
            ("decode", faster.decoding(), self.long_runs, 1),
            ("end_to_end", self._whole_cases(work, pruner, answer) | faster.whole(), self.long_runs, 1),
        ):
            figures["stages"][name] = self._measured(scene, name, cases, runs, timings, parts)
            self._save()
        figures["ratios"] = ratios(timings)

    def _measured(self, scene: Scene, name: str, cases: dict, runs: int, timings: dict, parts: int = 1) -> dict:
        """Figures of one stage; its times are put into ``timings``."""
        print(f"{scene.name}: {name}", file=sys.stderr)
        warm_up = self.warm_up if runs == self.runs else 1
        timings[name] = measure(cases, runs, self.device, warm_up, tolerant=True)
        return {case: timing.figures(parts) for case, timing in timings[name].items()}

    def _agree(self, model, scene: Scene, found: dict) -> None:
        """Fill in the agreement of both implementations over all tokens, in the dtype that the model has now."""
        steps = 8 if self.quick else 32
        work = build_workload(model, scene, steps, SEED)
        found |= agreement(FastDrive(work, steps), HfGenerate(work, steps))

    def _ours(self, work: Workload, answer_tokens: int, pruner: ScorePruner, drop: float) -> FastDrive:
        """This package at a pruning ratio, without drafts and CUDA graphs; without dropping it runs no pruner."""
        ours = FastDrive(work, answer_tokens, pruner if drop else None, drop)
        ours.generator.language = TorchLanguage(work.vla)
        return ours

    def _prune_cases(self, work: Workload, pruner: ScorePruner) -> dict[str, Case]:
        by_drop = {drop: self._ours(work, 1, pruner, drop) for drop in DROPS if drop}
        return {ours_at(drop): Case(ours.prune, ours.encode) for drop, ours in by_drop.items()}

    def _prefill_cases(self, work: Workload, pruner: ScorePruner, answer: int) -> dict[str, Case]:
        stock = HfGenerate(work, answer)
        ours = {ours_at(drop): prefill_case(self._ours(work, answer, pruner, drop)) for drop in DROPS}
        return {STOCK: Case(stock.prefill, stock.encode), **ours}

    def _decode_cases(self, work: Workload, pruner: ScorePruner, answer: int) -> dict[str, Case]:
        stock = HfGenerate(work, answer)
        cases = {STOCK: Case(stock.decode, lambda: stock.prefill(stock.encode()))}
        for drop in ENDS:
            ours = self._ours(work, answer, pruner, drop)
            cases[ours_at(drop)] = Case(ours.decode, lambda ours=ours: ours.prefill(*pruned(ours)))
        return cases

    def _whole_cases(self, work: Workload, pruner: ScorePruner, answer: int) -> dict[str, Case]:
        implementations: dict[str, HfGenerate | FastDrive] = {STOCK: HfGenerate(work, answer)}
        implementations |= {ours_at(drop): self._ours(work, answer, pruner, drop) for drop in ENDS}
        return {name: Case(lambda _, run=run: run.end_to_end()) for name, run in implementations.items()}


def main(argv: list[str] | None = None) -> dict:
    args = parse_arguments(argv)
    report = Suite(args).run()
    print(table(report), file=sys.stderr)
    if args.out is None:
        print(json.dumps(report, indent=2))
    return report


if __name__ == "__main__":
    main()
