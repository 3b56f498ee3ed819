"""The loop over samples and rows, and the table that comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from fastdrive_node.cluster import Cluster, map_items
from fastdrive_node.errors import InputError, UsageError
from fastdrive_node.families import Vla
from fastdrive_training.data.adapters.base import FUTURE_INTERVAL_S, FUTURE_POINTS, ImageSource
from fastdrive_training.data.sampling import Shard
from fastdrive_training.evaluation.answers import JudgedAnswer, make_rows
from fastdrive_training.evaluation.efficiency import TIMES
from fastdrive_training.evaluation.intervals import (
    FIGURES,
    interval,
    known_mean,
    paired_difference,
    relative_performance,
    sample_figures,
    steps_of,
)
from fastdrive_training.evaluation.metrics.horizons import NAMES, at_t, figures
from fastdrive_training.evaluation.records import RecordStore, identity_of
from fastdrive_training.evaluation.samples import SampleChoice, choose_samples
from fastdrive_training.evaluation.segments import BASELINE, RowCosts, SegmentTask, SegmentWorker, load_worker
from fastdrive_training.evaluation.settings import OpenLoopSettings, RowKey
from fastdrive_training.evaluation.tails import tail_figures, worst5_l2

SEGMENT = 64  # samples that are held at a time, and that a row writes at once


def evaluate(
    source: ImageSource,
    vla: Vla,
    settings: OpenLoopSettings,
    progress: bool = True,
    cluster: Cluster | None = None,
) -> dict:
    """Run every row over the items that have a full future, or over a shard of them.

    With a cluster its workers answer, each with a VLA loaded from the directory of this one, in its dtype; here the
    weights are not needed. Workers write no files but encoder features, each item's its own.

    Returns ``rows`` as in the command's JSON, ``comparisons`` (see :func:`comparisons`), ``samples`` and
    ``without_future`` (skipped), ``images``, and of a shard ``shard``.

    Raises:
        InputError: no item has a future, plans end before 3 s, shuffling within one scene, a missing camera, a broken
            file of the dataset, or an output folder of another evaluation.
        ModelError: a pruner that cannot serve the VLA.
        UsageError: more shards than segments of samples.
        ClusterError: a worker of the cluster failed.
    """
    require_horizon(vla)
    samples = choose_samples(source, settings.limit, settings.shuffled)
    segments = segments_of(len(samples), settings.shard)
    if cluster is None:
        worker = SegmentWorker(source, vla, settings, progress)
        keys, make = [row.key for row in worker.rows], lambda: worker
    else:
        keys = [row.key for row in make_rows(vla, settings)]
        make = partial(load_worker, source, vla.path, cluster.device, vla.dtype, settings)
    store = RecordStore(settings.folder, identity_of(source, vla, samples, settings, SEGMENT))
    _Table(keys, source, samples, store, settings.timing).fill(segments, make, cluster, progress)
    keys.append(BASELINE)
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
    whole = next((table for key, table in tables.items() if key.pruner == "none"), None)
    return {
        "rows": [
            {**row_figures(key, table, efficiency.get(key.kind, {})), **against_whole(key, table, whole)}
            for key, table in tables.items()
        ],
        "comparisons": comparisons({key: table for key, table in tables.items() if key != BASELINE}),
    }


def _span(number: int) -> slice:
    return slice(number * SEGMENT, (number + 1) * SEGMENT)


def require_horizon(vla: Vla) -> None:
    """Raises InputError where the VLA's plans end before the last horizon of the metrics, 3 s."""
    answer, needed_s = vla.spec.answer, FUTURE_POINTS * FUTURE_INTERVAL_S
    if answer.points * answer.interval_s < needed_s - 1e-6:
        raise InputError(
            f"{vla.path / 'vla.json'}: answer: {answer.points} points every {answer.interval_s} s end before "
            f"{needed_s:g} s, which open-loop figures need"
        )


@dataclass(frozen=True)
class _Table:
    """The rows of an evaluation over its samples: what they lack, and where answers are kept."""

    keys: Sequence[RowKey]
    source: ImageSource
    samples: SampleChoice
    store: RecordStore
    timing: bool

    def fill(
        self,
        segments: Sequence[int],
        make: Callable[[], SegmentWorker],
        cluster: Cluster | None,
        progress: bool,
    ) -> None:
        """Run what is missing of these segments."""
        sizes = {number: len(self.samples.own[_span(number)]) for number in segments}
        unfinished: dict[tuple[RowKey, int], list[JudgedAnswer]] = {}
        total = sum(sizes.values()) * (len(self.keys) + 1)
        with tqdm(total=total, desc="evaluating", unit="answer", disable=not progress) as bar:
            for result in map_items(make, self._tasks(segments, bar), cluster):
                if isinstance(result, RowCosts):
                    self.store.put_efficiency(result.key, result.figures)
                    continue
                bar.set_postfix_str(result.key.slug)
                bar.update(len(result.answers))
                place = result.key, result.segment
                answers = unfinished.setdefault(place, [])
                answers += result.answers
                if len(answers) == sizes[result.segment]:
                    self.store.put(*place, unfinished.pop(place))

    def _tasks(self, segments: Sequence[int], bar: tqdm) -> Iterator[SegmentTask]:
        for number in segments:
            own, images = self.samples.own[_span(number)], self.samples.images[_span(number)]
            missing = frozenset(key for key in (*self.keys, BASELINE) if not self.store.has(key, number))
            costs = number == 0 and any(self._lacks_costs(key) for key in self.keys)
            bar.update(len(own) * (len(self.keys) + 1 - len(missing)))
            if missing or costs:
                yield SegmentTask(number, own, images, missing, costs, self.source.names[own[0]])

    def _lacks_costs(self, key: RowKey) -> bool:
        known = self.store.efficiency.get(key.kind)
        return known is None or (self.timing and known.get("prefill_ms") is None)


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
        "worst5_l2": worst5_l2(table),
        "judged": {name: 0 if values is None else len(values) for name, values in columns.items()},
        "interval_95": {name: None if ends is None else list(ends) for name, ends in intervals.items()},
        "tokens": _mean_tokens(table),
        **{name: efficiency.get(name) for name in ("flops", "prefill_ms", "decode_ms_per_token", "pruner_ms")},
        **{name: efficiency.get(name) for name in ("decode_flops_per_token", "peak_memory_mb")},
        **({"tokens_by_layer": efficiency["tokens_by_layer"]} if "tokens_by_layer" in efficiency else {}),
    }


def against_whole(key: RowKey, table: pa.Table, whole: pa.Table | None) -> dict[str, dict[str, float | None] | None]:
    """``relative_performance`` of each figure and ``tails`` against the row ``none``; None without that row."""
    if whole is None or key.pruner == "none":
        return {"relative_performance": None, "tails": None}
    values = {name: (sample_figures(whole, name), sample_figures(table, name)) for name in FIGURES}
    relative = {name: relative_performance(*pair) for name, pair in values.items()}
    return {"relative_performance": relative, "tails": tail_figures(whole, table)}


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
