"""TensorRT plans of a random tower and pruner against torch: built, run, compared and timed on one machine.

TensorRT is that of this Python where it can be imported, else that of another interpreter, which
``tensorrt_worker.py`` runs in. Every part of a row may fail by itself.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.perf.gpu_compile import compiled_cases
from benchmarks.perf.random_models import Scene
from benchmarks.perf.random_source import random_source
from benchmarks.perf.vision_path import ImagePath, compare, named
from fastdrive_export.source import Source
from fastdrive_node.benchmark.timing import Case, Timing, measure, ratio
from fastdrive_node.engines.graph_info import STANDARD
from fastdrive_node.errors import ModelError

WORKER = Path(__file__).resolve().parent / "tensorrt_worker.py"
TORCH_TYPES = {"fp16": torch.float16, "fp32": torch.float32, "bf16": torch.bfloat16}
NOTE = (
    "From uint8 images on the device to tokens sorted by score. against_torch compares with torch in float32; an "
    "untrained pruner's scores lie close together, so read kept_overlap beside score_std and score_max_abs_error. A "
    "TensorRT of another interpreter is timed by itself, just before torch; one of this Python takes turns with it."
)


@dataclass(frozen=True)
class EngineSettings:
    """What is built and how it is timed.

    ``python`` None: no other interpreter. ``backend`` None: torch.compile is left out. ``folder`` None: a temporary one
    for each scene; a folder that stays keeps the timing caches.
    """

    precisions: tuple[str, ...] = ("fp16", "fp32", "bf16")
    python: Path | None = None
    backend: str | None = "inductor"
    folder: Path | None = None
    runs: int = 20
    warm_up: int = 3
    workspace_mib: int = 8192
    optimization_level: int = 3
    timeout_s: float = 900.0  # of one build and run in the other interpreter
    seed: int = 0


@dataclass(frozen=True)
class Builder:
    """A TensorRT that can be reached."""

    version: str
    opset: int
    strongly_typed: bool
    python: Path | None  # None: this one

    def refusal(self, precision: str) -> str | None:
        """Why a precision cannot be built."""
        if precision == "bf16" and self.opset < 18:
            return f"TensorRT {self.version} has no bf16"
        return None


def find_builder(python: Path | None) -> Builder:
    """TensorRT here, or in another interpreter.

    Raises:
        RuntimeError: there is none; the text says what was tried.
    """
    from fastdrive_node.engines.tensorrt_api import default_opset, is_strongly_typed, load_tensorrt

    try:
        trt = load_tensorrt()
        return Builder(trt.__version__, default_opset(trt), is_strongly_typed(trt), None)
    except ModelError as error:
        if python is None:
            raise RuntimeError(f"{error}; or name an interpreter that has it with --tensorrt-python") from error
    answer = run_worker(python, ["--probe"], 120.0)
    if answer.returncode:
        raise RuntimeError(f"{python}: {_tail(answer)}")
    probe = json.loads(answer.stdout.splitlines()[-1])
    return Builder(probe["tensorrt"], probe["opset"], probe["strongly_typed"], python)


def run_worker(python: Path, arguments: list[str], timeout_s: float) -> subprocess.CompletedProcess:
    """The worker in another interpreter, to its end; packages of this Python are not shown to it."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    command = [str(python), str(WORKER), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s)


