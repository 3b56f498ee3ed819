"""The loop over samples and rows, and the table that comes out of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from fastdrive_node.errors import InputError, UsageError
from fastdrive_node.families import Vla
from fastdrive_node.pruning.pruner import ContextField
from fastdrive_node.pruning.score_pruner import RefinedPruner
from fastdrive_training.data.adapters.base import FUTURE_INTERVAL_S, FUTURE_POINTS, ImageSource
from fastdrive_training.data.sampling import Shard
from fastdrive_training.data.token_cache import FeatureStore
from fastdrive_training.evaluation.answers import (
    Answerer,
    EarlierSets,
    EvaluationSample,
    PrunerRow,
    judged_plan,
    make_rows,
    needs_of,
)
from fastdrive_training.evaluation.efficiency import TIMES, measure
from fastdrive_training.evaluation.intervals import (
    FIGURES,
    interval,
    known_mean,
    paired_difference,
    sample_figures,
    steps_of,
)
from fastdrive_training.evaluation.metrics.horizons import NAMES, at_t, figures
from fastdrive_training.evaluation.records import RecordStore, identity_of
from fastdrive_training.evaluation.samples import (
    CONSTANT_VELOCITY,
    SampleChoice,
    choose_samples,
    constant_velocity,
    surroundings,
)
from fastdrive_training.evaluation.settings import OpenLoopSettings, RowKey

SEGMENT = 64  # samples that are held at a time, and that a row writes at once
BASELINE = RowKey(CONSTANT_VELOCITY, 0.0)


def evaluate(source: ImageSource, vla: Vla, settings: OpenLoopSettings, progress: bool = True) -> dict:
    """Run every row over the items that have a full future, or over a shard of them.

    Returns ``rows`` as in the command's JSON, ``comparisons`` (see :func:`comparisons`), ``samples`` and
    ``without_future`` (skipped), ``images``, and of a shard ``shard``.

    Raises:
        InputError: no item has a future, plans end before 3 s, shuffling within one scene, a missing camera, a broken
            file of the dataset, or an output folder of another evaluation.
        ModelError: a pruner that cannot serve the VLA.
        UsageError: more shards than segments of samples.
    """
    require_horizon(vla)
    rows = make_rows(vla, settings)
    samples = choose_samples(source, settings.limit, settings.shuffled)
    segments = segments_of(len(samples), settings.shard)
    store = RecordStore(settings.folder, identity_of(source, vla, samples, settings, SEGMENT))
    _Evaluation(source, vla, settings, rows, samples, store).all(segments, progress)
    keys = [*(row.key for row in rows), BASELINE]
    store.finish(keys, segments)
    return {
        **table_figures({key: store.row(key, segments) for key in keys}, store.efficiency, settings.timing),
        "samples": sum(len(samples.own[_span(number)]) for number in segments),
        "without_future": samples.without_future,
        "images": "shuffled" if settings.shuffled else "own",
        **({"shard": str(settings.shard)} if settings.shard else {}),
    }


def segments_of(samples: int, shard: Shard | None) -> range:
    """Numbers of the segments of a shard, which follow each other. Raises UsageError: a shard has none."""
    count = -(-samples // SEGMENT)
    if shard is None:
        return range(count)
    if shard.count > count:
        raise UsageError(
            f"--shard: {samples} samples are {count} segments of up to {SEGMENT}; give at most {count} shards, "
            f"not {shard.count}"
        )
    return range(shard.index * count // shard.count, (shard.index + 1) * count // shard.count)


def table_figures(tables: dict[RowKey, pa.Table], efficiency: dict[str, dict], timing: bool = True) -> dict:
    """``rows`` and ``comparisons`` of the lines of each row; without ``timing`` the times are None."""
    if not timing:
        efficiency = {kind: {**costs, **dict.fromkeys(TIMES)} for kind, costs in efficiency.items()}
    return {
        "rows": [row_figures(key, table, efficiency.get(key.kind, {})) for key, table in tables.items()],
        "comparisons": comparisons({key: table for key, table in tables.items() if key != BASELINE}),
    }


def _span(number: int) -> slice:
    return slice(number * SEGMENT, (number + 1) * SEGMENT)


def require_horizon(vla: Vla) -> None:
    """Raises InputError where the VLA's plans end before the last horizon of the metrics, 3 s."""
    vla.require_one_frame("`fastdrive evaluate`")
    answer, needed_s = vla.spec.answer, FUTURE_POINTS * FUTURE_INTERVAL_S
    if answer.points * answer.interval_s < needed_s - 1e-6:
        raise InputError(
            f"{vla.path / 'vla.json'}: answer: {answer.points} points every {answer.interval_s} s end before "
            f"{needed_s:g} s, which open-loop figures need"
        )


