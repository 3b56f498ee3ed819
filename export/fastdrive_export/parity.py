"""Is an engine right? Its results against torch's in float32, written into its manifest.

Vision: tokens, scores, kept sets and answers on the same images. Nearly equal scores may swap places between two
precisions, so kept sets are compared by what they have in common and not by rank.

Language: logits where both have read the same, which is at the end of the prompt and after each token of torch's own
answer, given to both; then the answers that each writes by itself.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cosine_similarity
from tqdm import tqdm

from fastdrive_export.files import builder_lock, write_manifest
from fastdrive_export.samples import Sample, Samples
from fastdrive_node.benchmark.timing import Case, measure
from fastdrive_node.engines.language_engine import EngineLanguage, check_language_engine, load_language_engine
from fastdrive_node.engines.manifest import LanguageParity, VisionParity, read_manifest
from fastdrive_node.engines.vision_engine import EngineVision, check_engine, load_engine
from fastdrive_node.errors import ModelError, UsageError
from fastdrive_node.families import Prompt, Vla
from fastdrive_node.planning.generator import Generator
from fastdrive_node.pruning.baselines.simple import NoPruner
from fastdrive_node.pruning.pruner import Prefilled, Pruner, PruningContext
from fastdrive_node.pruning.registry import make_pruner
from fastdrive_node.pruning.score_pruner import ScorePruner
from fastdrive_node.pruning.select import keep_count

VISION_DROPS, LANGUAGE_DROPS = (0.25, 0.5, 0.75), (0.0, 0.5, 0.75)
TIMED_RUNS = 10
# precision -> lowest mean cosine of tokens or logits; lowest overlap of the kept sets, or fraction of equal next tokens
REQUIRED = {"fp32": (0.9999, 0.999), "fp16": (0.999, 0.98), "bf16": (0.995, 0.95)}


class Comparison(ABC):
    """One engine and torch on the same samples.

    Args:
        vla: in float32, with all its weights.
        engine: to compare.
    """

    def __init__(self, vla: Vla, engine: EngineVision | EngineLanguage):
        self.vla = vla
        self.engine: Any = engine
        self.vision, self.reference = vla.torch_vision(), Generator(vla)
        self.cosines: list[torch.Tensor] = []  # of one sample each, as the next one
        self.errors: list[torch.Tensor] = []
        self.same_answers: list[bool] = []

    @abstractmethod
    def add(self, sample: Sample, answers: bool) -> None:
        """Compare one more sample; ``answers``: what the VLA writes too."""

    @abstractmethod
    def parity(self, samples: Samples) -> Any:
        """The figures of all that was added, for the manifest; nothing is timed."""

    @abstractmethod
    def cases(self, sample: Sample) -> Mapping[str, Case]:
        """What is timed, by the names in the manifest."""

    def keep_count(self, drop: float) -> int:
        """Tokens kept of all at a pruning ratio. Raises UsageError where there are none."""
        try:
            return keep_count(self.vla.tokens, drop)
        except ValueError as error:
            raise UsageError(f"--{error}") from error

    @property
    def all_same(self) -> bool | None:
        """Whether all compared answers are equal; None where none was compared."""
        return all(self.same_answers) if self.same_answers else None

    @torch.inference_mode()
    def run(self, samples: Samples, answers: bool = True) -> Any:
        """Compare samples. Returns the figures. Raises ModelError where the engine's values are not finite."""
        for sample in tqdm(samples.samples, desc="parity", unit="set", leave=False, disable=None):
            self.add(sample, answers)
        return self.parity(samples)

    @torch.inference_mode()
    def latency_ms(self, sample: Sample) -> dict[str, float]:
        """Medians of ``cases``, run in turns."""
        times = measure(dict(self.cases(sample)), TIMED_RUNS, self.vla.device, warm_up=1)
        return {name: round(timing.median_ms, 3) for name, timing in times.items()}

    def _common(self, samples: Samples, agreement: float) -> dict[str, Any]:
        """The figures that both parts of a VLA have."""
        cosines, error = torch.cat(self.cosines), float(torch.cat(self.errors).max())
        mean, lowest = float(cosines.mean()), float(cosines.min())
        if not all(map(math.isfinite, (mean, lowest, error))):
            raise ModelError("parity: values that are not finite; build the engine with --precision bf16 or fp32")
        mean, lowest = (min(max(value, -1.0), 1.0) for value in (mean, lowest))  # rounding exceeds 1
        least_cosine, least_agreement = REQUIRED[self.engine.manifest.graph.precision]
        return {
            "passed": mean >= least_cosine and agreement >= least_agreement,
            "images": samples.origin,
            "sets": len(samples.samples),
            "cosine": mean,
            "cosine_min": lowest,
            "max_abs_error": error,
            "runtime": self.engine.runner.name,
            "latency_ms": {},
        }


