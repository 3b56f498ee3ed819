"""The loop over samples and rows, and the table that comes out of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from fastdrive_node.errors import InputError
from fastdrive_node.families.loading import Vla
from fastdrive_node.pruning.baselines import Need, RefinedPruner
from fastdrive_training.data.features import FeatureStore
from fastdrive_training.data.nuscenes.ego_track import FUTURE_POINTS, INTERVAL_S
from fastdrive_training.data.nuscenes.keyframes import KeyframeDataset
from fastdrive_training.evaluation.answers import Answerer, Row, Sample, make_rows, needs_of, plan_verdict
from fastdrive_training.evaluation.earlier import EarlierSets
from fastdrive_training.evaluation.efficiency import measure
from fastdrive_training.evaluation.intervals import (
    FIGURES,
    interval,
    paired_difference,
    sample_figures,
    seed_mean,
    steps_of,
)
from fastdrive_training.evaluation.metrics import any_to_t, l2_at_t, l2_avg_to_t, mean_to_t
from fastdrive_training.evaluation.records import RecordStore, identity_of
from fastdrive_training.evaluation.samples import CONSTANT_VELOCITY, Samples, World, choose_samples, constant_velocity
from fastdrive_training.evaluation.settings import OpenLoopSettings, RowKey

SEGMENT = 64  # samples that are held at a time, and that a row writes at once
STRAIGHT_ON = RowKey(CONSTANT_VELOCITY, 0.0)


def evaluate(dataset: KeyframeDataset, vla: Vla, settings: OpenLoopSettings, progress: bool = True) -> dict:
    """Run every row over the samples that have a full future.

    Returns ``rows`` as in the command's JSON, ``comparisons`` (see :func:`comparisons`), ``samples`` and
    ``without_future`` (skipped), ``images``.

    Raises:
        InputError: no sample has a future, the answer's points are not six at 0.5 s, shuffling within one scene, a
            broken file of the data set, or an output folder of another evaluation.
        ModelError: a pruner that cannot serve the VLA.
    """
    check_answer_form(vla)
    rows = make_rows(vla, settings)
    samples = choose_samples(dataset, settings.limit, settings.shuffled)
    store = RecordStore(settings.out, identity_of(dataset, vla, samples, settings, SEGMENT))
    segments = _Run(dataset, vla, settings, rows, samples, store).all(progress)
    keys = [*(row.key for row in rows), STRAIGHT_ON]
    store.finish(keys, segments)
    tables = {key: store.row(key, segments) for key in keys}
    return {
        "rows": [row_figures(key, tables[key], store.efficiency.get(key.kind, {})) for key in keys],
        "comparisons": comparisons({key: table for key, table in tables.items() if key != STRAIGHT_ON}),
        "samples": len(samples),
        "without_future": samples.without_future,
        "images": "shuffled" if settings.shuffled else "own",
    }


def check_answer_form(vla: Vla) -> None:
    """Raises InputError where the VLA's answers are not six points at 0.5 s."""
    answer = vla.spec.answer
    if answer.points != FUTURE_POINTS or abs(answer.interval_s - INTERVAL_S) > 1e-6:
        raise InputError(
            f"{vla.path / 'vla.json'}: answer: {answer.points} points every {answer.interval_s} s; open-loop "
            f"evaluation compares {FUTURE_POINTS} points every {INTERVAL_S} s"
        )


