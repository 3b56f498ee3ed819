"""Builds a plan of an ONNX file and runs it, in a Python that may have TensorRT, numpy and cuda-python only.

    python310 benchmarks/perf/tensorrt_worker.py --probe
    python310 benchmarks/perf/tensorrt_worker.py job.json

``--probe`` prints version, opset and whether the types come from the graph, as JSON. A job names its files:

    onnx                the graph
    opset, precision    of it; the precision is fp32, fp16 or bf16
    inputs              .npz with every input
    plan, cache, layers the plan, the timing cache and TensorRT's list of the layers, to be written
    outputs, report     .npz of every output, and the figures as JSON, to be written
    runs, warm_up, workspace_mib, optimization_level

The report is written after each step, so that what a crash leaves is there; a step that fails is in it under "error".
``gpu_suite.py`` starts this script with the interpreter of --tensorrt-python. No torch is needed and none is imported.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]


def load_parts() -> tuple[Any, Any]:
    """The package's modules ``tensorrt_api`` and ``tensorrt_plan``. Their own package would import torch."""
    sys.path.insert(0, str(ROOT))
    package = types.ModuleType("fastdrive_node.engines")
    package.__path__ = [str(ROOT / "fastdrive_node" / "engines")]
    sys.modules["fastdrive_node.engines"] = package
    api, plan = (importlib.import_module(f"fastdrive_node.engines.tensorrt_{part}") for part in ("api", "plan"))
    return api, plan


def load_cudart() -> Any:
    """CUDA's runtime by cuda-python. Raises ModuleNotFoundError where it is not installed."""
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ModuleNotFoundError:
        return importlib.import_module("cuda.cudart")


class Cuda:
    """Memory, a stream and its clock."""

    def __init__(self, cudart: Any):
        self.cudart = cudart
        self.stream = self._call("cudaStreamCreate")

    def _call(self, name: str, *arguments: Any) -> Any:
        """Raises RuntimeError where CUDA refuses."""
        error, *values = getattr(self.cudart, name)(*arguments)
        if error != self.cudart.cudaError_t.cudaSuccess:
            raise RuntimeError(f"{name}: {error}")
        return values[0] if values else None

    def allocate(self, array: np.ndarray) -> int:
        return int(self._call("cudaMalloc", array.nbytes))

    def upload(self, pointer: int, array: np.ndarray) -> None:
        kind = self.cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpy", pointer, array.ctypes.data, array.nbytes, kind)

    def download(self, array: np.ndarray, pointer: int) -> None:
        kind = self.cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpy", array.ctypes.data, pointer, array.nbytes, kind)

    def wait(self) -> None:
        self._call("cudaStreamSynchronize", self.stream)

    def time(self, enqueue: Callable[[], None], runs: int, warm_up: int) -> dict:
        """Milliseconds of a run by the GPU's events, and by the clock from call to end."""
        start, stop = (self._call("cudaEventCreate") for _ in range(2))
        events, walls = [], []
        for turn in range(warm_up + runs):
            self.wait()
            begin = time.perf_counter()
            self._call("cudaEventRecord", start, self.stream)
            enqueue()
            self._call("cudaEventRecord", stop, self.stream)
            self.wait()
            if turn >= warm_up:
                walls.append((time.perf_counter() - begin) * 1e3)
                events.append(self._call("cudaEventElapsedTime", start, stop))
        return {"gpu": figures(events), "wall": figures(walls)}

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """The launches of one run as a CUDA graph. Returns what starts it."""
        mode = self.cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self.stream, mode)
        try:
            enqueue()
        finally:
            graph = self._call("cudaStreamEndCapture", self.stream)
        ready = self._call("cudaGraphInstantiateWithFlags", graph, 0)
        return lambda: self._call("cudaGraphLaunch", ready, self.stream)


def figures(values: list[float]) -> dict:
    return {
        "median_ms": round(float(np.median(values)), 4),
        "p99_ms": round(float(np.percentile(values, 99)), 4),
        "min_ms": round(float(min(values)), 4),
        "runs": len(values),
    }