class EngineScene:
    """One size and scene.

    Args:
        guarded: ``guarded(entry, step)`` runs a step, notes its failure in ``entry`` and saves the report.
    """

    def __init__(self, settings: EngineSettings, device: torch.device, guarded: Callable):
        self.settings, self.device, self.guarded = settings, device, guarded

    def run(self, size: str, scene: Scene, entry: dict) -> None:
        """Fill in ``entry``: the TensorRT, torch's own figures, and a row for each precision."""
        with tempfile.TemporaryDirectory() as temporary:
            self.folder = (self.settings.folder or Path(temporary)) / f"{size}_{scene.name}"
            self.folder.mkdir(parents=True, exist_ok=True)
            self._run(size, scene, entry)

    def _run(self, size: str, scene: Scene, entry: dict) -> None:
        source = random_source(size, scene.images, (scene.height, scene.width), self.folder, self.settings.seed)
        generator = torch.Generator().manual_seed(self.settings.seed)
        images = torch.randint(0, 256, (scene.images, 3, scene.height, scene.width), generator=generator).byte()
        expected = self._torch(source, "fp32", images)
        entry |= {"note": NOTE, "tokens": source.vla.tokens, "rows": {}}
        trt = entry["tensorrt"] = {}
        builders: list[Builder] = []
        self.guarded(trt, lambda: builders.append(find_builder(self.settings.python)))
        builder = builders[0] if builders else None
        if builder is not None:
            trt |= {"version": builder.version, "opset": builder.opset, "strongly_typed": builder.strongly_typed,
                    "interpreter": str(builder.python or sys.executable)}  # fmt: skip
        for precision in self.settings.precisions:
            row = entry["rows"][precision] = {}
            print(f"{size} {scene.name}: engines in {precision}", file=sys.stderr)
            self.guarded(row, lambda p=precision, r=row: self._row(source, builder, p, images, expected, r))

    @torch.inference_mode()
    def _torch(self, source: Source, precision: str, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """What torch gives, on the CPU."""
        found = named(self._path(source, precision)(images.to(self.device)))
        return {name: value.cpu() for name, value in found.items()}

    def _path(self, source: Source, precision: str) -> ImagePath:
        """A copy on the device; the angles of both parts stay float32, as in the package."""
        vision, pruner = copy.deepcopy(source.vision), copy.deepcopy(source.pruner)
        for module in (vision.visual, pruner):
            module.to(TORCH_TYPES[precision])
        with torch.device(self.device):
            pruner.layer.rebuild_buffers(next(pruner.parameters()).device)
        return ImagePath(vision, pruner).to(self.device).eval()

    def _row(
        self, source: Source, builder: Builder | None, precision: str, images: torch.Tensor, expected: dict, row: dict
    ) -> None:
        """One precision: TensorRT first, as the dearest figure, then torch."""
        found: dict[str, Any] = {}
        cases: dict[str, Case] = {}
        refusal = "no TensorRT" if builder is None else builder.refusal(precision)
        trt: dict[str, Any] = {"skipped": refusal} if refusal else {}
        row["tensorrt"] = trt
        if builder is not None and refusal is None:
            step = self._inside if builder.python is None else self._outside
            self.guarded(trt, lambda: found.update(step(source, builder, precision, images, trt, cases)))
            if found:
                self.guarded(trt, lambda: trt.update(against_torch=compare(found, expected)))
        path, inputs, compiled = self._path(source, precision), images.to(self.device), {}
        with torch.inference_mode():
            row["torch"] = {"against_torch": compare(named(path(inputs)), expected)}
        cases |= compiled_cases(path, inputs, self.settings.backend, compiled)
        timings = measure(cases, self.settings.runs, self.device, self.settings.warm_up, tolerant=True)
        row["latency"] = {_NAMES.get(name, name): timing.figures() for name, timing in timings.items()}
        row["compiled"] = compiled
        row["ratios"] = self._ratios(trt, timings)

    def _ratios(self, trt: dict, timings: dict[str, Timing]) -> dict:
        """Eager torch over each other case, by medians of wall time."""
        ratios = {_NAMES[name]: ratio(timings["ours"], timings[name]) for name in timings if name != "ours"}
        for name, key in (("tensorrt", "latency"), ("tensorrt_cuda_graph", "latency_cuda_graph")):
            wall = trt.get(key, {}).get("wall")
            if wall and timings["ours"].error is None:
                ratios[name] = round(timings["ours"].median_ms / wall["median_ms"], 3)
        return {"torch_eager_over": ratios}

    def _graph(self, source: Source, builder: Builder, precision: str, trt: dict) -> tuple[Path, Any]:
        """The ONNX file and its manifest."""
        from fastdrive_export.build import GraphOptions, write_engine  # needs the package onnx

        folder = self.folder / precision
        folder.mkdir(exist_ok=True)
        manifest = write_engine(source, GraphOptions(precision, builder.opset, operators=STANDARD), folder)
        trt["onnx_bytes"] = sum(file.bytes for file in manifest.files.values())
        return folder / next(iter(manifest.files)), manifest

    def _outside(
        self, source: Source, builder: Builder, precision: str, images: torch.Tensor, trt: dict, cases: dict
    ) -> dict[str, torch.Tensor]:
        """Build and run in the other interpreter."""
        assert builder.python is not None
        file, _ = self._graph(source, builder, precision, trt)
        folder, settings = file.parent, self.settings
        np.savez(folder / "inputs.npz", images=images.numpy())
        job: dict[str, Any] = {name: str(folder / target) for name, target in _JOB_FILES.items()}
        job |= {"onnx": str(file), "opset": builder.opset, "precision": precision}
        job |= {name: getattr(settings, name) for name in ("runs", "warm_up", "workspace_mib", "optimization_level")}
        for name in ("report", "outputs"):
            Path(job[name]).unlink(missing_ok=True)
        (folder / "job.json").write_text(json.dumps(job))
        try:
            answer = run_worker(builder.python, [str(folder / "job.json")], settings.timeout_s)
        finally:
            if Path(job["report"]).is_file():
                trt |= json.loads(Path(job["report"]).read_text())
        if answer.returncode:
            trt["log"] = _tail(answer, 2000)
            raise RuntimeError(trt.get("error") or f"exit code {answer.returncode}")
        with np.load(job["outputs"]) as outputs:
            return {name: torch.from_numpy(outputs[name]) for name in outputs.files}

    def _inside(
        self, source: Source, builder: Builder, precision: str, images: torch.Tensor, trt: dict, cases: dict
    ) -> dict[str, torch.Tensor]:
        """Build and run here, by the node's own runner; its case is put into ``cases``."""
        from fastdrive_export.tensorrt_build import PLAN_FILE, build_plan, plan_layers
        from fastdrive_node.engines.tensorrt_api import BuilderSettings, load_tensorrt
        from fastdrive_node.engines.tensorrt_runner import TensorRtRunner

        onnx_file, onnx = self._graph(source, builder, precision, trt)
        folder, settings = onnx_file.parent, self.settings
        wanted = BuilderSettings(settings.workspace_mib, settings.optimization_level)
        start = time.perf_counter()
        manifest = build_plan(load_tensorrt(), onnx_file, onnx, folder, wanted, folder)
        seconds = round(time.perf_counter() - start, 1)
        assert manifest.target is not None  # every plan's manifest has one
        file = folder / PLAN_FILE
        trt |= {
            "build_s": seconds,
            "plan_bytes": manifest.files[file.name].bytes,
            "flags": manifest.target.flags,
            "layers": len(plan_layers(file, manifest)),
        }
        runner = TensorRtRunner(file, manifest, self.device)
        declared = manifest.graph.inputs() | manifest.graph.outputs()
        tensors = {
            name: torch.empty(*map(int, each.shape), dtype=getattr(torch, each.dtype), device=self.device)
            for name, each in declared.items()
        }
        tensors["images"].copy_(images)
        pointers = {name: tensor.data_ptr() for name, tensor in tensors.items()}
        runner.execute(pointers)
        cases["tensorrt"] = Case(lambda _: runner.execute(pointers))
        trt["runtime"] = runner.name
        return {name: tensors[name].cpu() for name in manifest.graph.outputs()}


_JOB_FILES = {
    "inputs": "inputs.npz",
    "outputs": "outputs.npz",
    "report": "report.json",
    "plan": "vision.plan",
    "layers": "layers.json",
    "cache": "timings",
}
_NAMES = {
    "ours": "torch_eager",
    "ours_compiled": "torch_compiled",
    "ours_compiled_cuda_graphs": "torch_compiled_cuda_graphs",
    "tensorrt": "tensorrt",
}


def _tail(answer: subprocess.CompletedProcess, characters: int = 300) -> str:
    text = " ".join((answer.stderr.strip() or answer.stdout.strip() or f"exit code {answer.returncode}").split())
    return text[-characters:]
