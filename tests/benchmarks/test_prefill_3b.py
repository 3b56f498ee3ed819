"""The pruned prefill at the size of a 3B: what is counted and how times are put together, on a toy."""

from __future__ import annotations

import itertools

import pytest
import torch

from benchmarks.perf.random_models import SIZES as MODEL_SIZES
from benchmarks.studies import prefill_3b
from benchmarks.studies.pruner_memory import SIZES
from fastdrive_node.benchmark.timing import Timing


def test_the_limits_are_those_of_the_arithmetic():
    paper, own = (prefill_3b.counted(SIZES["3B"], 36, regime) for regime in prefill_3b.REGIMES.values())
    assert paper == pytest.approx((4.25, 3.77), abs=0.01)
    assert own == pytest.approx((1.23, 1.21), abs=0.01)  # the text stays, whatever is pruned


def test_a_prompt_keeps_all_of_its_text():
    regime = prefill_3b.Regime((4, 6), 10, 0.5)
    assert (regime.visual, regime.kept, regime.lengths) == (24, 12, (34, 22))


def test_two_layers_more_stand_for_a_prefill_of_all(monkeypatch):
    shapes = []
    ms = {"all 2": 30.0, "all 4": 50.0, "kept 2": 9.0, "kept 4": 14.0, "pruner": 20.0}

    def measured(cases, runs, device, warm_up):
        for case in cases.values():
            shapes.append(tuple(case.run(None).shape))
        return {name: Timing([ms[name]] * runs) for name in cases}

    monkeypatch.setattr(prefill_3b, "measure", measured)
    torch.manual_seed(0)
    found = prefill_3b.timed(MODEL_SIZES["tiny"], 36, prefill_3b.Regime((4, 6), 10, 0.5), 3)
    assert (found["all_ms"], found["kept_ms"]) == (360.0, 90.0)
    assert (found["speedup"], found["speedup_with_pruner"]) == (4.0, 360 / 110)
    logits, scores = shapes[:4], shapes[4]
    assert logits == [(1, 1, prefill_3b.VOCABULARY)] * 4 and scores[:2] == (1, 24)


def test_the_pruned_prefill_reads_the_kept_tokens_and_the_text(monkeypatch):
    lengths, ms = [], itertools.count(1)

    def forward(self, tokens, positions, cache, last=1):
        lengths.append((tokens.shape[1], positions[0].shape[1], cache.keys[0].shape[2]))

    def measured(cases, *_, **__):
        for case in cases.values():
            case.run(None)
        return {name: Timing([float(next(ms))]) for name in cases}

    monkeypatch.setattr(prefill_3b.TorchLanguage, "forward", forward)
    monkeypatch.setattr(prefill_3b, "measure", measured)
    prefill_3b.timed(MODEL_SIZES["tiny"], 36, prefill_3b.Regime((4, 6), 10, 0.5), 1)
    assert lengths == [(34, 34, 34), (22, 22, 22)] * 2
