"""A pipeline against plain transformers: the figures of ``fastdrive bench``."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastdrive_node.benchmark.agreement import NOTE, agreement
from fastdrive_node.benchmark.floor import floor
from fastdrive_node.benchmark.implementations import FastDrive, HfGenerate
from fastdrive_node.benchmark.timing import Case, Timing, measure, ratio
from fastdrive_node.benchmark.workload import Workload, noise_sample, workload
from fastdrive_node.devices import describe, peak_memory
from fastdrive_node.errors import ModelError
from fastdrive_node.families import LayeredLanguageModel
from fastdrive_node.planning.answer_format import answer_format
from fastdrive_node.planning.generator import Generator
from fastdrive_node.planning.pipeline import Pipeline
from fastdrive_node.pruning.baselines.simple import NoPruner
from fastdrive_node.pruning.pruner import PruningContext
from fastdrive_node.replay.samples import PlanningSample

STAGES = ("encode", "prefill", "decode", "end_to_end", "camera_to_plan")
STOCK, OURS = "transformers", "ours"
Progress = Callable[[str], object]


@dataclass(frozen=True)
class _Pair:
    """Both implementations of one sample, and what the ablation takes of ours."""

    stock: HfGenerate
    ours: FastDrive  # with all that the pipeline has
    lean: FastDrive  # in torch, all tokens, token by token
    pruned: FastDrive  # in torch, token by token
    drafted: FastDrive  # in torch
    answer: tuple[int, ...]  # of transformers, to its end


@torch.inference_mode()
def compare(
    pipeline: Pipeline,
    runs: int,
    samples: Sequence[PlanningSample] = (),
    period_s: float = 0.0,
    engines: Pipeline | None = None,
    progress: Progress = lambda stage: None,
) -> dict:
    """Measure every stage of a pipeline in turns with plain transformers, which reads all visual tokens.

    Both write as many tokens as transformers' own answer has.

    Args:
        pipeline: in torch.
        runs: timed runs of each stage.
        samples: frame sets, taken in turn; none for one of noise.
        period_s: between two runs of the paced measurement; 0 leaves it out.
        engines: the same model with engines, which is "ours" then.
        progress: called with what is measured.

    Returns:
        The JSON of ``fastdrive bench``; times are medians.

    Raises:
        ModelError: the VLA's family runs in transformers' own text model, so there is nothing to compare.
    """
    vla = pipeline.vla
    vla.require_one_size("`fastdrive bench`")
    if not isinstance(pipeline.generator.language, LayeredLanguageModel):
        raise ModelError(
            f"{vla.path}: `fastdrive bench` compares a language path of this package with transformers', but "
            f"{vla.family.model_type} runs by transformers' own; use `fastdrive plan` to see its times"
        )
    progress("answers")
    pairs = [_pair(pipeline, engines or pipeline, sample) for sample in samples or [noise_sample(vla)]]
    equal = _equality(pipeline, pairs)
    timings: dict[str, dict[str, Timing]] = {}
    for name, cases in _cases(pairs).items():
        progress(name)
        timings[name] = measure(cases, runs, vla.device)
    if period_s:
        progress("paced")
        paced = {name: case for name, case in _whole(pairs).items() if name in (STOCK, OURS)}
        timings["paced"] = measure(paced, runs, vla.device, period_s=period_s)
    prune = timings["prune"][OURS]
    ours, length = pairs[0].ours, len(pairs[0].stock.work.prompt)
    return {
        "stages": {name: _stage(timings[name]) for name in STAGES},
        **_speedups(timings, prune),
        "prune_ms": round(prune.median_ms, 3),
        "ablation": _ablation(timings["ablation"]),
        "paced": None if not period_s else {"period_s": period_s, **_stage(timings["paced"])},
        **equal,
        "drop": pipeline.drop,
        "tokens": vla.tokens,
        "kept_tokens": ours.keep,
        "answer_tokens": round(statistics.mean(len(pair.answer) for pair in pairs), 2),
        "samples": len(pairs),
        "runs": runs,
        "agreement": agreement(pairs[0].lean, pairs[0].stock),
        "agreement_note": NOTE,
        "floor": floor(vla, {"all tokens": length, "pruned": length - vla.tokens + ours.keep}),
        "peak_memory_mib": round(peak_memory(vla.device) / (1 << 20)),
        **describe(vla.device),
    }


def _pair(pipeline: Pipeline, best: Pipeline, sample: PlanningSample) -> _Pair:
    vla = pipeline.vla
    work, form = workload(vla, pipeline.vision, sample, pipeline.threads), answer_format(vla)
    answer = HfGenerate(work, form.max_new_tokens).generate(sorted(form.stop_ids))
    count = len(answer)
    language, pruner, drop = pipeline.generator.language, pipeline.pruner, pipeline.drop
    drafted = FastDrive(work, count, pruner, drop, language, form.drafter)
    ours = drafted
    if best is not pipeline:
        other = workload(vla, best.vision, sample, best.threads)
        ours = FastDrive(other, count, best.pruner, best.drop, best.generator.language, form.drafter)
    lean, pruned = FastDrive(work, count, language=language), FastDrive(work, count, pruner, drop, language)
    return _Pair(HfGenerate(work, count), ours, lean, pruned, drafted, answer)


def _equality(pipeline: Pipeline, pairs: Sequence[_Pair]) -> dict[str, Any]:
    """Whether the answers are those that they must be."""
    form, forwards, plain, full = answer_format(pipeline.vla), [], 0, 0
    for pair in pairs:
        plain += pair.ours.end_to_end() == pair.pruned.end_to_end()
        forwards.append(pair.ours.forwards)
        full += text_of_all_tokens(pair.lean.work) == form.text(pair.answer)
    return {
        "same_text": full == len(pairs),
        "equal_to_transformers": [full, len(pairs)],
        "equal_answers": [plain, len(pairs)],
        "forwards_per_answer": round(statistics.mean(forwards), 2),
    }


@torch.inference_mode()
def text_of_all_tokens(work: Workload) -> str:
    """This package's answer without pruning, ended as in a vehicle."""
    context = PruningContext(work.encode(work.patches))
    return Generator(work.vla).generate(NoPruner(), [context], [work.prompt], work.vla.tokens)[0].answer.text


