"""Cells of 2x2 tokens by ReconPruner's scores: whole, pooled to their mean, or left out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastdrive_node.errors import ModelError
from fastdrive_node.families import VisualTokens
from fastdrive_node.planning.loading import open_pipeline
from fastdrive_node.pruning.baselines.merging import Matryoshka, choose_cells, with_pooled_cells
from fastdrive_node.pruning.calibration import Calibration, CameraScale, FitRecord
from fastdrive_node.pruning.catalog import ScoreOptions, TemporalSettings
from fastdrive_node.pruning.pruner import PruningContext
from fastdrive_node.pruning.score_pruner import RefinedPruner, ScorePruner
from fastdrive_node.pruning.temporal import FrameContext
from fastdrive_node.replay.bag import Recording
from fastdrive_node.replay.samples import planning_samples
from fastdrive_node.types import CAMERAS, EgoState
from tests.generation import choose

ROOT = Path(__file__).resolve().parents[2]
WIDE = ROOT / "models/tiny_wide"
POOLED = ScoreOptions(pooled=True)
# One image of 3 x 5 tokens: cells of 4, 4, 2 / 2, 2 and 1 tokens, with the means 1, 1.75, 2.5 / 1.5, 4 and 6.
GRID = (3, 5)
SCORES = [1.0, 1, 0, 7, 2, 1, 1, 0, 0, 3, 3, 0, 4, 4, 6]


class Fixed:
    """A module whose scores are the first number of each token."""

    camera_bias = None

    def __call__(self, tokens, grid):
        return tokens[..., 0]


def visual_of(scores, grid=GRID, **fields) -> VisualTokens:
    """Tokens [score, 10 * raster index] of one image or more."""
    rows = torch.tensor(scores).view(-1, grid[0] * grid[1])
    places = 10.0 * torch.arange(rows.numel()).view(rows.shape)
    return VisualTokens.from_raster(torch.stack([rows, places], dim=-1), grid, **fields)


def pruner_of(options=POOLED, calibration=None, cameras=("A", "B")) -> RefinedPruner:
    return RefinedPruner(ScorePruner(Fixed()), options, calibration, cameras)


WHOLE_3 = [0, 2, 4, 9, 10, 12, 13, 14]  # the best three cells are whole
WHOLE_5 = sorted([*WHOLE_3, 3, 7, 8, 11])


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (1, [14]),  # fewer than the six cells: the best, each as one token
        (3, [4, 12, 14]),
        (5, [2, 4, 10, 12, 14]),
        (6, [0, 2, 4, 10, 12, 14]),  # all as one token
        (7, [0, 2, 4, 10, 12, 13, 14]),  # the best cell is one token; the next, of two, is whole
        (8, WHOLE_3),
        (10, WHOLE_3),  # the next needs three more, and so two are not used
        (11, [place for place in WHOLE_5 if place != 11]),
        (12, WHOLE_5),
        (14, WHOLE_5),
        (15, list(range(15))),
    ],
)
def test_the_best_cells_are_whole_and_the_others_one_token_each(keep, kept):
    assert choose(pruner_of(), PruningContext(visual_of(SCORES)), keep).tolist() == kept


def test_cells_of_few_tokens_at_an_edge_are_not_better_for_it_where_scores_are_negative():
    """3 x 3 tokens: a cell of four at -1 is before those of two and one at -2 and -3, whose sums are as high."""
    visual = visual_of([-1.0, -1, -2, -1, -1, -2, -2, -2, -3], (3, 3))
    assert choose(pruner_of(), PruningContext(visual), 1).tolist() == [0]
    assert choose(pruner_of(), PruningContext(visual), 3).tolist() == [0, 2, 6]
    assert choose(pruner_of(), PruningContext(visual), 7).tolist() == [0, 1, 2, 3, 4, 6, 8]


def test_cells_of_all_cameras_are_ranked_together_and_none_reaches_into_another_image():
    visual = visual_of([[0.0, 0, 5, 5], [1.0, 1, 1, 1]], (1, 4))
    assert choose(pruner_of(), PruningContext(visual), 1).tolist() == [2]
    assert choose(pruner_of(), PruningContext(visual), 5).tolist() == [0, 2, 3, 4, 6]
    mixed = VisualTokens(visual_of(SCORES).rows, torch.arange(15), (1, 1, 15), grids=((1, 3), (3, 4)))
    assert choose(pruner_of(), PruningContext(mixed), 6).tolist() == [0, 2, 3, 5, 11, 13]


def test_a_pooled_token_is_the_mean_of_its_cell_at_the_place_of_the_first():
    visual = visual_of(SCORES)
    visual = VisualTokens.from_raster(visual.raster(), GRID, layer_features=(2 * visual.rows,))
    tokens = pruner_of().tokens(visual, choose(pruner_of(), PruningContext(visual), 10))
    assert tokens.indices.tolist() == WHOLE_3
    places = [(0 + 10 + 50 + 60) / 4, (20 + 30 + 70 + 80) / 4, 40, 90, (100 + 110) / 2, 120, 130, 140]
    assert tokens.rows[:, 1].tolist() == places
    assert tokens.rows[:2, 0].tolist() == [1.0, 1.75] and tokens.rows[4, 0] == 1.5
    assert torch.equal(tokens.layer_features[0], 2 * tokens.rows)


def test_cells_without_a_chosen_token_are_left_out_of_every_mean():
    visual = visual_of(SCORES)
    assert with_pooled_cells(visual, torch.tensor([0, 14])).rows[:, 1].tolist() == [30.0, 140.0]


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3),
    st.integers(0, 1000),
    st.floats(0, 1),
)
def test_at_most_two_of_the_tokens_that_may_be_kept_are_not_used(grids, seed, fraction):
    total = sum(rows * columns for rows, columns in grids)
    rows = torch.randn(total, 3, generator=torch.Generator().manual_seed(seed))
    visual = VisualTokens(rows, torch.arange(total), (1, 1, total), grids=tuple(grids))
    keep = 1 + int(fraction * (total - 1))
    chosen = choose_cells(rows[:, 0], grids, keep)
    assert keep - 2 <= len(chosen) <= keep and bool((chosen.diff() > 0).all())
    pooled = with_pooled_cells(visual, chosen)
    assert pooled.rows.shape == (len(chosen), 3)
    if keep == total:
        assert torch.equal(pooled.rows, rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_even_grid_at_a_quarter_has_the_tokens_of_matryoshka(dtype):
    rows = torch.randn(2, 24, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    visual = VisualTokens.from_raster(rows, (4, 6), layer_features=(rows.flatten(0, 1).flip(0),))
    context = PruningContext(visual)
    ours, theirs = (pruner.tokens(visual, choose(pruner, context, 12)) for pruner in (pruner_of(), Matryoshka()))
    assert torch.equal(ours.rows, theirs.rows) and torch.equal(ours.indices, theirs.indices)
    assert torch.equal(ours.layer_features[0], theirs.layer_features[0]) and ours.rows.dtype == dtype


def test_tokens_that_an_engine_gives_in_another_order_are_pooled_as_the_same():
    visual, order = visual_of(SCORES), torch.randperm(15, generator=torch.Generator().manual_seed(0))
    shuffled = VisualTokens(visual.rows[order], order, visual.grid, torch.tensor([SCORES]))
    engine = RefinedPruner(ScorePruner(None), POOLED, None, ("A",))
    for keep in (4, 10, 15):
        chosen = choose(engine, PruningContext(shuffled), keep)
        expected = pruner_of().tokens(visual, choose(pruner_of(), PruningContext(visual), keep))
        assert torch.equal(engine.tokens(shuffled, chosen).rows, expected.rows)


def test_an_engine_that_gives_its_best_tokens_alone_is_refused():
    visual = VisualTokens(torch.zeros(4, 2), torch.tensor([0, 6, 7, 1]), (1, *GRID), torch.tensor([SCORES]))
    pruner = RefinedPruner(ScorePruner(None), POOLED, None, ("A",))
    assert not pruner.ranks_by_engine
    with pytest.raises(ModelError, match=r"pooled_cells.*--max-keep"):
        choose(pruner, PruningContext(visual), 3)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="scores: not finite"):
        choose(pruner_of(), PruningContext(visual_of([*SCORES[:14], value])), 8)


@pytest.mark.parametrize("keep", [0, 16])
def test_a_number_out_of_range_is_refused(keep):
    with pytest.raises(ValueError, match=rf"keep: {keep} is not in 1\.\.15"):
        choose(pruner_of(), PruningContext(visual_of(SCORES)), keep)


def frame(t0_ns=0) -> FrameContext:
    return FrameContext(t0_ns, ("A", "B"), (), EgoState(t0_ns, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0))


def test_calibrated_scores_rank_the_cells_and_a_threshold_says_how_many_tokens_there_are():
    scales = {"A": CameraScale(1.0, 0.0), "B": CameraScale(1.0, -9.0)}  # B's scores say less
    calibration = Calibration(scales, FitRecord("toy", "val", 10, 0.1, 0.01))
    context = PruningContext(visual_of([[1.0, 1, -2, -2], [3.0, 3, 2, 2]], (1, 4)), frame=frame())
    calibrated = pruner_of(ScoreOptions(calibrated=True, pooled=True), calibration)
    assert choose(calibrated, context, 1).tolist() == [0] != choose(pruner_of(), context, 1).tolist()
    threshold = pruner_of(ScoreOptions(keep_threshold=0.5, k_min=1, pooled=True), calibration)
    assert choose(threshold, context, 8).tolist() == [0, 2]  # two tokens are likely enough: the best two cells
    assert choose(threshold, context, 1).tolist() == [0]


def test_temporal_terms_rank_the_cells():
    pruner = pruner_of(ScoreOptions(temporal=TemporalSettings(change=0.0, memory=0.9), pooled=True))
    now, before = [[3.0, 3, 1, 1], [0.0, 0, 0, 0]], [[1.0, 1, 3, 3], [0.0, 0, 0, 0]]
    assert pruner.remembers
    state = pruner.state_after([PruningContext(visual_of(before, (1, 4)), frame=frame(step)) for step in range(2)])
    later = PruningContext(visual_of(now, (1, 4)), frame=frame(10**8), state=state)
    assert choose(pruner, later, 1).tolist() == [2]
    assert choose(pruner, PruningContext(visual_of(now, (1, 4)), frame=frame()), 1).tolist() == [0]


@pytest.fixture(scope="module")
def samples():
    """Sets of the sample drive with all states that models/tiny_wide reads."""
    return planning_samples(Recording.open(ROOT / "samples/city", None, CAMERAS), 4, 0.5, limit=4)[2:]


def wide_plans(samples, pruner, drop, scores=None):
    pipeline = open_pipeline(WIDE, pruner, drop, scores=scores)
    return [pipeline.plan(sample.frames, sample.history, sample.command) for sample in samples]


def test_all_tokens_plan_as_without_a_pruner(samples):
    pooled, every = (wide_plans(samples, *choice) for choice in ((None, 0.0, POOLED), ("none", 0.0)))
    for ours, theirs in zip(pooled, every, strict=True):
        assert ours.text == theirs.text and ours.kept.kept == theirs.kept.kept == 432


def test_a_quarter_of_the_tokens_plans_as_matryoshka_and_half_differently(samples):
    pooled, grids = wide_plans(samples, None, 0.75, POOLED), wide_plans(samples, "matryoshka", 0.75)
    for ours, theirs in zip(pooled, grids, strict=True):
        assert ours.text == theirs.text and ours.kept.indices.tolist() == theirs.kept.indices.tolist()
    half = wide_plans(samples, "reconpruner-pooled", 0.5)
    assert [plan.kept.kept for plan in half] == [216] * 2
    assert [plan.text for plan in half] != [plan.text for plan in pooled]
