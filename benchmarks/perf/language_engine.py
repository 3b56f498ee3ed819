"""The language model by torch and by onnxruntime: prefill, decode and whole answers, and whether they are the same.

    fastdrive sim dataset data/lm_val --keyframes 240 --seed 101 --split val
    python -m benchmarks.perf.language_engine --dataset data/lm_val --split val --sets 200 \\
        --json benchmarks/results/language_onnxruntime.json

Times are of one process, the implementations in turn. The mid-size model has random weights, for its times only.
Answers of the shipped model are compared on keyframes of a dataset, where one is given.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from benchmarks.perf.random_models import SIZES, ModelSize, Scene, build_model, build_pruner, build_workload
from fastdrive_export.build import LANGUAGE_FILE, GraphOptions, write_language
from fastdrive_export.parity import LanguageComparison
from fastdrive_export.samples import dataset_samples, synthetic_samples
from fastdrive_node.benchmark.implementations import FastDrive
from fastdrive_node.benchmark.timing import Case, measure, ratio
from fastdrive_node.benchmark.workload import Workload
from fastdrive_node.cli import write_json
from fastdrive_node.devices import describe
from fastdrive_node.engines.graph_info import ASKED, NEW, PAST, SEEN, SHOWN, STANDARD, LanguageGraphInfo
from fastdrive_node.engines.language_engine import EngineLanguage, load_language_engine
from fastdrive_node.families import Vla, load_vla
from fastdrive_node.families.prompt import build_prompt
from fastdrive_node.families.spec import default_vla_dir
from fastdrive_node.files import SHIPPED_PRUNER
from fastdrive_node.pruning.pruner import Pruner
from fastdrive_node.pruning.registry import make_pruner

DROPS = (0.0, 0.25, 0.5, 0.75)
ANSWER_TOKENS = 28  # of models/tiny
CPU = torch.device("cpu")
MIDDLE = ModelSize(
    vision={**SIZES["tiny"].vision, "out_hidden_size": 1024},
    text={
        "hidden_size": 1024,
        "num_hidden_layers": 8,
        "intermediate_size": 2816,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 20000,
        "max_position_embeddings": 4096,
        "initializer_range": 0.05,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    scenes=(Scene("six_cameras_224x112", 6, 112, 224),),
)


class RandomVla(Vla):
    """A VLA that lies in no directory."""

    @cached_property
    def language_fingerprint(self) -> str:
        return "0" * 64


def open_engine(vla: Vla, folder: Path) -> EngineLanguage:
    """A float32 engine of a VLA, written into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = write_language(vla, GraphOptions(operators=STANDARD), folder)
    return load_language_engine(folder / LANGUAGE_FILE, manifest, vla, "cpu")


def compare_times(work: Workload, pruner: Pruner, engine: EngineLanguage, drop: float, runs: int) -> dict:
    """Medians of both implementations at one pruning ratio, and whether the answers were the same."""
    implementations = {name: FastDrive(work, ANSWER_TOKENS, pruner, drop) for name in ("torch", "onnxruntime")}
    implementations["onnxruntime"].generator.language = engine
    tokens = implementations["torch"].encode()
    kept = implementations["torch"].prune(tokens)
    cases, answers = {}, set()
    for name, run in implementations.items():
        cases[f"{name} prefill"] = Case(lambda _, run=run: run.prefill(tokens, kept))
        cases[f"{name} decode"] = Case(
            lambda state, run=run: run.decode(state), lambda run=run: run.prefill(tokens, kept)
        )
        cases[f"{name} answer"] = Case(lambda _, run=run: run.decode(run.prefill(tokens, kept)))
        answers.add(run.decode(run.prefill(tokens, kept)))
    times = measure(cases, runs, CPU, warm_up=1)
    steps = ANSWER_TOKENS - 1  # the first token comes of the prefill
    figures: dict = {
        "prompt_tokens": len(implementations["torch"].prefill(tokens, kept).prompts[0]),
        "same_answer": len(answers) == 1,
    }
    for part, parts in (("prefill", 1), ("decode", steps), ("answer", 1)):
        pair = [times[f"{name} {part}"] for name in implementations]
        figures[part if parts == 1 else f"{part}_per_token"] = {
            **{name: timing.figures(parts) for name, timing in zip(implementations, pair, strict=True)},
            "speedup": ratio(*pair),
        }
    return figures


def shipped(folder: Path, threads: int) -> tuple[Workload, Pruner, EngineLanguage]:
    torch.set_num_threads(threads)
    vla = load_vla(default_vla_dir())
    sample = synthetic_samples(vla, 1).samples[0]
    vision = vla.torch_vision()
    prompt = build_prompt(vla, sample.history, sample.command)
    work = Workload(vla, vision, vision.preprocess(sample.images), prompt)
    return work, make_pruner("reconpruner", vla, vla.path / SHIPPED_PRUNER), open_engine(vla, folder)