class _Turns:
    """A call that takes the samples in turn."""

    def __init__(self, of: Sequence[Any], call: Callable[[Any, Any], object]):
        self._of, self._call, self._next = of, call, 0

    def __call__(self, states: Sequence[Any]) -> object:
        place = self._next % len(self._of)
        self._next += 1
        return self._call(self._of[place], states[place] if states else None)


def _case(of: Sequence[Any], call: Callable[[Any, Any], object], prepare: Callable[[Any], Any] | None = None) -> Case:
    """``call`` on one implementation of each sample, with what ``prepare`` gave for it."""
    return Case(_Turns(of, call), lambda: [] if prepare is None else [prepare(one) for one in of], of[0].threads)


def _encode(one: Any, _) -> object:
    return one.encode()


def _end_to_end(one: Any, _) -> object:
    return one.end_to_end()


def _whole(pairs: Sequence[_Pair]) -> dict[str, Case]:
    """Camera to plan."""
    return {
        OURS: _case([pair.ours for pair in pairs], lambda one, _: one.camera_to_plan()),
        STOCK: _case([pair.stock for pair in pairs], lambda one, _: one.camera_to_plan()),
    }


def _cases(pairs: Sequence[_Pair]) -> dict[str, dict[str, Case]]:
    """Both implementations of each stage; each starts from its own results of the stage before."""

    def pruned(one: FastDrive):
        visual = one.encode()
        return visual, one.prune(visual)

    def prefill(one: HfGenerate, tokens):
        return one.prefill(tokens)

    def decode(one: Any, state):
        return one.decode(state)

    ours, stock = [pair.ours for pair in pairs], [pair.stock for pair in pairs]
    steps = {
        "lean": [pair.lean for pair in pairs],
        "pruning": [pair.pruned for pair in pairs],
        "drafts": [pair.drafted for pair in pairs],
    }
    if pairs[0].ours is not pairs[0].drafted:
        steps["engines"] = ours
    return {
        "encode": {OURS: _case(ours, _encode), STOCK: _case(stock, _encode)},
        "prune": {OURS: _case(ours, lambda one, visual: one.prune(visual), FastDrive.encode)},
        "prefill": {
            OURS: _case(ours, lambda one, state: one.prefill(*state), pruned),
            STOCK: _case(stock, prefill, HfGenerate.encode),
        },
        "decode": {
            OURS: _case(ours, decode, lambda one: one.prefill(*pruned(one))),
            STOCK: _case(stock, decode, lambda one: one.prefill(one.encode())),
        },
        "end_to_end": {OURS: _case(ours, _end_to_end), STOCK: _case(stock, _end_to_end)},
        "camera_to_plan": _whole(pairs),
        "ablation": {
            STOCK: _case(stock, _end_to_end),
            **{name: _case(variants, _end_to_end) for name, variants in steps.items()},
        },
    }


def _stage(timings: dict[str, Timing]) -> dict[str, float]:
    """Median, p90, p99, worst and jitter of both."""
    figures = {f"{who}_ms": round(timing.median_ms, 3) for who, timing in timings.items()}
    return figures | {f"{who}_{name}": value for who, each in timings.items() for name, value in each.spread.items()}


def _ablation(timings: dict[str, Timing]) -> list[dict[str, Any]]:
    """End to end (patches to answer), each row with one thing more; how many times faster than transformers."""
    return [
        {"with": name, "median_ms": round(timing.median_ms, 3), "speedup": ratio(timings[STOCK], timing)}
        for name, timing in timings.items()
    ]


def _speedups(timings: dict[str, dict[str, Timing]], prune: Timing) -> dict[str, float | None]:
    """transformers' time over ours; the pruner's time is a part of ours everywhere but in ``prefill_alone``."""
    prefill = timings["prefill"]
    with_pruner = prefill[OURS].median_ms + prune.median_ms
    camera, patches, decode = (timings[name] for name in ("camera_to_plan", "end_to_end", "decode"))
    return {
        "speedup_end_to_end": ratio(camera[STOCK], camera[OURS]),
        "speedup_from_patches": ratio(patches[STOCK], patches[OURS]),
        "speedup_prefill": round(prefill[STOCK].median_ms / with_pruner, 3),
        "speedup_prefill_alone": ratio(prefill[STOCK], prefill[OURS]),
        "speedup_decode": ratio(decode[STOCK], decode[OURS]),
    }
