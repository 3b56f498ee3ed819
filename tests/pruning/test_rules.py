"""Each comparison pruner keeps the set that its rule, written out in ``rules``, gives: many random inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastdrive_node.families import VisualTokens
from fastdrive_node.pruning.baselines.cdpruner import CdPruner
from fastdrive_node.pruning.baselines.coverage import CoveragePruner
from fastdrive_node.pruning.baselines.dart import Dart
from fastdrive_node.pruning.baselines.diversity import DivPrune
from fastdrive_node.pruning.baselines.fastv import FastV
from fastdrive_node.pruning.baselines.merging import PruMerge
from fastdrive_node.pruning.baselines.prune2drive import Prune2Drive, Prune2DriveInput, split_budget
from fastdrive_node.pruning.baselines.ring_view import duplicates
from fastdrive_node.pruning.baselines.sparsevlm import SparseVlm, best_count
from fastdrive_node.pruning.baselines.vispruner import VisPruner
from fastdrive_node.pruning.layer_pruning import Reached
from fastdrive_node.pruning.pruner import PruningContext
from tests.generation import choose, level_camera
from tests.pruning import rules

CASES = range(120)
GRID = (4, 6)


class Case:
    """Tokens [3, 24, 12], attention, text and a budget from a seed."""

    def __init__(self, seed: int):
        draw = np.random.default_rng(seed)
        self.tokens = draw.normal(size=(3, 24, 12)).astype(np.float32)
        self.tokens += draw.normal(size=(3, 1, 12)).astype(np.float32)  # a view's tokens have something in common
        self.attention = draw.random((3, 24), dtype=np.float32)
        self.text = draw.normal(size=(5, 12)).astype(np.float32)
        self.weights = tuple(draw.random(3))
        self.keep = int(draw.integers(1, 73))

    @property
    def flat(self) -> np.ndarray:
        return self.tokens.reshape(-1, 12).astype(np.float64)

    def context(self, **fields) -> PruningContext:
        return PruningContext.of(torch.from_numpy(self.tokens), GRID, **fields)

    def reached(self) -> Reached:
        images = torch.arange(3).repeat_interleave(24)
        attention = torch.from_numpy(self.attention).flatten()
        return Reached(torch.from_numpy(self.tokens).flatten(0, 1), images, lambda: attention)


@pytest.fixture(scope="module")
def cases():
    return [Case(seed) for seed in CASES]


def differing(kept, expected) -> list[int]:
    """Numbers of the cases where the two sets differ."""
    return [number for number, pair in enumerate(zip(kept, expected, strict=True)) if list(pair[0]) != list(pair[1])]


def test_fastv(cases):
    kept = [FastV().choose_in_layer(each.reached(), each.keep).indices.tolist() for each in cases]
    expected = [sorted(rules.highest(each.attention.flatten(), each.keep)) for each in cases]
    assert differing(kept, expected) == []


def test_divprune(cases):
    kept = [choose(DivPrune(), each.context(), each.keep).tolist() for each in cases]
    assert differing(kept, [rules.divprune(each.flat, each.keep) for each in cases]) == []


def test_cdpruner(cases):
    keeps = [1 + each.keep % 11 for each in cases]  # the kernel's rank is 12
    pairs = list(zip(cases, keeps, strict=True))
    kept = [choose(CdPruner(), each.context(text=torch.from_numpy(each.text)), keep).tolist() for each, keep in pairs]
    assert differing(kept, [rules.cdpruner(each.flat, each.text.astype(float), keep) for each, keep in pairs]) == []


def test_vispruner(cases):
    contexts = [each.context(tower_attention=torch.from_numpy(each.attention)) for each in cases]
    kept = [choose(VisPruner(), one, each.keep).tolist() for one, each in zip(contexts, cases, strict=True)]
    expected = [rules.vispruner(each.flat, each.attention.flatten(), each.keep) for each in cases]
    assert differing(kept, expected) == []


def test_prune2drive(cases):
    expected = [
        rules.prune2drive(each.tokens.astype(float), split_budget(each.keep, each.weights, 24)) for each in cases
    ]
    early = [choose(Prune2DriveInput(each.weights), each.context(), each.keep).tolist() for each in cases]
    inside = [Prune2Drive(each.weights).choose_in_layer(each.reached(), each.keep).indices.tolist() for each in cases]
    assert differing(early, expected) == [] and differing(inside, expected) == []


def test_dart(cases):
    kept = [choose(Dart(), each.context(text=torch.from_numpy(each.text)), each.keep).tolist() for each in cases]
    expected = []
    for each in cases:
        budgets = split_budget(each.keep, (24.0,) * 3, 24)
        images = [rules.dart(tokens, each.text, budget) for tokens, budget in zip(each.tokens, budgets, strict=True)]
        expected.append([24 * number + place for number, image in enumerate(images) for place in image])
    assert differing(kept, expected) == []


def test_coverage():
    grids = [(rows, columns) for rows in range(1, 13) for columns in range(1, 13)]
    keeps = [1 + 7 * number % (rows * columns) for number, (rows, columns) in enumerate(grids)]
    contexts = [PruningContext.of(torch.zeros(1, rows * columns, 2), (rows, columns)) for rows, columns in grids]
    kept = [choose(CoveragePruner(), one, keep).tolist() for one, keep in zip(contexts, keeps, strict=True)]
    assert differing(kept, [rules.coverage(*grid, keep) for grid, keep in zip(grids, keeps, strict=True)]) == []


def test_prumerge(cases):
    for each in cases:
        context = each.context(tower_attention=torch.from_numpy(each.attention))
        visual = VisualTokens.from_raster(context.tokens, GRID, torch.from_numpy(each.attention))
        kept = choose(PruMerge(), context, each.keep)
        merged = rules.prumerge(each.flat, each.attention.flatten().astype(float), each.keep, 32)
        assert kept.tolist() == sorted(merged)
        if each.keep < 72:
            rows = PruMerge().tokens(visual, kept).rows
            np.testing.assert_allclose(rows, [merged[place] for place in kept.tolist()], atol=1e-5)


def test_ring_view_duplicates():
    draw = np.random.default_rng(0)
    for _ in CASES:
        angles = np.sort(draw.uniform(-180, 180, 5))
        widths = draw.uniform(50, 110, 5)
        sizes = [(1600.0, float(height)) for height in draw.uniform(400, 900, 5)]
        views = [level_camera(*each) for each in zip(angles, widths, sizes, strict=True)]
        cameras = [
            (800 / np.tan(np.radians(width) / 2), *size, np.radians(angle))
            for angle, width, size in zip(angles, widths, sizes, strict=True)
        ]
        found = duplicates(views, [(3, 7)] * 5).tolist()
        assert found == rules.seen_twice(cameras, (3, 7))


def test_sparsevlm_raters(cases):
    raters = [
        SparseVlm().raters(torch.from_numpy(each.tokens).flatten(0, 1), torch.from_numpy(each.text)).tolist()
        for each in cases
    ]
    assert differing(raters, [rules.sparsevlm_raters(each.flat, each.text) for each in cases]) == []


def test_sparsevlm_steps(cases):
    kept, expected = [], []
    for each in cases:
        choice = SparseVlm().choose_in_layer(each.reached(), each.keep)
        merged = choice.hidden if choice.hidden is not None else each.reached().hidden[choice.indices]
        best = best_count(72, each.keep)
        rule = rules.sparsevlm_step if best < each.keep else rules.unmerged_step  # too few for a token and a cluster
        left = rule(each.attention.flatten(), each.flat, best)
        kept.append(choice.indices.tolist())
        expected.append(sorted(left))
        if kept[-1] == expected[-1]:
            np.testing.assert_allclose(merged, [left[place] for place in expected[-1]], atol=1e-5)
    assert differing(kept, expected) == []
    assert sum(len(each) != 72 for each in kept) > 100