class _Evaluation:
    """Segment after segment of the samples: features once, then every row that lacks it."""

    def __init__(
        self,
        source: ImageSource,
        vla: Vla,
        settings: OpenLoopSettings,
        rows: Sequence[PrunerRow],
        samples: SampleChoice,
        store: RecordStore,
    ):
        self._source, self._rows, self._samples, self._store = source, rows, samples, store
        self._batch, self._timing = settings.batch, settings.timing
        needs = needs_of(rows)
        self._coverage, self._frames = ContextField.COVERAGE in needs, ContextField.FRAME in needs
        refined = [row.pruner for row in rows if isinstance(row.pruner, RefinedPruner)]
        self._remembering = next((pruner for pruner in refined if pruner.remembers), None)
        self._answerer = Answerer(vla)
        self._features = FeatureStore(source, vla, settings.features, ContextField.TOWER_ATTENTION in needs)
        self._earlier = EarlierSets(source, vla, self._features)

    def all(self, segments: Sequence[int], progress: bool) -> None:
        """Run what is missing of these segments."""
        total = sum(len(self._samples.own[_span(number)]) for number in segments) * (len(self._rows) + 1)
        with tqdm(total=total, desc="evaluating", unit="answer", disable=not progress) as bar:
            for number in segments:
                self._segment(number, _span(number), bar)

    def _segment(self, number: int, span: slice, bar: tqdm) -> None:
        size = len(self._samples.own[span])
        missing = [row for row in self._rows if not self._store.has(row.key, number)]
        kinds = [row for row in self._rows if number == 0 and not row.key.seed]
        unmeasured = any(self._lacks_costs(row.key) for row in kinds)
        baseline = self._store.has(BASELINE, number)
        bar.update(size * (len(self._rows) - len(missing) + baseline))
        if not missing and not unmeasured and baseline:
            return
        samples = self._load(span)
        if not baseline:
            plans = [judged_plan(one.item, constant_velocity(one.item.known_history), one.around) for one in samples]
            self._store.put(BASELINE, number, plans)
            bar.update(size)
        if unmeasured:
            bar.set_postfix_str("timing")
            costs = measure(self._answerer, kinds, samples, self._timing, progress=not bar.disable)
            for row, figures in zip(kinds, costs, strict=True):
                self._store.put_efficiency(row.key, figures)
        for row in missing:
            bar.set_postfix_str(row.key.slug)
            answers = []
            for start in range(0, size, self._batch):
                answers += self._answerer.judged(row, samples[start : start + self._batch])
                bar.update(len(answers) - start)
            self._store.put(row.key, number, answers)

    def _lacks_costs(self, key: RowKey) -> bool:
        known = self._store.efficiency.get(key.kind)
        return known is None or (self._timing and known.get("prefill_ms") is None)

    def _load(self, span: slice) -> list[EvaluationSample]:
        shown = self._samples.images[span]
        loaded = []
        for own, images, features in zip(self._samples.own[span], shown, self._features.load(shown), strict=True):
            item = self._source[own]
            seen, around = item if images == own else self._source[images], surroundings(item)
            frame = self._earlier.frame(images) if self._frames else None
            state = self._earlier.state(self._remembering, images) if self._remembering else None
            loaded.append(self._answerer.sample(item, seen, features, around, self._coverage, frame, state))
        return loaded


def row_figures(key: RowKey, table: pa.Table, efficiency: dict) -> dict:
    """One line of the table; figures that no sample has are None. ``tokens`` is a mean where K varies."""
    columns = {name: _known(table, column) for name, (column, _) in FIGURES.items()}
    errors = columns["l2_avg_to_t"]
    by_figure = {
        name: None if columns[name] is None else figures(running(columns[name]))
        for name, (_, running) in FIGURES.items()
    }
    scenes = table.column("scene").to_pylist()
    intervals = {name: interval(sample_figures(table, name), scenes) for name in FIGURES}
    empty = dict.fromkeys((*NAMES, "avg"))
    return {
        "pruner": key.pruner,
        "drop": key.drop,
        "seed": key.seed,
        "samples": len(table),
        "refused": sum(table.column("refused").to_pylist()),
        "l2_avg_to_t": by_figure.pop("l2_avg_to_t") or empty,
        "l2_at_t": empty if errors is None else at_t(errors),
        **by_figure,
        "judged": {name: 0 if values is None else len(values) for name, values in columns.items()},
        "interval_95": {name: None if ends is None else list(ends) for name, ends in intervals.items()},
        "tokens": _mean_tokens(table),
        **{name: efficiency.get(name) for name in ("flops", "prefill_ms", "decode_ms_per_token", "pruner_ms")},
        **{name: efficiency.get(name) for name in ("decode_flops_per_token", "peak_memory_mb")},
        **({"tokens_by_layer": efficiency["tokens_by_layer"]} if "tokens_by_layer" in efficiency else {}),
    }


def _mean_tokens(table: pa.Table) -> int | float | None:
    """Visual tokens that the last layer saw; None for a row without a model."""
    counts = [count for count in table.column("tokens").to_pylist() if count is not None]
    if not counts:
        return None
    return counts[0] if len(set(counts)) == 1 else float(np.mean(counts))


def _known(table: pa.Table, column: str) -> np.ndarray | None:
    steps = steps_of(table, column)
    return None if steps is None else steps[~np.isnan(steps).any(axis=1)]


def comparisons(tables: dict[RowKey, pa.Table]) -> list[dict]:
    """Each pruner against ReconPruner at the same drop (against none where ReconPruner was not run), figure by figure.

    Seeds of one pruner are averaged sample by sample, and only samples that both answered count. A difference above
    zero says that the pruner's figure is larger, which is worse.
    """
    found = []
    subject = "reconpruner" if any(key.pruner == "reconpruner" for key in tables) else "none"
    whole = [key for key in tables if key.pruner == "none"]
    drops = sorted({key.drop for key in tables if key.pruner != "none"})
    for drop in drops:
        keys = whole + [key for key in tables if key.drop == drop and key.pruner != "none"]
        groups = {name: list(group) for name, group in groupby(keys, key=lambda key: key.pruner)}
        if subject not in groups:
            continue
        scenes = tables[groups[subject][0]].column("scene").to_pylist()
        for figure in FIGURES:
            values = {
                name: known_mean([sample_figures(tables[key], figure) for key in group])
                for name, group in groups.items()
            }
            for name in groups:
                result = paired_difference(values[name], values[subject], scenes) if name != subject else None
                if result is not None:
                    row = {"drop": drop, "pruner": name, "against": subject, "figure": figure}
                    interval_95 = {"interval_95": list(result.interval)}
                    found.append({**row, "difference": result.difference, **interval_95, "samples": result.samples})
    return found
