"""Is a language engine right? Its logits and answers against torch in float32 on the same prompts.

Logits are compared where both sides have read the same: at the end of the prompt, and behind each token of torch's own
answer, which is forced on both. Answers are compared as each side writes them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn.functional import cosine_similarity
from tqdm import tqdm

from fastdrive_export.files import builder_lock, write_manifest
from fastdrive_export.samples import Sample, Samples
from fastdrive_node.benchmark.timing import Case, measure
from fastdrive_node.engines.language_engine import EngineLanguage, check_language_engine, load_language_engine
from fastdrive_node.engines.manifest import LanguageParity
from fastdrive_node.errors import InputError, ModelError
from fastdrive_node.families import Prompt, Vla
from fastdrive_node.planning.generator import Generator
from fastdrive_node.pruning.baselines.simple import NoPruner
from fastdrive_node.pruning.pruner import Prefilled, Pruner, PruningContext
from fastdrive_node.pruning.registry import make_pruner
from fastdrive_node.pruning.select import keep_count

DROPS = (0.0, 0.5, 0.75)
TIMED_RUNS = 10
# precision -> lowest mean cosine of the logits, lowest share of steps with the same likeliest token
REQUIRED = {"fp32": (0.9999, 0.999), "fp16": (0.999, 0.98), "bf16": (0.995, 0.95)}


@dataclass(frozen=True)
class Question:
    """A prompt with its visual tokens, and those that are kept."""

    prompt: Prompt
    context: PruningContext
    kept: torch.Tensor  # int64 [K], ascending


@dataclass
class _Sums:
    """Figures while questions come in."""

    cosines: list[torch.Tensor] = field(default_factory=list)  # [steps] of each question, as the next two
    errors: list[torch.Tensor] = field(default_factory=list)
    same_tokens: list[torch.Tensor] = field(default_factory=list)
    same_answers: list[bool] = field(default_factory=list)


class LanguageParityRun:
    """Compares one language engine with torch.

    Args:
        vla: in float32, with all its weights.
        engine: to compare.
        pruner: chooses the tokens of pruned prompts; None takes every token only.
        drop: the one pruning ratio to compare at; None: 0, 0.5 and 0.75.

    Raises:
        InputError: ``drop`` is out of range, or above 0 without a pruner.
    """

    def __init__(self, vla: Vla, engine: EngineLanguage, pruner: Pruner | None, drop: float | None = None):
        self.vla, self.engine = vla, engine
        self.reference, self.candidate = Generator(vla), Generator(vla, engine)
        self.vision = vla.torch_vision()
        self.pruner = pruner or NoPruner()
        drops = DROPS if drop is None else (drop,)
        if pruner is None:
            if drop:
                raise InputError(f"--drop {drop:g}: needs a pruner; give --pruner FILE")
            drops = (0.0,)
        try:
            self.keeps = [keep_count(vla.tokens, each) for each in drops]
        except ValueError as error:
            raise InputError(str(error)) from error

    @torch.inference_mode()
    def questions(self, sample: Sample) -> list[Question]:
        """One for each pruning ratio."""
        context = PruningContext(self.vision.encode(self.vision.preprocess(sample.images)))
        prompt = self.reference.prompt(sample.history, sample.command)
        return [Question(prompt, context, self.pruner.choose(context, keep).indices) for keep in self.keeps]

    def prefill(self, generator: Generator, question: Question) -> Prefilled:
        """The question's prompt after its pruned prefill."""
        inputs = [question.prompt], [question.context.visual], [question.kept]
        return generator.prefill(self.pruner, *inputs, len(question.kept))

    def answer(self, generator: Generator, question: Question) -> tuple[int, ...]:
        """Greedy ids."""
        return generator.decode(self.prefill(generator, question))[0].ids

    def run(self, samples: Samples, plans: bool = True) -> LanguageParity:
        """Compare on samples; ``plans``: answers too. Raises ModelError where logits are not finite."""
        sums = _Sums()
        for sample in tqdm(samples.samples, desc="parity", unit="set", leave=False, disable=None):
            for question in self.questions(sample):
                self._add(sums, question, plans)
        cosine, errors = torch.cat(sums.cosines), torch.cat(sums.errors)
        figures = [float(cosine.mean()), float(cosine.min()), float(errors.max())]
        if not all(map(math.isfinite, figures)):
            raise ModelError("parity: logits that are not finite; build the engine with --precision bf16 or fp32")
        mean, lowest = (min(max(value, -1.0), 1.0) for value in figures[:2])  # rounding passes 1
        share = float(torch.cat(sums.same_tokens).float().mean())
        least_cosine, least_share = REQUIRED[self.engine.facts.precision]
        return LanguageParity(
            passed=mean >= least_cosine and share >= least_share,
            images=samples.origin,
            sets=len(samples.samples),
            steps=len(cosine),
            cosine=mean,
            cosine_min=lowest,
            max_abs_error=figures[2],
            prefill_max_abs_error=max(float(each[0]) for each in sums.errors),
            same_tokens=share,
            answers_equal=bool(sums.same_answers) and all(sums.same_answers),
            answers_compared=len(sums.same_answers),
            answers_same=sum(sums.same_answers),
            runtime=self.engine.runner.name,
            latency_ms=self._latency(self.questions(samples.samples[0])[0]),
        )

    def _add(self, sums: _Sums, question: Question, plans: bool) -> None:
        ids = self.answer(self.reference, question)
        ours, theirs = (
            each.forced_logits(self.prefill(each, question), ids).cpu() for each in (self.reference, self.candidate)
        )
        sums.cosines.append(cosine_similarity(ours, theirs, dim=-1))
        sums.errors.append((ours - theirs).abs().amax(dim=-1))
        sums.same_tokens.append(ours.argmax(dim=-1) == theirs.argmax(dim=-1))
        if plans:
            sums.same_answers.append(self.answer(self.candidate, question) == ids)

    def _latency(self, question: Question) -> dict[str, float]:
        """Medians of prefill and whole answer of one prompt, in turns."""
        cases = {}
        for name, generator in (("reference", self.reference), ("engine", self.candidate)):
            cases[f"{name}_prefill"] = Case(lambda _, generator=generator: self.prefill(generator, question))
            cases[f"{name}_answer"] = Case(lambda _, generator=generator: self.answer(generator, question))
        times = measure(cases, TIMED_RUNS, self.vla.device, warm_up=1)
        return {name: round(timing.median_ms, 3) for name, timing in times.items()}


def verify_language(
    file: Path,
    vla: Vla,
    pruner_file: Path | None,
    samples: Samples,
    drop: float | None = None,
    provider: str = "auto",
    plans: bool = True,
) -> LanguageParity:
    """Check a language engine, compare it with torch, and write what was found into its manifest.

    Args:
        vla: in float32.
        pruner_file: of the ReconPruner that chooses tokens; None compares unpruned prompts only.
        plans: compare answers too.

    Raises:
        ModelError: file, manifest and VLA do not fit together, or the pruner cannot be used.
        InputError: another process builds or verifies in the same folder, or ``drop`` does not fit.
    """
    with builder_lock(file.parent):
        manifest = check_language_engine(file, vla)
        pruner = None if pruner_file is None else make_pruner("reconpruner", vla, pruner_file)
        engine = load_language_engine(file, manifest, vla, provider)
        parity = LanguageParityRun(vla, engine, pruner, drop).run(samples, plans)
        write_manifest(file, manifest.model_copy(update={"parity": parity}))
    return parity
