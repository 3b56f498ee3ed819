"""Is an engine right? Its tokens, scores, kept sets and answers against torch in float32 on the same pictures.

Near-equal scores may change places between two precisions, so kept sets are compared by what they have in common and
not by index.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn.functional import cosine_similarity
from tqdm import tqdm

from fastdrive_export.files import builder_lock, write_manifest
from fastdrive_export.samples import Sample, Samples
from fastdrive_node.benchmark.timing import Case, measure
from fastdrive_node.engines.manifest import VisionParity
from fastdrive_node.engines.vision_engine import EngineVision, check_engine, load_engine
from fastdrive_node.errors import InputError, ModelError
from fastdrive_node.families import Vla
from fastdrive_node.planning.generator import Generator
from fastdrive_node.pruning.checkpoint import load_pruner
from fastdrive_node.pruning.pruner import PruningContext, Selection
from fastdrive_node.pruning.score_pruner import ScorePruner
from fastdrive_node.pruning.select import keep_count

DROPS = (0.25, 0.5, 0.75)
TIMED_RUNS = 10
# precision -> lowest mean cosine of the tokens, lowest mean overlap of the kept sets
REQUIRED = {"fp32": (0.9999, 0.999), "fp16": (0.999, 0.98), "bf16": (0.995, 0.95)}


@dataclass
class _Sums:
    """Figures while samples come in."""

    cosines: list[torch.Tensor] = field(default_factory=list)  # [given tokens] of each sample
    token_error: float = 0.0
    score_error: float = 0.0
    overlaps: dict[float, list[float]] = field(default_factory=dict)
    same_plans: list[bool] = field(default_factory=list)


class Parity:
    """Compares one engine with torch.

    Args:
        vla: in float32, with its tower.
        pruner_file: that the engine was built with.
        engine: to compare.
        drop: pruning ratio of the compared answers; None: 0.5, or the least that the engine serves.
    """

    def __init__(self, vla: Vla, pruner_file: Path, engine: EngineVision, drop: float | None = None):
        self.vla = vla
        self.engine = engine
        self.reference = vla.torch_vision()
        self.pruners = (ScorePruner(load_pruner(pruner_file, vla)), ScorePruner(None))
        self.generator = Generator(vla)
        least = 1 - engine.max_keep / vla.tokens
        self.drop = max(0.5, least) if drop is None else drop
        self.drops = sorted({each for each in (*DROPS, self.drop) if self._keep(each) <= engine.max_keep})
        if self.drop not in self.drops:
            raise InputError(
                f"--drop {self.drop:g}: the engine gives {engine.max_keep} tokens; give {least:.3g} or more"
            )

    def _keep(self, drop: float) -> int:
        try:
            return keep_count(self.vla.tokens, drop)
        except ValueError as error:
            raise InputError(str(error)) from error

    @torch.inference_mode()
    def run(self, samples: Samples, plans: bool = True) -> VisionParity:
        """Compare on samples. Raises ModelError where the engine gives numbers that are not finite."""
        sums = _Sums()
        for sample in tqdm(samples.samples, desc="parity", unit="set", leave=False, disable=None):
            self._add(sums, sample, plans)
        cosines = torch.cat(sums.cosines)
        figures = [float(cosines.mean()), float(cosines.min()), sums.token_error, sums.score_error]
        if not all(map(math.isfinite, figures)):
            raise ModelError("parity: tokens that are not finite; build the engine with --precision bf16 or fp32")
        overlap = {f"{drop:g}": _mean(sums.overlaps[drop]) for drop in self.drops}
        cosine, cosine_min = (min(max(value, -1.0), 1.0) for value in figures[:2])  # rounding passes 1
        least_cosine, least_overlap = REQUIRED[self.engine.manifest.graph.precision]
        return VisionParity(
            passed=cosine >= least_cosine and min(overlap.values()) >= least_overlap,
            images=samples.origin,
            sets=len(samples.samples),
            cosine=cosine,
            cosine_min=cosine_min,
            max_abs_error=sums.token_error,
            score_max_abs_error=sums.score_error,
            kept_overlap=overlap,
            plans_equal=bool(sums.same_plans) and all(sums.same_plans),
            plans_compared=len(sums.same_plans),
            plans_same=sum(sums.same_plans),
            runtime=self.engine.runner.name,
            latency_ms=self._latency(samples.samples[0]),
        )

    def _add(self, sums: _Sums, sample: Sample, plans: bool) -> None:
        visual = [vision.encode(vision.preprocess(sample.images)) for vision in (self.reference, self.engine)]
        contexts = [PruningContext(each) for each in visual]
        scores = [pruner.score(context).cpu() for pruner, context in zip(self.pruners, contexts, strict=True)]
        ours, theirs = visual[1].rows.float(), visual[0].take(visual[1].indices).float()
        sums.cosines.append(cosine_similarity(ours, theirs, dim=-1).cpu())
        sums.token_error = max(sums.token_error, float((ours - theirs).abs().max()))
        sums.score_error = max(sums.score_error, float((scores[0] - scores[1]).abs().max()))
        for drop in self.drops:
            keep = self._keep(drop)
            chosen = [pruner.choose(context, keep) for pruner, context in zip(self.pruners, contexts, strict=True)]
            kept = [set(each.indices.tolist()) for each in chosen]
            sums.overlaps.setdefault(drop, []).append(len(kept[0] & kept[1]) / keep)
            if plans and drop == self.drop:
                sums.same_plans.append(self._same_plan(sample, contexts, chosen, keep))

    def _same_plan(
        self, sample: Sample, contexts: Sequence[PruningContext], chosen: Sequence[Selection], keep: int
    ) -> bool:
        prompt = self.generator.prompt(sample.history, sample.command)
        texts = [
            self.generator.generate(pruner, [context], [prompt], keep, [selection])[0].answer.text
            for pruner, context, selection in zip(self.pruners, contexts, chosen, strict=True)
        ]
        return texts[0] == texts[1]

    def _latency(self, sample: Sample) -> dict[str, float]:
        """Medians of encoding and scoring one set of pictures, in turns."""

        def case(vision, pruner) -> Case:
            inputs = vision.preprocess(sample.images)
            return Case(lambda _: pruner.score(PruningContext(vision.encode(inputs))))

        cases = {"reference": case(self.reference, self.pruners[0]), "engine": case(self.engine, self.pruners[1])}
        times = measure(cases, TIMED_RUNS, self.vla.device, warm_up=1)
        return {name: round(timing.median_ms, 3) for name, timing in times.items()}


def verify_engine(
    file: Path,
    vla: Vla,
    pruner_file: Path,
    samples: Samples,
    drop: float | None = None,
    provider: str = "auto",
    plans: bool = True,
) -> VisionParity:
    """Check an engine, compare it with torch, and write what was found into its manifest.

    Args:
        vla: in float32.
        plans: compare answers too.

    Raises:
        ModelError: file, manifest, VLA and pruner do not fit together.
        InputError: another process builds or verifies in the same folder.
    """
    with builder_lock(file.parent):
        manifest = check_engine(file, vla, pruner_file)
        parity = Parity(vla, pruner_file, load_engine(file, manifest, vla, provider), drop).run(samples, plans)
        write_manifest(file, manifest.model_copy(update={"parity": parity}))
    return parity


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
