"""A pipeline against plain transformers: the figures of ``fastdrive bench``."""

from __future__ import annotations

import numpy as np
import torch

from fastdrive_node.benchmark.agreement import NOTE, agreement
from fastdrive_node.benchmark.implementations import FastDrive, HfGenerate, Workload
from fastdrive_node.benchmark.timing import Case, Timing, measure, ratio
from fastdrive_node.devices import describe
from fastdrive_node.errors import ModelError
from fastdrive_node.families import LayeredLanguageModel, build_prompt
from fastdrive_node.planning.answer_format import answer_format
from fastdrive_node.planning.generator import Generator
from fastdrive_node.planning.pipeline import Pipeline
from fastdrive_node.pruning.baselines.simple import NoPruner
from fastdrive_node.pruning.pruner import PruningContext
from fastdrive_node.types import Command, EgoHistory, EgoState

STAGES = ("encode", "prefill", "decode", "end_to_end")
_SEED = 0
_SPEED_MPS = 5.0


@torch.inference_mode()
def compare(pipeline: Pipeline, runs: int) -> dict:
    """Measure every stage of a pipeline in turns with plain transformers, which reads all visual tokens.

    Both write as many tokens as transformers' own answer has.

    Args:
        runs: timed runs of each stage.

    Returns:
        The JSON of ``fastdrive bench``; times are medians.

    Raises:
        ModelError: the VLA's family runs in transformers' own text model, so there is nothing to compare.
    """
    vla = pipeline.vla
    vla.require_one_frame("`fastdrive bench`")
    vla.require_one_size("`fastdrive bench`")
    if not isinstance(pipeline.generator.language, LayeredLanguageModel):
        raise ModelError(
            f"{vla.path}: `fastdrive bench` compares a language path of this package with transformers', but "
            f"{vla.family.model_type} runs by transformers' own; use `fastdrive plan` to see its times"
        )
    work = example_workload(pipeline)
    form = answer_format(vla)
    answer = HfGenerate(work, form.max_new_tokens).generate(sorted(form.stop_ids))
    count = len(answer)
    stock, ours = HfGenerate(work, count), FastDrive(work, count, pipeline.pruner, pipeline.drop)
    kept = ours.prune(ours.encode())
    timings = {name: measure(cases, runs, vla.device) for name, cases in _cases(ours, stock).items()}
    prune = measure({"ours": Case(ours.prune, ours.encode)}, runs, vla.device)["ours"]
    return {
        "stages": {
            name: {
                f"{implementation}_ms": round(timing.median_ms, 3) for implementation, timing in timings[name].items()
            }
            for name in STAGES
        },
        **_speedups(timings, prune),
        "prune_ms": round(prune.median_ms, 3),
        "same_text": text_of_all_tokens(work) == form.text(answer),
        "drop": pipeline.drop,
        "tokens": vla.tokens,
        "kept_tokens": len(kept),
        "answer_tokens": count,
        "runs": runs,
        "agreement": agreement(FastDrive(work, count), stock),
        "agreement_note": NOTE,
        **describe(vla.device),
    }


def example_workload(pipeline: Pipeline) -> Workload:
    """Random images at the VLA's size, a vehicle that drives straight, and nothing known of its past."""
    vla = pipeline.vla
    shape = (len(vla.spec.cameras), *vla.spec.image_size, 3)
    images = np.random.default_rng(_SEED).integers(0, 256, shape, dtype=np.uint8)
    history = EgoHistory((EgoState(0, 0.0, 0.0, 0.0, _SPEED_MPS),), vla.spec.history.interval_s)
    prompt = build_prompt(vla, history, Command.STRAIGHT)
    return Workload(vla, pipeline.vision, pipeline.vision.preprocess(images), prompt)


@torch.inference_mode()
def text_of_all_tokens(work: Workload) -> str:
    """This package's answer without pruning, ended as in a vehicle."""
    context = PruningContext(work.vision.encode(work.patches))
    return Generator(work.vla).generate(NoPruner(), [context], [work.prompt], work.vla.tokens)[0].answer.text


def _cases(ours: FastDrive, stock: HfGenerate) -> dict[str, dict[str, Case]]:
    """Both implementations of each stage; each starts from its own results of the stage before."""
    tokens, expected = ours.encode(), stock.encode()
    kept = ours.prune(tokens)
    return {
        "encode": {"ours": Case(lambda _: ours.encode()), "transformers": Case(lambda _: stock.encode())},
        "prefill": {
            "ours": Case(lambda _: ours.prefill(tokens, kept)),
            "transformers": Case(lambda _: stock.prefill(expected)),
        },
        "decode": {
            "ours": Case(ours.decode, lambda: ours.prefill(tokens, kept)),
            "transformers": Case(stock.decode, lambda: stock.prefill(expected)),
        },
        "end_to_end": {"ours": Case(lambda _: ours.end_to_end()), "transformers": Case(lambda _: stock.end_to_end())},
    }


def _speedups(timings: dict[str, dict[str, Timing]], prune: Timing) -> dict[str, float | None]:
    """transformers' time over ours; the prefill also with the pruner's time as a part of ours."""
    prefill, whole = timings["prefill"], timings["end_to_end"]
    with_pruner = prefill["ours"].median_ms + prune.median_ms
    return {
        "speedup_end_to_end": ratio(whole["transformers"], whole["ours"]),
        "speedup_prefill": ratio(prefill["transformers"], prefill["ours"]),
        "speedup_prefill_with_pruner": round(prefill["transformers"].median_ms / with_pruner, 3),
    }
