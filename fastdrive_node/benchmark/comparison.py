"""A pipeline against plain transformers: the figures of ``fastdrive bench``."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fastdrive_node.benchmark.agreement import NOTE, agreement
from fastdrive_node.benchmark.conditions import baseline, identities, mib_of, weights_mib
from fastdrive_node.benchmark.energy import find_counters, spent
from fastdrive_node.benchmark.floor import Floor, measured_speeds
from fastdrive_node.benchmark.large import large_prefill
from fastdrive_node.benchmark.pairs import OURS, STOCK, Pair, cases, make_pair, whole
from fastdrive_node.benchmark.timing import REST_S, Timing, measure, ratio, rest, set_threads
from fastdrive_node.benchmark.workload import Workload, noise_sample
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
Progress = Callable[[str], object]


@torch.inference_mode()
def compare(
    pipeline: Pipeline,
    runs: int,
    samples: Sequence[PlanningSample] = (),
    period_s: float = 0.0,
    engines: Pipeline | None = None,
    progress: Progress = lambda stage: None,
    large: bool = True,
) -> dict:
    """Measure every stage of a pipeline in turns with plain transformers, which reads all visual tokens.

    Both write as many tokens as transformers' own answer has. Before each run the machine rests for ``REST_S``.

    Args:
        pipeline: in torch.
        runs: timed runs of each stage.
        samples: frame sets, taken in turn; none for one of noise.
        period_s: between two runs of the paced measurement; 0 leaves it out.
        engines: the same model with engines, which is "ours" then.
        progress: called with what is measured.
        large: measure the prefill at 3249 visual tokens too.

    Returns:
        The JSON of ``fastdrive bench``; times are medians.

    Raises:
        ModelError: the VLA's family runs in transformers' own text model, so there is nothing to compare.
    """
    vla, best = pipeline.vla, engines or pipeline
    vla.require_one_size("`fastdrive bench`")
    if not isinstance(pipeline.generator.language, LayeredLanguageModel):
        raise ModelError(
            f"{vla.path}: `fastdrive bench` compares a language path of this package with transformers', but "
            f"{vla.family.model_type} runs by transformers' own; use `fastdrive plan` to see its times"
        )
    samples = samples or [noise_sample(vla)]
    progress("answers")
    pairs = [make_pair(pipeline, best, sample) for sample in samples]
    equal, forwards = _equality(pipeline, pairs)
    timings: dict[str, dict[str, Timing]] = {}
    for name, each in cases(pairs).items():
        progress(name)
        timings[name] = measure(each, runs, vla.device)
    if period_s:
        progress("paced")
        timings["paced"] = measure(whole(pairs), runs, vla.device, period_s=period_s)
    progress("energy")
    joules = _energy(pairs, runs, vla.device)
    peak = peak_memory(vla.device)  # before anything that neither of them needs
    progress("3249 visual tokens")
    regime = large_prefill(pipeline, engines, samples[0], runs) if large else None
    progress("floor")
    torch.set_num_threads(pipeline.threads)  # those of transformers, which the last case may have changed
    prune, whole_plan = timings["prune"][OURS], timings["camera_to_plan"]
    return {
        "stages": {name: _stage(timings[name]) for name in STAGES},
        **_speedups(timings, prune),
        "prune_ms": round(prune.median_ms, 3),
        "plans_per_s": {who: round(timing.per_second, 3) for who, timing in whole_plan.items()},
        "ablation": _ablation(timings["ablation"], forwards),
        "paced": None if not period_s else {"period_s": period_s, **_stage(timings["paced"])},
        "large": regime,
        **equal,
        "drop": pipeline.drop,
        "tokens": vla.tokens,
        "kept_tokens": pairs[0].ours.keep,
        "answer_tokens": round(statistics.mean(len(pair.answer) for pair in pairs), 2),
        "samples": len(pairs),
        "runs": runs,
        "rest_s": REST_S,
        "agreement": agreement(pairs[0].lean, pairs[0].stock),
        "agreement_note": NOTE,
        "baseline": baseline(pairs[0].stock),
        "floor": _floor(pairs[0], timings, forwards),
        "energy": joules,
        "peak_memory_mib": round(peak / (1 << 20)),
        "gpu_peak_mib": {who: round(timing.peak_mib) for who, timing in whole_plan.items() if timing.peak_mib} or None,
        "weights_mib": {OURS: round(weights_mib(best), 1), STOCK: round(mib_of([vla.model]), 1)},
        "engines": identities(best) or None,
        **describe(vla.device),
    }


def _equality(pipeline: Pipeline, pairs: Sequence[Pair]) -> tuple[dict[str, Any], dict[str, float]]:
    """Whether the answers are those that they must be, and the forwards behind the prefill, mean by row."""
    form, plain, full = answer_format(pipeline.vla), 0, 0
    forwards: dict[str, list[int]] = {name: [] for name in pairs[0].steps}
    for pair in pairs:
        plain += pair.ours.end_to_end() == pair.pruned.end_to_end()
        full += text_of_all_tokens(pair.lean.work) == form.text(pair.answer)
        for name, one in pair.steps.items():
            if name in ("forced", "drafts"):
                one.end_to_end()
            forwards[name].append(one.forwards)
    means = {name: round(statistics.mean(counts), 2) for name, counts in forwards.items()}
    return {
        "same_text": full == len(pairs),
        "equal_to_transformers": [full, len(pairs)],
        "equal_answers": [plain, len(pairs)],
        "forwards_per_answer": list(means.values())[-1],
    }, means


@torch.inference_mode()
def text_of_all_tokens(work: Workload) -> str:
    """This package's answer without pruning, ended as in a vehicle."""
    context = PruningContext(work.encode(work.patches))
    return Generator(work.vla).generate(NoPruner(), [context], [work.prompt], work.vla.tokens)[0].answer.text


