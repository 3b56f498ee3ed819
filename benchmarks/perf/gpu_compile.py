"""torch.compile of tower and pruner against the same in eager torch and against transformers' tower."""

from __future__ import annotations

import time

import torch
from torch._dynamo.utils import counters

from benchmarks.perf.vision_path import VisionPath, compare, named
from fastdrive_node.benchmark.implementations import HfGenerate
from fastdrive_node.benchmark.timing import Case
from fastdrive_node.benchmark.workload import Workload
from fastdrive_node.pruning.score_pruner import ScorePruner

EAGER, COMPILED, GRAPHS = "ours", "ours_compiled", "ours_compiled_cuda_graphs"
NOTE = "transformers: its tower alone; ours: tower, pruner and sorting by score, from the same patches"


def compile_modes(backend: str | None, device: torch.device) -> dict[str, dict]:
    """Name of a case -> arguments of ``torch.compile``; none for None. CUDA graphs are inductor's, on a GPU."""
    modes = {} if backend is None else {COMPILED: {"backend": backend}}
    if backend == "inductor" and device.type == "cuda":
        modes[GRAPHS] = {"backend": backend, "mode": "reduce-overhead"}
    return modes


def compiled_cases(path: torch.nn.Module, inputs: torch.Tensor, backend: str | None, figures: dict) -> dict[str, Case]:
    """Cases of a vision path, eager and compiled. What was compiled for earlier cases is dropped.

    Args:
        path: of ``vision_path``, in the type that is measured.
        inputs: on the path's device.
        backend: of ``torch.compile``; None: eager only.
        figures: filled in when a case gets ready: seconds of compiling, breaks of the graph, and how far the result is
            from the eager one's.
    """
    torch.compiler.reset()  # dynamo runs a function eagerly, without an error, once it was compiled too often

    def get_ready(name: str, arguments: dict):
        counters["graph_break"].clear()
        compiled = torch.compile(path, dynamic=False, **arguments)
        start = time.perf_counter()
        found = {key: value.clone() for key, value in named(compiled(inputs)).items()}
        seconds = round(time.perf_counter() - start, 1)
        breaks = sum(counters["graph_break"].values())
        figures[name] = {"compile_s": seconds, "graph_breaks": breaks, **compare(found, named(path(inputs)))}
        return compiled

    cases = {EAGER: Case(lambda _: path(inputs))}
    for name, arguments in compile_modes(backend, inputs.device).items():
        cases[name] = Case(
            lambda compiled: compiled(inputs), lambda name=name, arguments=arguments: get_ready(name, arguments)
        )
    return cases


def vision_cases(work: Workload, pruner: ScorePruner, backend: str | None, figures: dict) -> dict[str, Case]:
    """The cases of one scene; see ``NOTE``."""
    stock = HfGenerate(work, 1)
    assert pruner.module is not None  # that of random_models
    path = VisionPath(work.vision, pruner.module)
    return {"transformers": Case(lambda _: stock.encode()), **compiled_cases(path, work.patches, backend, figures)}
