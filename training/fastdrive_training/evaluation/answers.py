"""From samples and a row to judged answers: context, selection, prefill, decode, figures of each step."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fastdrive_node.errors import AnswerError, InputError, UsageError
from fastdrive_node.families import Prompt, VisualTokens, Vla
from fastdrive_node.planning.checks import check_plan
from fastdrive_node.planning.generator import Answer, Generator
from fastdrive_node.pruning.pruner import ContextField, Pruner, PruningContext
from fastdrive_node.pruning.registry import make_pruner
from fastdrive_node.pruning.score_pruner import RefinedPruner
from fastdrive_node.pruning.select import keep_count
from fastdrive_node.pruning.temporal import FrameContext, TemporalState
from fastdrive_training.data.adapters.base import ImageSource, Item
from fastdrive_training.data.token_cache import FeatureStore, token_shape
from fastdrive_training.evaluation.metrics.horizons import at_metric_steps
from fastdrive_training.evaluation.metrics.judge import Judgement, Surroundings, judge_plan
from fastdrive_training.evaluation.seen_images import SeenImages
from fastdrive_training.evaluation.settings import SEEDED, OpenLoopSettings, RowKey

REACH = 5  # sets before a sample that a memory is built from; at its default of 0.5, older ones weigh 3 %


@dataclass(frozen=True)
class EvaluationSample:
    """One item with all that the rows need of it."""

    item: Item
    prompt: Prompt
    visual: VisualTokens  # of its own images, or of another scene's
    coverage: torch.Tensor | None  # [C, N], of the same images; None where no pruner asks for it
    around: Surroundings
    frame: FrameContext | None = None  # of the images; None where no pruner asks for it
    state: TemporalState | None = None  # what the sets before the images leave to the pruner with a memory


@dataclass(frozen=True)
class RefusedSample:
    """One item whose images the VLA would refuse."""

    item: Item
    around: Surroundings
    reason: str


@dataclass(frozen=True)
class JudgedAnswer:
    """The answer to one sample in one row."""

    sample: str  # name of the item
    scene: str
    text: str  # the answer; empty for a row without a model
    plan_m: np.ndarray | None  # float64 [6, 2] at the metrics' steps; None for a refused answer
    reason: str | None  # why it was refused
    judgement: Judgement | None  # None for a refused answer
    kept: np.ndarray | None  # int32 [K], the visual tokens that the last layer saw; None for a row without a model


@dataclass
class PrunerRow:
    """One row of the table with its pruner."""

    key: RowKey
    pruner: Pruner
    keep: int  # of all tokens

    def keep_of(self, visual: VisualTokens, vla: Vla) -> int:
        """How many of a sample's tokens are kept: past images may be missing."""
        return self.keep if visual.total == vla.tokens else keep_count(visual.total, self.key.drop)

    def pruner_for(self, name: str) -> Pruner:
        """The row's pruner, or for one with a seed its own for this sample, whatever was run before."""
        if self.key.pruner not in SEEDED:
            return self.pruner
        seed = np.random.SeedSequence([self.key.seed, zlib.crc32(name.encode())]).generate_state(1)[0]
        return make_pruner(self.key.pruner, seed=int(seed))


def make_rows(vla: Vla, settings: OpenLoopSettings) -> list[PrunerRow]:
    """The rows of the settings. Raises ModelError: a pruner cannot serve the VLA. UsageError: nothing would be kept."""
    pruners: dict[str, Pruner] = {}
    rows = []
    for key in settings.rows:
        if key.pruner not in pruners:
            pruners[key.pruner] = make_pruner(key.pruner, vla, settings.pruner_file)
        try:
            keep = keep_count(vla.tokens, key.drop)
        except ValueError as error:
            raise UsageError(f"--{error}") from error
        least = pruners[key.pruner].least_keep(vla.image_grids())
        if keep < least:
            raise UsageError(
                f"--drop: {key.drop:g} keeps {keep} of {vla.tokens} tokens, {key.pruner} keeps at least {least}; give "
                "smaller ratios, or leave this pruner out"
            )
        rows.append(PrunerRow(key, pruners[key.pruner], keep))
    return rows


def needs_of(rows: Sequence[PrunerRow]) -> frozenset[ContextField]:
    """What the pruners of some rows look at beside tokens and grid."""
    return frozenset().union(*(row.pruner.needs for row in rows))