def _energy(pairs: Sequence[Pair], runs: int, device: torch.device) -> dict[str, Any]:
    """Joules of a plan by counter, each implementation by itself; none where nothing tells."""
    counters, reasons = find_counters(device)
    joules: dict[str, dict[str, float]] = {}
    try:
        for who, case in whole(pairs).items() if counters else ():
            set_threads(case)
            rest()
            found = spent(counters, lambda case=case: case.run([]), runs, device)
            joules[who] = {name: round(value, 4) for name, value in found.items()}
    except (OSError, ValueError) as error:
        joules, reasons = {}, [*reasons, f"a counter could not be read any more ({error})"]
    return {"joules_per_plan": joules or None, "plans": runs, "reasons": reasons}


def _floor(pair: Pair, timings: dict[str, dict[str, Timing]], forwards: dict[str, float]) -> dict[str, Any]:
    """What each stage needs at least beside its medians."""
    vla, ours = pair.lean.vla, pair.ours
    speeds, work = measured_speeds(vla), Floor(vla)
    ms = {stage: {who: timings[stage][who].median_ms for who in (OURS, STOCK)} for stage in STAGES}
    length, draft, behind = len(pair.stock.work.prompt), ours.draft_tokens, list(forwards.values())[-1]
    kept = length - vla.tokens + ours.keep
    prompts = {"all tokens": (length, 0, {STOCK: ms["prefill"][STOCK]}), "pruned": (kept, 0, {})}
    prompts["pruned, with the draft" if draft else "pruned"] = (kept + draft, draft, {OURS: ms["prefill"][OURS]})
    step = {STOCK: ms["decode"][STOCK] / forwards[STOCK] if forwards[STOCK] else None}
    step[OURS] = ms["decode"][OURS] / behind if behind else None  # a draft that is right needs no forward
    token = speeds.row(work.decode(kept), **step)
    return {
        "gflops_per_s": round(speeds.flop_per_s / 1e9, 1),
        "gbytes_per_s": round(speeds.bytes_per_s / 1e9, 1),
        "encode": {"tokens": vla.tokens, **speeds.row(work.encode(pair.lean), **ms["encode"])},
        "prefill": {
            name: {"tokens": tokens, **speeds.row(work.prefill(tokens, 1 + drafted), **measured)}
            for name, (tokens, drafted, measured) in prompts.items()
        },
        "decode": {"tokens": 1, **token},
        "decode_gbytes": token["gbytes"],
        "decode_step_least_ms": token["least_ms"],
    }


def _stage(timings: dict[str, Timing]) -> dict[str, float]:
    """Median, p90, p99, worst and jitter of both."""
    figures = {f"{who}_ms": round(timing.median_ms, 3) for who, timing in timings.items()}
    return figures | {f"{who}_{name}": value for who, each in timings.items() for name, value in each.spread.items()}


def _ablation(timings: dict[str, Timing], forwards: dict[str, float]) -> list[dict[str, Any]]:
    """End to end (patches to answer), each row with one thing more; how many times faster than transformers."""
    return [
        {
            "with": name,
            "median_ms": round(timing.median_ms, 3),
            "speedup": ratio(timings[STOCK], timing),
            "forwards": forwards[name],
        }
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