class Job:
    """One build and its run; ``report`` is what is known so far."""

    def __init__(self, settings: dict):
        self.settings = settings
        self.report: dict = {}

    def run(self) -> None:
        try:
            self._run()
        except (Exception, KeyboardInterrupt) as error:
            self.note(error=f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")

    def note(self, **figures: Any) -> None:
        self.report.update(figures)
        Path(self.settings["report"]).write_text(json.dumps(self.report, indent=1) + "\n")

    def _run(self) -> None:
        api, plan = load_parts()
        trt = api.load_tensorrt()
        self.note(tensorrt=trt.__version__)
        content = self._build(trt, api, plan)
        executor = plan.PlanExecutor(trt, content)
        engine = executor.engine
        information = plan.engine_information(trt, engine)
        Path(self.settings["layers"]).write_text(information)
        rows = plan.layer_rows(information)
        self.note(
            layers=len(rows),
            layer_outputs=dict(Counter(row["precision"] for row in rows).most_common(12)),
            activation_mib=round(api.device_memory_bytes(engine) / (1 << 20), 1),
        )
        self._execute(executor, api.io_tensors(trt, engine))

    def _build(self, trt: Any, api: Any, plan: Any) -> Any:
        settings = api.BuilderSettings(self.settings["workspace_mib"], self.settings["optimization_level"])
        start = time.perf_counter()
        files = Path(self.settings["onnx"]), Path(self.settings["cache"])
        graph = self.settings["opset"], self.settings["precision"]
        content, flags = plan.serialize_plan(trt, files[0], *graph, settings, files[1])
        Path(self.settings["plan"]).write_bytes(content)
        seconds = round(time.perf_counter() - start, 1)
        self.note(build_s=seconds, plan_bytes=Path(self.settings["plan"]).stat().st_size, flags=flags)
        return content

    def _execute(self, executor: Any, tensors: list) -> None:
        cuda = Cuda(load_cudart())
        with np.load(self.settings["inputs"]) as given:
            inputs = {name: np.ascontiguousarray(given[name]) for name in given.files}
        for each in tensors:
            array = inputs.get(each.name)
            if each.is_input and (array is None or (str(array.dtype), array.shape) != (each.dtype, each.shape)):
                raise ValueError(f"{each.name}: the engine wants {each.dtype} {each.shape}")
        arrays = {each.name: np.empty(each.shape, each.dtype) for each in tensors}
        pointers = {name: cuda.allocate(array) for name, array in arrays.items()}
        for name, array in inputs.items():
            cuda.upload(pointers[name], array)
        executor.bind(pointers)
        stream = int(cuda.stream)

        def enqueue() -> None:
            executor.enqueue(stream)

        enqueue()
        cuda.wait()
        outputs = {each.name: arrays[each.name] for each in tensors if not each.is_input}
        for name, array in outputs.items():
            cuda.download(array, pointers[name])
        np.savez(self.settings["outputs"], **outputs)
        runs, warm_up = self.settings["runs"], self.settings["warm_up"]
        self.note(outputs=sorted(outputs), latency=cuda.time(enqueue, runs, warm_up))
        try:
            self.note(latency_cuda_graph=cuda.time(cuda.capture(enqueue), runs, warm_up))
        except Exception as error:  # a graph is a gain, not a need
            self.note(latency_cuda_graph={"error": f"{type(error).__name__}: {error}"[:300]})


def probe() -> dict:
    api, _ = load_parts()
    trt = api.load_tensorrt()
    return {"tensorrt": trt.__version__, "opset": api.default_opset(trt), "strongly_typed": api.is_strongly_typed(trt)}


def main(arguments: list[str]) -> int:
    if arguments == ["--probe"]:
        print(json.dumps(probe()))
        return 0
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    job = Job(json.loads(Path(arguments[0]).read_text()))
    job.run()
    return 1 if "error" in job.report else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