class _Run:
    """Segment after segment of the samples: features once, then every row that lacks it."""

    def __init__(
        self,
        dataset: KeyframeDataset,
        vla: Vla,
        settings: OpenLoopSettings,
        rows: Sequence[Row],
        samples: Samples,
        store: RecordStore,
    ):
        self._dataset, self._rows, self._samples, self._store = dataset, rows, samples, store
        self._batch = settings.batch
        needs = needs_of(rows)
        self._coverage, self._moments = Need.COVERAGE in needs, Need.MOMENT in needs
        refined = [row.pruner for row in rows if isinstance(row.pruner, RefinedPruner)]
        self._remembering = next((pruner for pruner in refined if pruner.remembers), None)
        self._answerer = Answerer(dataset, vla)
        self._features = FeatureStore(dataset, vla, settings.features, Need.TOWER_ATTENTION in needs)
        self._earlier = EarlierSets(dataset, vla, self._features)
        self._world = World(dataset)

    def all(self, progress: bool) -> int:
        """Run what is missing. Returns the number of segments."""
        starts = range(0, len(self._samples), SEGMENT)
        total = len(self._samples) * (len(self._rows) + 1)
        with tqdm(total=total, desc="evaluating", unit="answer", disable=not progress) as bar:
            for number, start in enumerate(starts):
                self._segment(number, slice(start, start + SEGMENT), bar)
        return len(starts)

    def _segment(self, number: int, span: slice, bar: tqdm) -> None:
        size = len(self._samples.own[span])
        missing = [row for row in self._rows if not self._store.has(row.key, number)]
        kinds = [row for row in self._rows if number == 0 and not row.key.seed]
        unmeasured = any(row.key.kind not in self._store.efficiency for row in kinds)
        straight_on = self._store.has(STRAIGHT_ON, number)
        bar.update(size * (len(self._rows) - len(missing) + straight_on))
        if not missing and not unmeasured and straight_on:
            return
        samples = self._load(span)
        if not straight_on:
            plans = [plan_verdict(one.keyframe, constant_velocity(one.keyframe.history), one.around) for one in samples]
            self._store.put(STRAIGHT_ON, number, plans)
            bar.update(size)
        if unmeasured:
            bar.set_postfix_str("timing")
            for row, figures in zip(kinds, measure(self._answerer, kinds, samples), strict=True):
                self._store.put_efficiency(row.key, figures)
        for row in missing:
            bar.set_postfix_str(row.key.slug)
            verdicts = []
            for start in range(0, size, self._batch):
                verdicts += self._answerer.verdicts(row, samples[start : start + self._batch])
                bar.update(len(verdicts) - start)
            self._store.put(row.key, number, verdicts)

    def _load(self, span: slice) -> list[Sample]:
        pictures = self._samples.pictures[span]
        loaded = []
        for own, shown, features in zip(self._samples.own[span], pictures, self._features.load(pictures), strict=True):
            keyframe, picture = self._dataset[own], self._dataset[shown]
            around = self._world.around(keyframe)
            moment = self._earlier.moment(shown) if self._moments else None
            state = self._earlier.state(self._remembering, shown) if self._remembering else None
            loaded.append(self._answerer.sample(keyframe, picture, features, around, self._coverage, moment, state))
        return loaded


def row_figures(key: RowKey, table: pa.Table, efficiency: dict) -> dict:
    """One line of the table; figures that no sample has are None. ``tokens`` is a mean where K varies."""
    columns = {name: _known(table, column) for name, (column, _) in FIGURES.items()}
    errors, collision = columns["l2_avg_to_t"], columns["collision_polygon"]
    off, crossed = columns["off_drivable"], columns["intersection"]
    scenes = table.column("scene").to_pylist()
    intervals = {name: interval(sample_figures(table, name), scenes) for name in FIGURES}
    empty = {"1s": None, "2s": None, "3s": None, "avg": None}
    return {
        "pruner": key.pruner,
        "drop": key.drop,
        "seed": key.seed,
        "samples": len(table),
        "refused": sum(table.column("refused").to_pylist()),
        "l2_avg_to_t": dict(empty) if errors is None else l2_avg_to_t(errors, INTERVAL_S),
        "l2_at_t": dict(empty) if errors is None else l2_at_t(errors, INTERVAL_S),
        "collision_polygon": None if collision is None else mean_to_t(collision, INTERVAL_S),
        "off_drivable": None if off is None else any_to_t(off, INTERVAL_S),
        "intersection": None if crossed is None else any_to_t(crossed, INTERVAL_S),
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
                name: seed_mean([sample_figures(tables[key], figure) for key in group])
                for name, group in groups.items()
            }
            for name in groups:
                result = paired_difference(values[name], values[subject], scenes) if name != subject else None
                if result is not None:
                    found.append(
                        {
                            "drop": drop,
                            "pruner": name,
                            "against": subject,
                            "figure": figure,
                            "difference": result.difference,
                            "interval_95": list(result.interval),
                            "samples": result.samples,
                        }
                    )
    return found