class VisionComparison(Comparison):
    """Compares a vision engine.

    Args:
        pruner_file: that the engine was built with.
        drop: pruning ratio of the compared answers; None: 0.5, or the least that the engine serves.

    Raises:
        ModelError: the pruner cannot be used.
        UsageError: the engine gives too few tokens for ``drop``.
    """

    def __init__(self, vla: Vla, engine: EngineVision, pruner_file: Path | None, drop: float | None = None):
        super().__init__(vla, engine)
        self.pruners: tuple[Any, Any] = make_pruner("reconpruner", vla, pruner_file), ScorePruner(None)
        least = 1 - engine.max_keep / vla.tokens
        self.drop = max(0.5, least) if drop is None else drop
        keeps = {each: self.keep_count(each) for each in sorted({*VISION_DROPS, self.drop})}
        self.keeps = {each: keep for each, keep in keeps.items() if keep <= engine.max_keep}
        if self.drop not in self.keeps:
            raise UsageError(
                f"--drop {self.drop:g}: the engine gives {engine.max_keep} tokens; give {least:.3g} or more"
            )
        self.score_errors: list[float] = []
        self.overlaps: dict[float, list[float]] = {each: [] for each in self.keeps}

    def add(self, sample: Sample, answers: bool) -> None:
        visual = [vision.encode(vision.preprocess(sample.images)) for vision in (self.vision, self.engine)]
        contexts = [PruningContext(each) for each in visual]
        scores = [pruner.score(context).cpu() for pruner, context in zip(self.pruners, contexts, strict=True)]
        expected, found = visual[0].take(visual[1].indices).float(), visual[1].rows.float()
        self.cosines.append(cosine_similarity(found, expected, dim=-1).cpu())
        self.errors.append((found - expected).abs().amax(dim=-1).cpu())
        self.score_errors.append(float((scores[0] - scores[1]).abs().max()))
        for drop, keep in self.keeps.items():
            chosen = [pruner.choose(context, keep) for pruner, context in zip(self.pruners, contexts, strict=True)]
            kept = [set(each.indices.tolist()) for each in chosen]
            self.overlaps[drop].append(len(kept[0] & kept[1]) / keep)
            if answers and drop == self.drop:
                prompt = self.reference.prompt(sample.history, sample.command)
                texts = {
                    self.reference.generate(pruner, [context], [prompt], keep, [selection])[0].answer.text
                    for pruner, context, selection in zip(self.pruners, contexts, chosen, strict=True)
                }
                self.same_answers.append(len(texts) == 1)

    def parity(self, samples: Samples) -> VisionParity:
        overlap = {f"{drop:g}": sum(values) / len(values) for drop, values in self.overlaps.items()}
        return VisionParity(
            **self._common(samples, min(overlap.values())),
            score_max_abs_error=max(self.score_errors),
            kept_overlap=overlap,
            plans_equal=self.all_same,
            plans_compared=len(self.same_answers),
            plans_same=sum(self.same_answers),
        )

    def cases(self, sample: Sample) -> Mapping[str, Case]:
        """Encoding and scoring of one frame set."""

        def case(vision: Any, pruner: Pruner) -> Case:
            inputs = vision.preprocess(sample.images)
            return Case(lambda _: pruner.score(PruningContext(vision.encode(inputs))))

        return {"reference": case(self.vision, self.pruners[0]), "engine": case(self.engine, self.pruners[1])}


@dataclass(frozen=True)
class Question:
    """A prompt with its visual tokens, and those that are kept."""

    prompt: Prompt
    context: PruningContext
    kept: torch.Tensor  # int64 [K], ascending


