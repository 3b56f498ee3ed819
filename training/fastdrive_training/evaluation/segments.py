"""The answers that a table lacks, segment by segment of its samples: what a worker of an evaluation does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from fastdrive_node.families import Vla, load_vla
from fastdrive_node.pruning.pruner import ContextField
from fastdrive_node.pruning.score_pruner import RefinedPruner
from fastdrive_training.data.adapters.base import ImageSource
from fastdrive_training.data.token_cache import FeatureStore
from fastdrive_training.evaluation.answers import (
    Answerer,
    EarlierSets,
    EvaluationSample,
    JudgedAnswer,
    RefusedSample,
    judged_plan,
    make_rows,
    needs_of,
)
from fastdrive_training.evaluation.efficiency import measure
from fastdrive_training.evaluation.samples import CONSTANT_VELOCITY, constant_velocity, surroundings
from fastdrive_training.evaluation.seen_images import SeenStore
from fastdrive_training.evaluation.settings import OpenLoopSettings, RowKey

BASELINE = RowKey(CONSTANT_VELOCITY, 0.0)


@dataclass(frozen=True)
class SegmentTask:
    """What is missing of one segment of the samples."""

    number: int
    own: tuple[int, ...]  # positions of its samples in the dataset
    images: tuple[int, ...]  # whose images they see
    rows: frozenset[RowKey]  # that lack it; BASELINE is one
    costs: bool  # whether what each row costs is measured on it
    first: str  # name of its first sample

    def __str__(self) -> str:
        return f"segment {self.number} (samples from {self.first})"


@dataclass(frozen=True)
class RowAnswers:
    """The next answers of a row in a segment, in the samples' order."""

    key: RowKey
    segment: int
    answers: list[JudgedAnswer]


@dataclass(frozen=True)
class RowCosts:
    """What a row costs, as :func:`measure` gives it."""

    key: RowKey
    figures: dict


class SegmentWorker:
    """Answers segment after segment: features once, then every row that lacks it.

    Raises:
        InputError, ModelError, UsageError: as :func:`make_rows` and :class:`FeatureStore`.
    """

    def __init__(self, source: ImageSource, vla: Vla, settings: OpenLoopSettings, progress: bool):
        self._source, self._progress = source, progress
        self._batch, self._timing = settings.batch, settings.timing
        self.rows = make_rows(vla, settings)
        needs = needs_of(self.rows)
        self._coverage, self._frames = ContextField.COVERAGE in needs, ContextField.FRAME in needs
        refined = [row.pruner for row in self.rows if isinstance(row.pruner, RefinedPruner)]
        self._remembering = next((pruner for pruner in refined if pruner.remembers), None)
        self._answerer = Answerer(vla)
        if self._coverage:
            vla.require_one_frame("the pruner oracle")
        if self._remembering is not None:
            vla.require_one_frame(f"the pruner {self._remembering.name} with a memory")
        features = FeatureStore(source, vla, settings.features, ContextField.TOWER_ATTENTION in needs)
        self._seen, self._earlier = SeenStore(source, vla, features), EarlierSets(source, vla, features)

    def __call__(self, tasks: Iterable[SegmentTask]) -> Iterator[RowAnswers | RowCosts]:
        """Raises InputError: a broken file of the dataset. ModelError: a pruner's scores are unusable."""
        for task in tasks:
            yield from self._segment(task)

    def _segment(self, task: SegmentTask) -> Iterator[RowAnswers | RowCosts]:
        samples = self._load(task)
        if BASELINE in task.rows:
            plans = [judged_plan(one.item, constant_velocity(one.item.known_history), one.around) for one in samples]
            yield RowAnswers(BASELINE, task.number, plans)
        if task.costs:
            kinds = [row for row in self.rows if not row.key.seed]
            answered = [sample for sample in samples if isinstance(sample, EvaluationSample)]
            costs = measure(self._answerer, kinds, answered, self._timing, self._progress)
            yield from (RowCosts(row.key, figures) for row, figures in zip(kinds, costs, strict=True))
        for row in self.rows:
            if row.key in task.rows:
                for start in range(0, len(samples), self._batch):
                    answers = self._answerer.judged(row, samples[start : start + self._batch])
                    yield RowAnswers(row.key, task.number, answers)

    def _load(self, task: SegmentTask) -> list[EvaluationSample | RefusedSample]:
        loaded: list[EvaluationSample | RefusedSample] = []
        for own, images, seen in zip(task.own, task.images, self._seen.load(task.images), strict=True):
            item = self._source[own]
            shown, around = item if images == own else self._source[images], surroundings(item)
            if isinstance(seen, str):
                loaded.append(RefusedSample(item, around, seen))
                continue
            frame = self._earlier.frame(images) if self._frames else None
            state = self._earlier.state(self._remembering, images) if self._remembering else None
            loaded.append(self._answerer.sample(item, shown, seen, around, self._coverage, frame, state))
        return loaded


def load_worker(
    source: ImageSource, path: Path, device: str, dtype: torch.dtype, settings: OpenLoopSettings
) -> SegmentWorker:
    """A worker in a process of a cluster, with a VLA of its own."""
    return SegmentWorker(source, load_vla(path, device, dtype), settings, progress=False)