class Answerer:
    """Answers samples with a VLA."""

    def __init__(self, vla: Vla):
        self.vla, self.generator = vla, Generator(vla)

    def sample(
        self,
        item: Item,
        images: Item,
        seen: SeenImages,
        around: Surroundings,
        coverage: bool,
        frame: FrameContext | None = None,
        state: TemporalState | None = None,
    ) -> EvaluationSample:
        """Put a sample together; ``seen``, ``frame`` and ``state`` are those of ``images``.

        Raises InputError: no masks to cover.
        """
        cells = None
        if coverage:
            cameras = zip(self.vla.spec.cameras, self.vla.grids, strict=True)
            known = np.concatenate([images.coverage([camera], grid)[0] for camera, grid in cameras])
            known = np.nan_to_num(known, nan=0.0).reshape(token_shape(self.vla.grids))
            cells = torch.from_numpy(known).to(self.vla.device)
        prompt = self.generator.prompt(item.known_history, item.command, seen.present)
        if frame is not None:
            cameras = tuple(self.vla.spec.cameras[self.vla.images[place][0]] for place in seen.present)
            frame = replace(frame, cameras=cameras)
        return EvaluationSample(item, prompt, seen.visual, cells, around, frame, state)

    def context(self, row: PrunerRow, sample: EvaluationSample) -> PruningContext:
        """What the row's pruner sees of a sample."""
        return self.generator.context(
            row.pruner, sample.visual, sample.prompt, sample.coverage, sample.frame, sample.state
        )

    @torch.inference_mode()
    def judged(self, row: PrunerRow, samples: Sequence[EvaluationSample | RefusedSample]) -> list[JudgedAnswer]:
        """Answer the samples and judge the plans, those with as many tokens in one batch.

        Raises ModelError: the pruner's scores are unusable.
        """
        batches: dict[int, list[int]] = {}
        for place, sample in enumerate(samples):
            if isinstance(sample, EvaluationSample):
                batches.setdefault(sample.visual.total, []).append(place)
        answers: dict[int, JudgedAnswer] = {}
        for places in batches.values():
            batch = [one for place in places if isinstance(one := samples[place], EvaluationSample)]
            answers |= zip(places, self._judged(row, batch), strict=True)
        return [
            JudgedAnswer(sample.item.name, sample.item.scene, "", None, sample.reason, None, None)
            if isinstance(sample, RefusedSample)
            else answers[place]
            for place, sample in enumerate(samples)
        ]

    def _judged(self, row: PrunerRow, samples: Sequence[EvaluationSample]) -> list[JudgedAnswer]:
        """One batch of samples with the same number of tokens."""
        keep = row.keep_of(samples[0].visual, self.vla)
        contexts = [self.context(row, sample) for sample in samples]
        prompts = [sample.prompt for sample in samples]
        selections = None
        if row.key.pruner in SEEDED:
            selections = [
                row.pruner_for(sample.item.name).choose(context, keep)
                for sample, context in zip(samples, contexts, strict=True)
            ]
        answers = self.generator.generate(row.pruner, contexts, prompts, keep, selections)
        return [
            self._judge(sample, each.answer, each.kept.cpu().numpy().astype(np.int32))
            for sample, each in zip(samples, answers, strict=True)
        ]

    def _judge(self, sample: EvaluationSample, answer: Answer, kept: np.ndarray) -> JudgedAnswer:
        item, text = sample.item, answer.text
        try:
            trajectory = self.generator.answer.parse(answer.ids)
            speed = item.known_history.now.speed_mps
            check_plan(trajectory.waypoints_m, trajectory.dt_s, speed, rounding_m=trajectory.rounding_m)
        except AnswerError as error:
            return JudgedAnswer(item.name, item.scene, text, None, str(error), None, kept)
        plan = at_metric_steps(trajectory.waypoints_m, trajectory.dt_s)
        return JudgedAnswer(item.name, item.scene, text, plan, None, judge_plan(plan, sample.around), kept)


def judged_plan(item: Item, plan: np.ndarray, around: Surroundings) -> JudgedAnswer:
    """A plan [6, 2] that no model gave, judged."""
    return JudgedAnswer(item.name, item.scene, "", plan, None, judge_plan(plan, around), None)


class EarlierSets:
    """The sets before a sample, for a pruner with a memory: in a vehicle they have run when the sample comes.

    Args:
        features: of the same dataset.
    """

    def __init__(self, source: ImageSource, vla: Vla, features: FeatureStore):
        self._source, self._features = source, features
        self._cameras, self._grids = tuple(vla.spec.cameras), vla.grids

    def frame(self, index: int) -> FrameContext:
        """Of an item by its position. Raises InputError: the dataset has no stamps or no ego motion."""
        item = self._source[index]
        world = item.find_world_state()
        if item.stamp_ns is None or world is None:
            raise InputError(f"{self._source.root}: {item.name} has no stamp or ego pose; temporal terms need both")
        return FrameContext(item.stamp_ns, self._cameras, (), world)

    @torch.inference_mode()
    def state(self, pruner: RefinedPruner, index: int) -> TemporalState | None:
        """What the items before this one in its scene leave to it; None for a scene's first."""
        first, scenes = index, self._source.scenes
        while first > max(0, index - REACH) and scenes[first - 1] == scenes[index]:
            first -= 1
        before = range(first, index)
        contexts = [
            PruningContext(features.visual(self._grids), frame=self.frame(position))
            for position, features in zip(before, self._features.load(before), strict=True)
        ]
        return pruner.state_after(contexts)