def middle(folder: Path, threads: int) -> tuple[Workload, Pruner, EngineLanguage]:
    torch.set_num_threads(threads)
    model = build_model(MIDDLE, CPU, torch.float32, 0)
    work = build_workload(model, MIDDLE.scenes[0], ANSWER_TOKENS, 0)
    vla = RandomVla(**{field.name: getattr(work.vla, field.name) for field in fields(Vla)})
    return replace(work, vla=vla), build_pruner(model, 0), open_engine(vla, folder)


def compare_lengths(file: Path, graph: LanguageGraphInfo, prompt: int, shown: int, runs: int) -> dict:
    """A session for any lengths against one for exactly these: the same runs on zeros, in turn, and their memory."""
    capacity = prompt + ANSWER_TOKENS
    phases = {
        "prefill": {NEW: prompt, PAST: 1, SEEN: prompt + 1, SHOWN: shown, ASKED: 1},
        "decode": {NEW: 1, PAST: capacity, SEEN: capacity + 1, SHOWN: 1, ASKED: 1},
    }
    before = _resident_mib()
    free = _session(file, {})
    memory = {"any lengths": round(_resident_mib() - before, 1)}
    cases = {}
    for name, lengths in phases.items():
        before = _resident_mib()
        fixed = _session(file, lengths)
        memory[f"fixed lengths, {name}"] = round(_resident_mib() - before, 1)
        for kind, session in (("any lengths", free), ("fixed lengths", fixed)):
            binding = _binding(session, graph, lengths)
            cases[f"{kind}, {name}"] = Case(
                lambda _, session=session, binding=binding: session.run_with_iobinding(binding[0])
            )
            cases[f"{kind}, {name}"].run(None)
    times = measure(cases, runs, CPU)
    return {"times": {name: timing.figures() for name, timing in times.items()}, "memory_of_the_session_mib": memory}


def _session(file: Path, lengths: dict[str, int]) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    for name, length in lengths.items():
        options.add_free_dimension_override_by_name(name, length)
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _binding(session: onnxruntime.InferenceSession, graph: LanguageGraphInfo, lengths: dict[str, int]) -> tuple:
    """A binding, and the arrays that it needs to live."""
    binding, arrays = session.io_binding(), []
    for bind, tensors in ((binding.bind_input, graph.inputs()), (binding.bind_output, graph.outputs())):
        for name, each in tensors.items():
            arrays.append(
                np.zeros([lengths[length] if isinstance(length, str) else length for length in each.shape], each.dtype)
            )
            bind(name, "cpu", 0, arrays[-1].dtype, arrays[-1].shape, arrays[-1].ctypes.data)
    return binding, arrays


def _resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def compare_answers(dataset: Path, split: str | None, sets: int, folder: Path) -> dict:
    """The shipped model's logits and answers on keyframes of a dataset at pruning ratios 0, 0.5 and 0.75."""
    vla = load_vla(default_vla_dir())
    pruner = make_pruner("reconpruner", vla, vla.path / SHIPPED_PRUNER)
    run = LanguageComparison(vla, open_engine(vla, folder), pruner)
    samples = dataset_samples(vla, dataset, split, sets)
    return {**run.run(samples).model_dump(mode="json"), "latency_ms": run.latency_ms(samples.samples[0])}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, metavar="DIR", help="in the nuScenes schema; without it no answers")
    parser.add_argument("--split", metavar="S")
    parser.add_argument("--sets", type=int, default=200, metavar="N")
    parser.add_argument("--runs", type=int, default=30, metavar="N", help="timed runs of each case (%(default)s)")
    parser.add_argument("--threads", type=int, nargs="+", default=(1, 2), metavar="N", help="of each case (1 2)")
    parser.add_argument("--json", metavar="F", default="-")
    args = parser.parse_args(arguments)
    figures: dict = {**describe(CPU), "onnxruntime": onnxruntime.__version__, "answer_tokens": ANSWER_TOKENS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        plan = (("models/tiny", shipped, args.runs, DROPS), ("middle", middle, max(3, args.runs // 6), (0.0, 0.75)))
        for name, make, runs, drops in plan:
            for threads in args.threads:
                work, pruner, engine = make(folder / name.replace("/", "_"), threads)
                place = figures.setdefault(name, {}).setdefault(f"threads_{threads}", {"load": os.getloadavg()[0]})
                for drop in drops:
                    place[f"drop_{drop:g}"] = compare_times(work, pruner, engine, drop, runs)
                    print(name, threads, drop, place[f"drop_{drop:g}"], file=sys.stderr)
                prompt = place["drop_0"]["prompt_tokens"]
                place["lengths"] = compare_lengths(engine.file, engine.info, prompt, work.vla.tokens, runs)
        if args.dataset is not None:
            torch.set_num_threads(max(args.threads))
            figures["answers"] = compare_answers(args.dataset, args.split, args.sets, folder / "answers")
    figures.pop("threads")
    write_json(figures, args.json)


if __name__ == "__main__":
    main()
