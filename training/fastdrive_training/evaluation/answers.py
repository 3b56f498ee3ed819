"""From samples and a row to answers: context, selection, prefill, decode, verdict."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fastdrive_node.errors import AnswerError, ModelError, UsageError
from fastdrive_node.families.loading import Vla
from fastdrive_node.families.qwen2_5_vl.language import LanguageModel
from fastdrive_node.families.qwen2_5_vl.prompt import Prompt, build_prompt
from fastdrive_node.planning.answer_format import parse_answer
from fastdrive_node.planning.checks import check_plan
from fastdrive_node.planning.decode import generate_batch
from fastdrive_node.planning.pruned_generation import answer_pruned, build_context
from fastdrive_node.pruning.baselines import LayerPruner, Need, Pruner, PruningContext, choose, make_pruner
from fastdrive_node.pruning.select import keep_count
from fastdrive_node.pruning.temporal import Moment, TemporalState
from fastdrive_training.data.features import Features
from fastdrive_training.data.nuscenes.keyframes import Keyframe, KeyframeDataset
from fastdrive_training.data.token_cache import camera_order
from fastdrive_training.evaluation.metrics import Judgement, Surroundings, judge_plan
from fastdrive_training.evaluation.settings import SEEDED, OpenLoopSettings, RowKey


@dataclass(frozen=True)
class Sample:
    """One keyframe with all that the rows need of it."""

    keyframe: Keyframe
    prompt: Prompt
    features: Features  # of its own pictures, or of another scene's
    coverage: torch.Tensor | None  # [C, N], of the same pictures; None where no pruner asks for it
    around: Surroundings
    moment: Moment | None = None  # of the pictures; None where no pruner asks for it
    state: TemporalState | None = None  # what the sets before the pictures leave to the pruner with a memory


@dataclass(frozen=True)
class Verdict:
    """What became of one sample in one row."""

    token: str
    scene: str
    text: str  # the answer; empty for a row without a model
    plan_m: np.ndarray | None  # float64 [points, 2]; None for a refused answer
    reason: str | None  # why it was refused
    judgement: Judgement | None  # None for a refused answer
    kept: np.ndarray | None  # int32 [K], the visual tokens that the last layer saw; None for a row without a model


@dataclass
class Row:
    """One row of the table with its pruner."""

    key: RowKey
    pruner: Pruner | LayerPruner
    keep: int

    def pruner_for(self, token: str) -> Pruner | LayerPruner:
        """The row's pruner, or for one with a seed its own for this sample, whatever was run before."""
        if self.key.pruner not in SEEDED:
            return self.pruner
        seed = np.random.SeedSequence([self.key.seed, zlib.crc32(token.encode())]).generate_state(1)[0]
        return make_pruner(self.key.pruner, seed=int(seed))


def make_rows(vla: Vla, settings: OpenLoopSettings) -> list[Row]:
    """The rows of the settings. Raises ModelError: a pruner cannot serve the VLA. UsageError: nothing would be kept."""
    pruners: dict[str, Pruner | LayerPruner] = {}
    rows = []
    for key in settings.rows:
        if key.pruner not in pruners:
            pruners[key.pruner] = make_pruner(key.pruner, vla, settings.pruner_file)
        try:
            keep = keep_count(vla.tokens, key.drop)
        except ValueError as error:
            raise UsageError(f"--{error}") from error
        rows.append(Row(key, pruners[key.pruner], keep))
    return rows


def needs_of(rows: Sequence[Row]) -> frozenset[Need]:
    """What the pruners of some rows look at beside tokens and grid."""
    return frozenset().union(*(row.pruner.needs for row in rows))


class Answerer:
    """Answers samples with a VLA."""

    def __init__(self, dataset: KeyframeDataset, vla: Vla):
        self.dataset, self.vla, self.language = dataset, vla, LanguageModel(vla)
        self._order = camera_order(vla)

    def sample(
        self,
        keyframe: Keyframe,
        pictures: Keyframe,
        features: Features,
        around: Surroundings,
        coverage: bool,
        moment: Moment | None = None,
        state: TemporalState | None = None,
    ) -> Sample:
        """Put a sample together; ``features``, ``moment`` and ``state`` are those of ``pictures``.

        Raises InputError: no masks to cover.
        """
        share = None
        if coverage:
            cells = self.dataset.coverage(pictures, self.vla.grid)[self._order]
            share = torch.from_numpy(np.nan_to_num(cells, nan=0.0)).to(self.vla.device)
        prompt = build_prompt(self.vla, keyframe.history, keyframe.command)
        return Sample(keyframe, prompt, features, share, around, moment, state)

    def context(self, row: Row, sample: Sample) -> PruningContext:
        """What the row's pruner sees of a sample."""
        features = sample.features
        return build_context(
            row.pruner,
            self.language,
            features.tokens,
            self.vla.grid,
            sample.prompt,
            features.tower_attention,
            sample.coverage,
            sample.moment,
            sample.state,
        )

    @torch.inference_mode()
    def verdicts(self, row: Row, samples: Sequence[Sample]) -> list[Verdict]:
        """Answer the samples as one batch and judge the plans. Raises ModelError: the pruner's scores are unusable."""
        try:
            answers = self._answers(row, samples)
        except ValueError as error:
            raise ModelError(f"pruner {row.key.pruner}: {error}") from error
        return [
            self._judge(sample, text, kept.cpu().numpy().astype(np.int32))
            for sample, (text, kept) in zip(samples, answers, strict=True)
        ]

    def _answers(self, row: Row, samples: Sequence[Sample]) -> list[tuple[str, torch.Tensor]]:
        contexts = [self.context(row, sample) for sample in samples]
        prompts = [sample.prompt for sample in samples]
        if isinstance(row.pruner, LayerPruner):
            answered = answer_pruned(row.pruner, self.language, self.vla, contexts, prompts, row.keep)
            return [(answer.text, kept) for answer, kept in answered]
        kept = [
            choose(row.pruner_for(sample.keyframe.token), context, row.keep)
            for sample, context in zip(samples, contexts, strict=True)
        ]
        tokens = [context.tokens for context in contexts]
        answers = generate_batch(self.language, self.vla, tokens, kept, prompts)
        return [(answer.text, indices) for answer, indices in zip(answers, kept, strict=True)]

    def _judge(self, sample: Sample, text: str, kept: np.ndarray) -> Verdict:
        keyframe, answer = sample.keyframe, self.vla.spec.answer
        try:
            plan = parse_answer(text, answer)
            check_plan(plan, answer.interval_s, keyframe.history.now.speed_mps)
        except AnswerError as error:
            return Verdict(keyframe.token, keyframe.scene, text, None, str(error), None, kept)
        return Verdict(keyframe.token, keyframe.scene, text, plan, None, judge_plan(plan, sample.around), kept)


def plan_verdict(keyframe: Keyframe, plan: np.ndarray, around: Surroundings) -> Verdict:
    """The verdict on a plan [points, 2] that no model gave."""
    return Verdict(keyframe.token, keyframe.scene, "", plan, None, judge_plan(plan, around), None)
