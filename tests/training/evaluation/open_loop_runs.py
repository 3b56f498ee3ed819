"""Folders of finished evaluations, small and made up: known plans, errors and kept tokens for every row."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastdrive_node.families import load_vla
from fastdrive_training.data.adapters import Item
from fastdrive_training.data.nuscenes.keyframes import KeyframeDataset
from fastdrive_training.evaluation.answers import JudgedAnswer
from fastdrive_training.evaluation.metrics.judge import Judgement
from fastdrive_training.evaluation.records import RecordStore, identity_of
from fastdrive_training.evaluation.run import BASELINE, SEGMENT
from fastdrive_training.evaluation.samples import choose_samples
from fastdrive_training.evaluation.settings import OpenLoopSettings, RowKey

COSTS = {"flops": 2e9, "pruner_ms": 1.0, "prefill_ms": 4.0, "decode_ms_per_token": 2.0, "peak_memory_mb": 60.0}


@dataclass(frozen=True)
class MadeUp:
    """A row: every plan lies ``off_m`` to the left of the ground truth, by ``wobble_m`` more or less."""

    pruner: str
    drop: float
    off_m: float
    seed: int = 0
    kept: int = 48  # tokens, the first of them
    wobble_m: float = 0.0
    hits: int = 0  # samples of which each step collides
    refuse: Sequence[int] = ()
    reason: str = "no plan"

    @property
    def key(self) -> RowKey:
        return RowKey(self.pruner, self.drop, self.seed)


ROWS = (
    MadeUp("none", 0.0, 0.40, kept=192),
    MadeUp("random", 0.75, 0.90, wobble_m=0.05, hits=8),
    MadeUp("random", 0.75, 1.10, seed=1, wobble_m=0.05, hits=8),
    MadeUp("fastv", 0.75, 0.70, wobble_m=0.02, hits=2, refuse=(1,)),
    MadeUp("reconpruner", 0.75, 0.50, wobble_m=0.1),
    MadeUp("oracle", 0.75, 0.30, wobble_m=0.02),
    MadeUp("reconpruner-adaptive", 0.75, 0.45, kept=40, wobble_m=0.02),
)


def write_run(folder: Path, root: Path, vla_dir: Path, rows: Sequence[MadeUp] = ROWS, shuffled: bool = False) -> Path:
    """A finished run over the keyframes of a dataset, with efficiency; ``constant-velocity`` is always there."""
    dataset, vla = KeyframeDataset(root), load_vla(vla_dir)
    samples = choose_samples(dataset, None, shuffled)
    identity = identity_of(dataset, vla, samples, OpenLoopSettings(pruners=("none",)), SEGMENT)
    store = RecordStore(folder, identity)
    keyframes = [dataset[index] for index in samples.own]
    for row in rows:
        store.put(row.key, 0, [_answer(row, place, keyframe) for place, keyframe in enumerate(keyframes)])
        less = 1.0 if row.pruner == "none" else 0.5
        store.put_efficiency(row.key, {name: less * value for name, value in COSTS.items()})
    baseline = MadeUp(BASELINE.pruner, 0.0, 2.0)
    store.put(BASELINE, 0, [_answer(baseline, place, one) for place, one in enumerate(keyframes)])
    store.finish([*(row.key for row in rows), BASELINE], [0])
    return folder


def _answer(row: MadeUp, place: int, keyframe: Item) -> JudgedAnswer:
    adaptive = row.pruner == "reconpruner-adaptive"
    tokens = None if row.key == BASELINE else np.arange(row.kept - adaptive * (place % 2))
    if place in row.refuse:
        return JudgedAnswer(keyframe.name, keyframe.scene, "?", None, row.reason, None, tokens)
    off = row.off_m + row.wobble_m * np.cos(place * 2.0 + len(row.pruner))
    plan = keyframe.future() + np.array([0.0, off])
    steps = len(plan)
    hits, nothing = np.full(steps, place < row.hits), np.zeros(steps, bool)
    judged = Judgement(np.full(steps, abs(off)), hits, nothing, nothing, hits)
    return JudgedAnswer(keyframe.name, keyframe.scene, "text", plan, None, judged, tokens)


def edit_json(path: Path, change: Callable[[dict], None]) -> None:
    """Change a JSON object in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