class LanguageComparison(Comparison):
    """Compares a language engine.

    Args:
        pruner: chooses the tokens of pruned prompts; None: every token is kept.
        drop: the one pruning ratio to compare at; None: 0, 0.5 and 0.75.

    Raises:
        UsageError: ``drop`` is above 0 without a pruner.
    """

    def __init__(self, vla: Vla, engine: EngineLanguage, pruner: Pruner | None, drop: float | None = None):
        super().__init__(vla, engine)
        if pruner is None and drop:
            raise UsageError(f"--drop {drop:g}: needs a pruner; give --pruner FILE")
        self.candidate = Generator(vla, self.engine)
        drops = (0.0,) if pruner is None else LANGUAGE_DROPS if drop is None else (drop,)
        self.pruner = pruner or NoPruner()
        self.keeps = [self.keep_count(each) for each in drops]
        self.same_tokens: list[torch.Tensor] = []  # [steps] of each question

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

    def add(self, sample: Sample, answers: bool) -> None:
        for question in self.questions(sample):
            ids = self.answer(self.reference, question)
            expected, found = (
                each.forced_logits(self.prefill(each, question), ids).cpu() for each in (self.reference, self.candidate)
            )
            self.cosines.append(cosine_similarity(expected, found, dim=-1))
            self.errors.append((expected - found).abs().amax(dim=-1))
            self.same_tokens.append(expected.argmax(dim=-1) == found.argmax(dim=-1))
            if answers:
                self.same_answers.append(self.answer(self.candidate, question) == ids)

    def parity(self, samples: Samples) -> LanguageParity:
        same = torch.cat(self.same_tokens)
        fraction = float(same.float().mean())
        return LanguageParity(
            **self._common(samples, fraction),
            steps=len(same),
            prefill_max_abs_error=max(float(each[0]) for each in self.errors),
            same_tokens=fraction,
            answers_equal=self.all_same,
            answers_compared=len(self.same_answers),
            answers_same=sum(self.same_answers),
        )

    def cases(self, sample: Sample) -> Mapping[str, Case]:
        """Prefill and whole answer of one prompt."""
        question, cases = self.questions(sample)[0], {}
        for name, generator in (("reference", self.reference), ("engine", self.candidate)):
            cases[f"{name}_prefill"] = Case(lambda _, generator=generator: self.prefill(generator, question))
            cases[f"{name}_answer"] = Case(lambda _, generator=generator: self.answer(generator, question))
        return cases


def verify_engine(
    file: Path,
    vla: Vla,
    pruner_file: Path | None,
    samples: Samples,
    drop: float | None = None,
    provider: str = "auto",
    answers: bool = True,
    compared: Callable[[VisionParity | LanguageParity], None] | None = None,
) -> VisionParity | LanguageParity:
    """Check an engine, compare it with torch, and write the figures into its manifest, before anything is timed.

    Args:
        vla: in float32.
        pruner_file: for a vision engine, the file that it was built with; for a language engine the ReconPruner that
            chooses tokens, or None to compare unpruned prompts only.
        answers: compare what the VLA writes too.
        compared: is called with the figures before anything is timed.

    Raises:
        ModelError: file, manifest, VLA and pruner do not fit together.
        UsageError: ``drop`` does not fit the engine.
        InputError: another process builds or verifies in the same folder.
    """
    with builder_lock(file.parent):
        comparison = _open(file, vla, pruner_file, drop, provider)
        manifest, parity = comparison.engine.manifest, comparison.run(samples, answers)
        write_manifest(file, manifest.model_copy(update={"parity": parity}))
        if compared is not None:
            compared(parity)
        parity = parity.model_copy(update={"latency_ms": comparison.latency_ms(samples.samples[0])})
        write_manifest(file, manifest.model_copy(update={"parity": parity}))
    return parity


def _open(file: Path, vla: Vla, pruner_file: Path | None, drop: float | None, provider: str) -> Comparison:
    if read_manifest(file).part == "language":
        pruner = None if pruner_file is None else make_pruner("reconpruner", vla, pruner_file)
        language = load_language_engine(file, check_language_engine(file, vla), vla, provider)
        return LanguageComparison(vla, language, pruner, drop)
    vision = load_engine(file, check_engine(file, vla, pruner_file), vla, provider)
    return VisionComparison(vla, vision, pruner_file, drop)
