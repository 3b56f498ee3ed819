"""The second regime: a VLA's own language model on as many visual tokens as the paper has, 57 x 57 of one image.

The tokens are random, for times do not depend on them; the encoder does not run. A prefill of this package on the
pruned prompt takes turns with transformers' on all tokens.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import torch

from fastdrive_node.benchmark.floor import Floor
from fastdrive_node.benchmark.implementations import FastDrive, HfGenerate
from fastdrive_node.benchmark.timing import Case, Timing, measure, ratio
from fastdrive_node.benchmark.workload import Workload
from fastdrive_node.engines.language_engine import EngineLanguage
from fastdrive_node.families import VisualTokens, build_prompt
from fastdrive_node.planning.pipeline import Pipeline
from fastdrive_node.replay.samples import PlanningSample

SIDE = 57  # token rows and columns of the image
_SEED = 0
_MOST_RUNS = 20
_OTHERS = 2  # times that of transformers, which all cases together take
_LONG_S = 30.0  # from there on it is told how long it takes
_log = logging.getLogger(__name__)


class _Large:
    """Both implementations of one prompt with one large image."""

    def __init__(self, pipeline: Pipeline, sample: PlanningSample):
        side = SIDE * pipeline.vla.pixels_per_token
        self.vla = pipeline.vla.of_size((side, side))
        prefix = pipeline.generator.answer.prefix_ids
        prompt = build_prompt(self.vla, sample.history, sample.command, prefix, (0,))
        nothing = torch.empty(len(self.vla.images), 0, device=self.vla.device)  # there is no image to encode
        self._work = Workload(self.vla, pipeline.vision, nothing, prompt, threads=pipeline.threads, present=(0,))
        self._pipeline, self.prompt_tokens = pipeline, len(prompt)
        random = torch.Generator().manual_seed(_SEED)
        rows = torch.randn(SIDE**2, self.vla.width, generator=random).to(self.vla.device, self.vla.dtype)
        self.visual = VisualTokens.from_raster(rows[None], (SIDE, SIDE))
        self.stock = HfGenerate(self._work, 1)

    def ours(self, language: Any) -> FastDrive:
        return FastDrive(self._work, 1, self._pipeline.pruner, self._pipeline.drop, language)


@torch.inference_mode()
def large_prefill(pipeline: Pipeline, engines: Pipeline | None, sample: PlanningSample, runs: int) -> dict[str, Any]:
    """Times of prefill and pruner at 3249 visual tokens, in ms, and ratios; what failed has an error in their place.

    Args:
        pipeline: in torch; its pruner chooses.
        engines: the same model with engines; its language engine is measured too, where it has one.
        runs: timed runs of each case; more than 20 are not taken.
    """
    runs = min(runs, _MOST_RUNS)
    one = _Large(pipeline, sample)
    ours = one.ours(pipeline.generator.language)

    def stock() -> object:
        return one.stock.prefill(one.visual.rows)

    def kept() -> torch.Tensor:
        return ours.prune(one.visual)

    cases = {
        "transformers": Case(lambda _: stock(), lambda: _tell_time(stock, runs), pipeline.threads),
        "prune": Case(lambda _: kept(), threads=pipeline.threads),
        "ours": Case(lambda chosen: ours.prefill(one.visual, chosen), kept, pipeline.threads),
    }
    if engines is not None and isinstance(engines.generator.language, EngineLanguage):
        engine = one.ours(engines.generator.language)
        cases["engines"] = Case(lambda chosen: engine.prefill(one.visual, chosen), kept, engines.threads)
    timings = measure(cases, runs, pipeline.vla.device, warm_up=1, tolerant=True)
    pruned_tokens = one.prompt_tokens - SIDE**2 + ours.keep
    work = Floor(one.vla)
    return {
        "tokens": SIDE**2,
        "kept_tokens": ours.keep,
        "prompt_tokens": one.prompt_tokens,
        "runs": runs,
        "rows": {name: timing.figures() | _spread(timing) for name, timing in timings.items()},
        "speedup": {
            name: _speedup(timings["transformers"], timings["prune"], timings[name])
            for name in ("ours", "engines")
            if name in timings
        },
        # None where some layers read more tokens than are kept
        "arithmetic_ratio": None
        if pipeline.pruner.acts_inside
        else round(work.prefill(one.prompt_tokens).flop / work.prefill(pruned_tokens).flop, 3),
    }


def _spread(timing: Timing) -> dict[str, float]:
    return {} if timing.error is not None else timing.spread


def _speedup(stock: Timing, prune: Timing, prefill: Timing) -> dict[str, float | None]:
    """With the pruner's time, and without."""
    failed = any(timing.error is not None for timing in (stock, prune, prefill))
    with_pruner = None if failed else round(stock.median_ms / (prefill.median_ms + prune.median_ms), 3)
    return {"prefill": with_pruner, "prefill_alone": ratio(stock, prefill)}


def _tell_time(slowest: Callable[[], object], runs: int) -> None:
    """Say how long the measurement takes, where one needs to know."""
    start = time.perf_counter()
    slowest()
    seconds = (time.perf_counter() - start) * (runs + 1) * _OTHERS
    if seconds > _LONG_S:
        _log.warning("%d visual tokens: takes about %.0f s; --no-large leaves it out", SIDE**2, seconds)
